"""AccuracyGuard with on_drop='rollback': the restored state, the next steps, and the final network.

Where a network after a rollback has to be compared to something, it is a run in which the step that was too large was
never taken: without shuffling and with a constant learning rate both have to be the same, bit for bit.
"""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.judged import CHANNELS, METHODS, Before, Judged, Sized, everything, guard, run
from helpers.training import STEPS, Events, same, widths, zero_share
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from lightning_prune import IterativePruning, Scope, Weights, load_pruned
from lightning_prune.budgets import Count, Ratio, Sparsity
from lightning_prune.schedules import Constant, Rounds

# --- the restored state ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("method", METHODS)
def test_everything_is_restored(tmp_path: Path, method: str, optimizer: str) -> None:
    pruners = METHODS[method](Rounds(2, 2, 2))
    before = Before(*pruners)
    judge, events = guard(), Events()
    module = Judged([0.9, 0.9, 0.9, 0.5], optimizer)
    trainer = run(tmp_path, module, *pruners, before, judge, events, epochs=9)
    assert {epoch for epoch, _ in events.times} == {2}
    assert same(everything(trainer, *pruners), before.seen[0])
    assert any(not same(before.seen[0]["weights"], seen["weights"]) for seen in before.seen)  # it had been pruned
    assert trainer.global_step == 4 * STEPS
    assert widths(module.net) == [8, 8, 3]
    assert module.net[0].weight.grad is None
    assert [v.rolled_back for v in judge.verdicts] == [False, True]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("method", METHODS)
def test_the_smaller_step_equals_a_training_without_the_larger_one(tmp_path: Path, method: str, optimizer: str) -> None:
    """Two epochs after a step of a quarter: at epoch 4, after that of a half was rolled back, or at epoch 2."""
    control = METHODS[method](Rounds(2, 9, 4))
    if method == "counts":
        control = [IterativePruning(Rounds(2, 9, 4), Count(2), "taylor")]
    pruners = METHODS[method](Rounds(2, 2, 2))
    wanted = run(tmp_path, Judged([0.9], optimizer), *control, epochs=4)
    trainer = run(tmp_path, Judged([0.9, 0.9, 0.9, 0.5, 0.9], optimizer), *pruners, guard(retry=1), epochs=6)
    found, expected = everything(trainer, *pruners), everything(wanted, *control)
    for part in ("weights", "optimizers", "numbers"):
        assert same(found[part], expected[part]), part
    if method == "counts":  # one half of its schedule's first event, and the whole of a half as large one
        expected["pruners"][0]["fraction"] = 0.25
    assert same(found["pruners"], expected["pruners"])


def test_a_pruned_network_is_restored_after_further_pruning(tmp_path: Path) -> None:
    pruners = CHANNELS(Rounds(1, 1, 3))
    before = Before(*pruners)
    module = Judged([0.9, 0.9, 0.9, 0.1])
    trainer = run(tmp_path, module, *pruners, before, guard(), epochs=9)
    assert widths(module.net) == [5, 5, 3]  # 8 units less a third, twice
    assert same(everything(trainer, *pruners), before.seen[2])


