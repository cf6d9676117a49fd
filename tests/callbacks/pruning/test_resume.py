"""Resume: an interrupted run ends bit-identical to an uninterrupted one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.training import STEPS, Adversaries, Events, Lit, fit, images, same, trainer_for, widths, zero_share
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_prune import IterativePruning, Scope, SlimmingPenalty, Weights
from lightning_prune.budgets import Count, Params, Ratio, Sparsity
from lightning_prune.callbacks import PrunedCheckpoints
from lightning_prune.checkpoint.manifest import track_shapes
from lightning_prune.criteria import BatchNormScale, Random, Taylor
from lightning_prune.schedules import Constant, Cubic, Linear, Rounds

EPOCHS = 6

Make = Callable[[], list[Callback]]


def channels(schedule: Any, budget: Any, **arguments: Any) -> IterativePruning:
    return IterativePruning(schedule, budget, **arguments)


def weights(schedule: Any, budget: Any, **arguments: Any) -> IterativePruning:
    return IterativePruning(schedule, budget, granularity=Weights(), **arguments)


METHODS: dict[str, Make] = {
    "nothing": lambda: [],
    "taylor": lambda: [channels(Rounds(1, 2, 2), Ratio(0.5), criterion=Taylor())],
    "taylor_now_and_then": lambda: [channels(Rounds(1, 2, 2), Params(keep=0.4), criterion=Taylor(every_n_steps=3))],
    "magnitude_in_steps": lambda: [channels(Linear(2, 18, every=4, unit="step"), Sparsity(0.6))],
    "random_counts": lambda: [channels(Rounds(1, 1, 4), Count(2), criterion=Random(seed=1))],
    "slimming": lambda: [SlimmingPenalty(0.01), channels(Constant(2), Ratio(0.5), criterion=BatchNormScale())],
    "masks": lambda: [weights(Cubic(0, 5), Sparsity(0.8))],
    "random_masks": lambda: [weights(Cubic(0.0, 0.8, every=0.1, unit="share"), Sparsity(0.8), criterion=Random())],
    "both": lambda: [
        channels(Rounds(1, 2, 2), Ratio(0.5), criterion="taylor"),
        weights(Rounds(2, 1, 3), Sparsity(0.6)),
    ],
    "two_scopes": lambda: [
        channels(Rounds(1, 2, 2), Ratio(0.5), criterion="taylor", scope=Scope(include=["net.0"])),
        channels(Rounds(2, 2, 2), Ratio(0.5), criterion="taylor", scope=Scope(include=["net.3"])),
    ],
}


def run(folder: Path, make: Make, optimizer: str, ckpt_path: str | None = None) -> tuple[Lit, Trainer, list[Callback]]:
    """Train to the end, with a checkpoint after every epoch; resumed runs begin from other weights."""
    torch.manual_seed(0 if ckpt_path is None else 1)
    lit, callbacks = Lit(optimizer=optimizer), make()
    save = ModelCheckpoint(folder, "{epoch}", save_top_k=-1)
    trainer = trainer_for(folder, *callbacks, save, max_epochs=EPOCHS)
    trainer.fit(lit, ckpt_path=ckpt_path)
    return lit, trainer, callbacks


def everything(lit: Lit, trainer: Trainer, callbacks: list[Callback]) -> dict[str, Any]:
    return {
        "weights": dict(lit.state_dict()),
        "optimizer": trainer.optimizers[0].state_dict(),
        "scheduler": trainer.lr_scheduler_configs[0].scheduler.state_dict(),
        "callbacks": [callback.state_dict() for callback in callbacks],
    }


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_run_ends_bit_identical(tmp_path, method, optimizer) -> None:
    reference = everything(*run(tmp_path / "whole", METHODS[method], optimizer))
    for epoch in (0, 1, 2, 4):
        ckpt_path = str(tmp_path / f"whole/epoch={epoch}.ckpt")
        resumed = run(tmp_path / f"part{epoch}", METHODS[method], optimizer, ckpt_path)
        found = everything(*resumed)
        for part, expected in reference.items():
            assert same(found[part], expected), f"{part} after a resume from epoch {epoch}"


@pytest.mark.parametrize("method", ["nothing", "channels", "masks"])
def test_two_optimizers_resume(tmp_path, method) -> None:
    scope = Scope(exclude=["generator.2"])
    make: Make = {
        "nothing": lambda: [],
        "channels": lambda: [channels(Rounds(1, 2, 2), Ratio(0.5), criterion="taylor", scope=scope)],
        "masks": lambda: [weights(Cubic(0, 3), Sparsity(0.5))],
    }[method]
    finals = []
    for ckpt_path in (None, tmp_path / "epoch=1.ckpt"):
        gan = Adversaries()
        save = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
        trainer = trainer_for(tmp_path, *make(), save, max_epochs=4)
        trainer.fit(gan, ckpt_path=ckpt_path)
        finals.append([dict(gan.state_dict()), *(optimizer.state_dict() for optimizer in trainer.optimizers)])
    assert same(*finals)


@pytest.mark.parametrize("method", ["taylor", "magnitude_in_steps", "both"])
def test_from_any_step_the_run_reaches_its_budget(tmp_path, method) -> None:
    """Also from the last batch of an epoch, after which Lightning skips the hooks between two epochs."""
    whole = Lit()
    save = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    fit(tmp_path, whole, *METHODS[method](), save, max_epochs=EPOCHS)
    for step in (1, STEPS - 1, STEPS, STEPS + 1, 3 * STEPS, 3 * STEPS + 2):
        lit, callbacks = Lit(), METHODS[method]()
        trainer_for(tmp_path, *callbacks, max_epochs=EPOCHS).fit(lit, ckpt_path=str(tmp_path / f"step={step}.ckpt"))
        left, expected = (sum(p.numel() for p in module.parameters()) for module in (lit, whole))
        assert left == pytest.approx(expected, rel=0.05), step  # order of the data, and so the ranking, is another
        assert all(pruning.pruner.fraction == 1.0 for pruning in callbacks)
        if method == "both":
            assert zero_share(lit) == zero_share(whole)


def test_the_comparison_can_fail(tmp_path) -> None:
    one = everything(*run(tmp_path / "a", METHODS["taylor"], "sgd"))
    other = everything(*run(tmp_path / "b", METHODS["two_scopes"], "sgd"))
    assert same(one, one)
    assert not any(same(one[part], other[part]) for part in ("weights", "optimizer", "callbacks"))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("weights_only", [False, True])
def test_every_checkpoint_is_read_with_weights_only(tmp_path, method, weights_only) -> None:
    save = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1, save_weights_only=weights_only)
    fit(tmp_path, Lit(), *METHODS[method](), save, max_epochs=4)
    files = sorted(tmp_path.glob("*.ckpt"))
    assert len(files) == 4
    for file in files:
        content = torch.load(file, weights_only=True)
        assert plain(content.get("callbacks", {})), content["callbacks"]
        if not weights_only:
            keys = [key for key in content["callbacks"] if key.startswith("IterativePruning")]
            assert len(keys) == sum(isinstance(c, IterativePruning) for c in METHODS[method]())


def plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, (str, int)) and plain(item) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(plain, value))
    return value is None or type(value) in (bool, int, float, str, Tensor)


def test_taylor_statistics_are_restored(tmp_path) -> None:
    make = lambda: [channels(Constant(3), Ratio(0.5), criterion="taylor")]  # noqa: E731
    run(tmp_path, make, "sgd")
    state = torch.load(tmp_path / "epoch=1.ckpt", weights_only=True)["callbacks"]
    (saved,) = (value["pruner"]["statistics"] for key, value in state.items() if key.startswith("IterativePruning"))
    assert saved["steps"] == 2 * STEPS
    assert set(saved["totals"]) == {"net.1", "net.4"}

    class Look(Callback):
        def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
            self.found = callbacks[0].pruner.statistics.state_dict()

    callbacks, look = make(), Look()
    trainer = trainer_for(tmp_path, *callbacks, look, max_epochs=3)
    trainer.fit(Lit(), ckpt_path=str(tmp_path / "epoch=1.ckpt"))
    assert same(look.found, saved)


def test_the_schedule_is_resumed(tmp_path) -> None:
    run(tmp_path, METHODS["random_counts"], "sgd")
    events = Events()
    lit, (pruning,) = Lit(), METHODS["random_counts"]()
    trainer = trainer_for(tmp_path, pruning, events, max_epochs=EPOCHS)
    trainer.fit(lit, ckpt_path=str(tmp_path / "epoch=2.ckpt"))
    assert events.times == [(3, 12), (4, 16)]
    assert sum(widths(lit.net)[:2]) == 16 - 8
    assert (pruning.pruner.event, pruning.pruner.fraction) == (4, 1.0)


def test_a_finished_run_can_be_resumed_and_trained_on(tmp_path) -> None:
    """All prunable units are removed, so that there is no budget to be checked."""
    make = lambda: [channels(Rounds(1, 1, 2), Count(7), criterion="taylor")]  # noqa: E731
    lit, *_ = run(tmp_path, make, "sgd")
    assert widths(lit.net) == [1, 1, 3]
    resumed, (pruning,) = Lit(), make()
    trainer = trainer_for(tmp_path, pruning, max_epochs=EPOCHS + 2)
    trainer.fit(resumed, ckpt_path=str(tmp_path / f"epoch={EPOCHS - 1}.ckpt"))
    assert widths(resumed.net) == [1, 1, 3]
    assert len(resumed.losses) == 2 * STEPS


@pytest.mark.parametrize("method", ["taylor", "masks", "both"])
def test_a_second_fit_on_the_same_objects(tmp_path, method) -> None:
    lit, callbacks, events = Lit(), METHODS[method](), Events()
    fit(tmp_path, lit, *callbacks, events, max_epochs=EPOCHS)
    before, shape, zeros = len(events.times), widths(lit.net), zero_share(lit)
    lit.losses.clear()
    trainer = fit(tmp_path, lit, *callbacks, events, max_epochs=2)
    assert (len(events.times), widths(lit.net), zero_share(lit)) == (before, shape, zeros)
    assert len(lit.losses) == 2 * STEPS
    held = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    assert held == {id(p) for p in lit.parameters()}
    assert len(lit._state_dict_hooks) == 1
    assert not any(module._forward_hooks for module in lit.modules())


def test_no_hook_outlives_a_training_that_ended_early(tmp_path) -> None:
    """Taylor was still gathering statistics, and masks were still enforced."""
    lit = Lit()
    with pytest.warns(UserWarning, match="the budget will not be reached"):
        trainer = fit(tmp_path, lit, *METHODS["both"](), max_epochs=3)
    assert widths(lit.net) == [6, 6, 3]
    assert not any(module._forward_hooks for module in lit.modules())
    assert not trainer.optimizers[0]._optimizer_step_post_hooks


def test_the_same_trainer_continues_to_fit(tmp_path) -> None:
    lit, events = Lit(), Events()
    trainer = fit(tmp_path, lit, channels(Rounds(1, 2, 2), Ratio(0.5)), events, max_epochs=2)
    assert widths(lit.net) == [6, 6, 3]
    trainer.fit_loop.max_epochs = 5
    trainer.fit(lit)
    assert events.times == [(1, 4), (3, 12)]
    assert widths(lit.net) == [4, 4, 3]


@pytest.mark.parametrize("weights_only", [False, True])
def test_testing_an_older_checkpoint_grows_the_network(tmp_path, weights_only) -> None:
    lit = Lit()
    save = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1, save_weights_only=weights_only)
    scores = {}

    class Scores(Callback):
        def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
            scores[trainer.current_epoch] = (widths(lit.net), float(trainer.callback_metrics["val_loss"]))

    trainer = fit(tmp_path, lit, channels(Rounds(1, 1, 3), Ratio(0.75)), Scores(), save, max_epochs=5)
    assert [width for width, _ in scores.values()] == [[8, 8, 3], [6, 6, 3], [4, 4, 3], [2, 2, 3], [2, 2, 3]]
    for epoch in (0, 2, 1, 4, 3):
        (found,) = trainer.test(lit, ckpt_path=str(tmp_path / f"epoch={epoch}.ckpt"), verbose=False)
        width, score = scores[epoch]
        assert widths(lit.net) == width
        assert found["val_loss"] == pytest.approx(score, rel=1e-5)
        assert lit.net[0].out_channels == lit.net[1].num_features == lit.net[3].in_channels == width[0]


class BuiltLate(Lit):
    """Builds its network in ``configure_model``, after the callbacks' ``setup``."""

    def __init__(self) -> None:
        super().__init__()
        self.net = None

    def configure_model(self) -> None:
        if self.net is None:
            self.net = Lit().net