def test_training_time_is_not_rolled_back(tmp_path: Path) -> None:
    """Learning rates, their schedulers, epochs and steps are not rolled back."""
    rates = []

    class Rates(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    module = Judged([0.9, 0.9, 0.9, 0.5, 0.9], decay=0.5)
    trainer = run(tmp_path, module, *CHANNELS(Rounds(2, 2, 2)), guard(retry=1), Rates(), epochs=6)
    assert rates[::STEPS] == pytest.approx([0.05 * 0.5**epoch for epoch in range(6)])
    assert (trainer.current_epoch, trainer.global_step) == (6, 6 * STEPS)
    assert trainer.lr_scheduler_configs[0].scheduler.last_epoch == 6


def test_no_gradient_of_the_rolled_back_network_remains(tmp_path: Path) -> None:
    """A batch is trained between the validation after step 4 and the event before the sixth."""
    left = []

    class Left(Callback):
        def on_before_prune(self, trainer: Trainer, pl_module: LightningModule, _: Any) -> None:
            left.append(any(p.grad is not None for p in pl_module.parameters()))

        def on_rollback(self, trainer: Trainer, pl_module: LightningModule) -> None:
            left.append(any(p.grad is not None for p in pl_module.parameters()))

    pruning = IterativePruning(Rounds(2, 3, 2, unit="step"), Sparsity(0.5), granularity=Weights())
    script = [1.0, 0.0]
    run(tmp_path, Sized(0, script), pruning, Left(), guard(), epochs=3, val_check_interval=2)
    assert left == [False, True, False]


def test_weights_stay_in_their_memory_format(tmp_path: Path) -> None:
    module = Judged([0.9, 0.9, 0.1])
    module.net.to(memory_format=torch.channels_last)
    run(tmp_path, module, *CHANNELS(Rounds(2, 1, 2)), guard(), epochs=9)
    assert widths(module.net) == [8, 8, 3]
    assert module.net[3].weight.is_contiguous(memory_format=torch.channels_last)
    assert not module.net[3].weight.is_contiguous()


def test_restored_masks_are_enforced(tmp_path: Path) -> None:
    """The restored masks, and not those of the rolled-back event; in each step."""
    shares = []

    class Shares(Callback):
        def on_before_zero_grad(self, trainer: Trainer, pl_module: Any, optimizer: Any) -> None:
            shares.append(round(zero_share(pl_module), 1))

    pruners = [IterativePruning(Rounds(1, 1, 3), Sparsity(0.9), granularity=Weights())]
    run(tmp_path, Judged([0.9, 0.9, 0.5, 0.9]), *pruners, guard(), Shares(), epochs=9, min_epochs=6)
    assert shares[STEPS + 1 :: STEPS] == [0.3, 0.6, 0.3, 0.3, 0.3]
    assert set(shares[3 * STEPS + 1 :]) == {0.3}


def test_the_files_are_checkpoints_and_are_removed(tmp_path: Path) -> None:
    """One for each accepted network, in one folder."""
    files: list[Path] = []
    networks = []

    class Look(Callback):
        def on_prune(self, *_: Any) -> None:
            (path,) = set(tmp_path.glob("accepted-*/*.ckpt")) - set(files)
            files.append(path)
            networks.append(load_pruned(Judged([0.9]), path))

    run(tmp_path, Judged([0.9]), *CHANNELS(Rounds(1, 1, 3)), guard(), Look(), epochs=5)
    assert len({path.parent for path in files}) == 1
    assert [widths(network.net) for network in networks] == [[8, 8, 3], [7, 7, 3], [5, 5, 3]]
    assert not list(tmp_path.glob("accepted-*"))


def test_arbitrary_objects_in_checkpoints_of_a_module_are_loaded(tmp_path: Path) -> None:
    class Odd(Judged):
        def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            checkpoint["odd"] = Path("anything that torch.load with weights_only=True would refuse")

    module = Odd([0.9, 0.9, 0.1])
    run(tmp_path, module, *CHANNELS(Rounds(2, 1, 2)), guard(), epochs=9)
    assert widths(module.net) == [8, 8, 3]


# --- what is tried next ---------------------------------------------------------------------------------------------

TABLE = {
    # 20 units, three events of 4, one every epoch. least, retry: widths in the order in which they are validated
    (20, 0): [20, 16],
    (20, 1): [20, 16, 18],
    (20, 2): [20, 16, 18, 19],
    (18, 0): [20, 16],
    (18, 1): [20, 16, 18, 16, 17],  # after 18 what is left of the event is a step of 2, and half of that one of 1
    (16, 0): [20, 16, 12],
    (16, 2): [20, 16, 12, 14, 15],
    (14, 1): [20, 16, 12, 14, 12, 13],
    (12, 1): [20, 16, 12, 8],  # the last event is judged when the training ends: nothing is tried after that
    (8, 3): [20, 16, 12, 8],
}


@pytest.mark.parametrize(("least", "retry"), list(TABLE))
def test_steps_are_halved_until_the_retries_are_used(tmp_path: Path, least: int, retry: int) -> None:
    module, judge = Sized(least), guard(retry)
    run(tmp_path, module, IterativePruning(Rounds(1, 1, 3), Ratio(12 / 20)), judge, epochs=9)
    assert module.tried == TABLE[least, retry]
    assert module.width == min(width for width in module.validated if width >= least)
    assert [v.kept for v in judge.verdicts] == [v.value == 1 for v in judge.verdicts]
    assert all(v.rolled_back != v.kept for v in judge.verdicts)
    assert len(module.validated) == (9 if least <= 12 else len(module.tried))  # no epoch after the last attempt


@pytest.mark.parametrize("at", [1, 2])
def test_a_passing_drop_costs_one_round_and_not_the_budget(tmp_path: Path, at: int) -> None:
    """Afterwards the schedule continues in whole steps."""
    script = [1.0] * 9
    script[at] = 0.0
    module, pruning, events = Sized(0, script), IterativePruning(Rounds(1, 1, 3), Ratio(12 / 20)), Events()
    run(tmp_path, module, pruning, guard(retry=1), events, epochs=9)
    expected = {1: [20, 16, 18, 16, 12, 8], 2: [20, 16, 12, 14, 12, 8]}
    assert module.tried == expected[at]
    assert pruning.pruner.fraction == 1
    assert [epoch for epoch, _ in events.times] == [1, 2, 3, 4, 5]


def test_retries_are_counted_from_the_last_accepted_network(tmp_path: Path) -> None:
    """Two drops in a row from 20, one from 18: three in all, and the budget is reached."""
    module = Sized(0, [1, 0, 0, 1, 0, 1])
    run(tmp_path, module, IterativePruning(Rounds(1, 1, 2), Ratio(16 / 20)), guard(retry=2), epochs=13)
    assert module.tried == [20, 12, 16, 18, 16, 17, 16, 15, 14, 13, 12, 4]
    assert module.width == 4


def test_the_history_keeps_rolled_back_events(tmp_path: Path) -> None:
    pruning = IterativePruning(Rounds(1, 1, 3), Ratio(12 / 20))
    run(tmp_path, Sized(16), pruning, guard(retry=1), epochs=9)
    events = pruning.state_dict()["history"]["events"]
    assert [(event["epoch"], event.get("rolled_back", False)) for event in events] == [(1, False), (2, True), (3, True)]
    assert (pruning.pruner.event, pruning.pruner.fraction) == (1, pytest.approx(1 / 3))
    assert pruning.sparsity == pytest.approx(1 - (16 * 7 + 2) / (20 * 7 + 2))


def test_an_event_that_removes_nothing_does_not_reset_the_retries(tmp_path: Path) -> None:
    """Half a unit rounds to none; retries in a row are still counted."""
    module, judge = Sized(19), guard(retry=2)
    run(tmp_path, module, IterativePruning(Rounds(1, 1, 3), Ratio(3 / 20)), judge, epochs=16)
    assert module.validated == [20, 19, 18, 19, 18, 18]  # the second 19 is the first one, trained on
    assert module.width == 19


def test_counts_are_halved_too(tmp_path: Path) -> None:
    module = Sized(17)
    run(tmp_path, module, IterativePruning(Rounds(1, 1, 4), Count(4)), guard(retry=2), epochs=4)
    assert module.tried == [20, 16, 18, 16]
    assert module.width == 18


def test_schedules_in_steps(tmp_path: Path) -> None:
    """One epoch, a validation after every batch, an event before every batch from the second on."""
    module = Sized(14)
    pruning = IterativePruning(Rounds(1, 1, 3, unit="step"), Ratio(12 / 20))
    trainer = run(tmp_path, module, pruning, guard(retry=1), epochs=3, val_check_interval=1)
    assert module.tried == [20, 16, 12, 14, 12, 13]
    assert module.width == 14
    assert trainer.global_step == len(module.validated) == 6


def test_two_pruners_are_rolled_back_together(tmp_path: Path) -> None:
    """The last event of the second one is rolled back, and repeated half as large after the end of its schedule."""
    first = IterativePruning(Rounds(1, 2, 3), Ratio(0.75), scope=Scope(include=["net.0"]))
    second = IterativePruning(Constant(2), Ratio(0.5), "taylor", scope=Scope(include=["net.3"]))
    sizes = []

    class Sizes(Callback):
        def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
            sizes.append(widths(pl_module.net)[:2])

    # epoch 1: 6 of the first 8 units stay; 2: 4 of the second 8, which is judged before the event at 3
    module = Judged([0.9, 0.9, 0.1, 0.9])
    run(tmp_path, module, first, second, guard(retry=1), Sizes(), epochs=6)
    assert sizes == [[8, 8], [6, 8], [6, 4], [4, 6], [4, 6], [2, 6]]
    assert (first.pruner.fraction, second.pruner.fraction) == (1, 0.5)
    assert second.pruner.statistics.steps == 3 * STEPS  # observes again, though it had finished


# --- when it is over ------------------------------------------------------------------------------------------------


def test_a_drop_at_the_end_is_rolled_back_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pruners = METHODS["both"](Rounds(1, 1, 2))
    before, module = Before(*pruners), Judged([0.9, 0.9, 0.9, 0.5])
    with caplog.at_level(logging.INFO, logger="lightning.pytorch"):
        trainer = run(tmp_path, module, *pruners, before, guard(retry=3), epochs=4)
    assert same(everything(trainer, *pruners), before.seen[2])  # before the second round; the first one had two calls
    assert widths(module.net) == [6, 6, 3]
    assert caplog.messages[-1].endswith(
        "dropped by more than 0.1, the network of epoch 1 is restored, the training has ended"
    )
    trainer.save_checkpoint(tmp_path / "saved.ckpt")
    assert widths(load_pruned(Judged([0.9]), tmp_path / "saved.ckpt").net) == [6, 6, 3]
    trainer.test(module, verbose=False)
    assert not any(m._forward_hooks for m in module.modules())


def test_an_event_without_a_validation_is_rolled_back(tmp_path: Path) -> None:
    module = Judged([0.9])
    with pytest.warns(UserWarning, match="no validation followed the last event; the network of epoch 1 is restored"):
        run(tmp_path, module, *CHANNELS(Rounds(2, 1, 2)), guard(), epochs=3, check_val_every_n_epoch=2)
    assert widths(module.net) == [8, 8, 3]


def test_without_a_baseline_there_is_nothing_to_go_back_to(tmp_path: Path) -> None:
    """The dense network already diverges: the training stops as it is."""
    judge, module = guard(retry=2), Judged([float("nan")])
    trainer = run(tmp_path, module, *CHANNELS(Rounds(1, 1, 2)), judge, epochs=9)
    assert trainer.global_step == STEPS
    assert [(v.kept, v.rolled_back, v.short) for v in judge.verdicts] == [(False, False, "dropped (nan)")]


def test_an_event_before_any_validation_can_be_taken_back(tmp_path: Path) -> None:
    """The dense network was never measured; what is made from it is not a number."""
    module, judge = Judged([float("nan")]), guard()
    run(tmp_path, module, *CHANNELS(Rounds(0, 1, 3)), judge, epochs=9)
    assert widths(module.net) == [8, 8, 3]
    assert [(v.rolled_back, v.short) for v in judge.verdicts] == [(True, "rolled back (nan)")]


def test_min_epochs_are_trained_with_the_accepted_network(tmp_path: Path) -> None:
    module, judge, events = Judged([0.9, 0.9, 0.5, 0.9, 0.9, 0.1]), guard(), Events()
    trainer = run(tmp_path, module, *CHANNELS(Rounds(1, 1, 4)), judge, events, epochs=9, min_epochs=6)
    assert [epoch for epoch, _ in events.times] == [1, 2]
    assert trainer.current_epoch == 6
    assert widths(module.net) == [7, 7, 3]
    assert [v.rolled_back for v in judge.verdicts] == [False, False, True, False, False, True]


def test_a_second_fit_goes_on_from_the_accepted_network(tmp_path: Path) -> None:
    pruning, judge = IterativePruning(Rounds(1, 1, 3), Ratio(12 / 20)), guard()
    module = Sized(16)
    run(tmp_path, module, pruning, judge, epochs=9)
    assert module.width == 16
    module.least, module.validated = 10, []
    run(tmp_path, module, pruning, judge, epochs=9)
    assert module.tried == [16, 12, 8]
    assert module.width == 12
    assert not list(tmp_path.glob("accepted-*"))