def test_networks_built_in_configure_model(tmp_path) -> None:
    lit, save = BuiltLate(), ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    fit(tmp_path, lit, channels(Rounds(1, 1, 2), Ratio(0.5)), save, max_epochs=3)
    resumed = BuiltLate()
    trainer = trainer_for(tmp_path, channels(Rounds(1, 1, 2), Ratio(0.5)), max_epochs=3)
    trainer.fit(resumed, ckpt_path=str(tmp_path / "epoch=1.ckpt"))
    assert same(dict(resumed.state_dict()), dict(lit.state_dict()))
    assert widths(resumed.net) == [4, 4, 3]
    trainer.test(resumed, ckpt_path=str(tmp_path / "epoch=0.ckpt"), verbose=False)
    assert widths(resumed.net) == [8, 8, 3]


def test_another_network_fails_with_the_usual_error(tmp_path) -> None:
    save = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    fit(tmp_path, Lit(width=16), channels(Constant(1), Ratio(0.5)), save, max_epochs=2)
    for epoch in (0, 1):  # unpruned, and pruned
        path = str(tmp_path / f"epoch={epoch}.ckpt")
        with pytest.raises(RuntimeError, match=r"size mismatch for net.0.weight"):
            trainer_for(tmp_path, channels(Constant(1), Ratio(0.5)), max_epochs=3).fit(Lit(width=12), ckpt_path=path)
        with pytest.raises(RuntimeError, match=r"size mismatch for net.0.weight"):
            trainer_for(tmp_path, PrunedCheckpoints()).test(Lit(width=12), ckpt_path=path, verbose=False)


def test_a_dense_checkpoint_of_another_size_fails_after_pruning(tmp_path) -> None:
    """Shapes differ, and the file has no manifest of pruning."""
    lit = Lit()
    trainer = fit(tmp_path, lit, channels(Constant(0), Ratio(0.5)), max_epochs=1)
    torch.save(
        {"state_dict": Lit().state_dict(), "pytorch-lightning_version": "2.6.0", "loops": {}}, tmp_path / "dense.ckpt"
    )
    with pytest.raises(RuntimeError, match="size mismatch"):
        trainer.test(lit, ckpt_path=str(tmp_path / "dense.ckpt"), verbose=False)


def test_data_in_shuffled_order_resume_too(tmp_path) -> None:
    """Not bit for bit, which Lightning does not support either; but with the same shapes, masks and schedule."""
    lit = Lit()
    lit.train_dataloader = lambda: DataLoader(images(), 8, shuffle=True)
    save = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    fit(tmp_path, lit, *METHODS["both"](), save, max_epochs=3)
    resumed = Lit()
    trainer = trainer_for(tmp_path, *METHODS["both"](), max_epochs=EPOCHS)
    trainer.fit(resumed, ckpt_path=str(tmp_path / "epoch=2.ckpt"))
    assert widths(resumed.net) == [4, 4, 3]
    assert zero_share(resumed) > 0.4


def test_tracking_twice_is_tracking_once() -> None:
    lit = Lit()
    track_shapes(lit)
    track_shapes(lit)
    assert len(lit._state_dict_hooks) == len(lit._load_state_dict_pre_hooks) == 1
