"""Rewinding of weights and learning rates, and smaller rates after pruning."""

from typing import Any

import pytest
import torch
from helpers.training import STEPS, Lit, fit, same, trainer_for, widths, zero_share
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.optim import lr_scheduler

from lightning_prune import AccuracyGuard, IterativePruning, Weights
from lightning_prune.budgets import Ratio, Sparsity
from lightning_prune.callbacks import FinetuneLR, Rewind
from lightning_prune.schedules import Constant, Rounds

HALF = Ratio(0.5)


class Noted(Callback):
    """The network, its optimizer and its learning rate when training begins, and just before and after each event."""

    def __init__(self) -> None:
        self.weights: list[dict[str, Tensor]] = []
        self.rates: list[float] = []
        self.states: list[int] = []
        self.plans: list[Any] = []
        self.every_rate: list[float] = []

    def note(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.weights.append({name: value.clone() for name, value in pl_module.state_dict().items()})
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])
        self.states.append(len(trainer.strategy.optimizers[0].state))

    on_train_start = on_before_prune = note

    def on_prune(self, trainer: Trainer, pl_module: LightningModule, plan: Any, report: Any) -> None:
        self.note(trainer, pl_module)
        self.plans.append(plan)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self.every_rate.append(trainer.optimizers[0].param_groups[0]["lr"])


def cut(tensors: dict[str, Tensor], plan: Any) -> dict[str, Tensor]:
    found = dict(tensors)
    for name, dims in plan.keep.items():
        for dim, index in dims.items():
            found[name] = found[name].index_select(dim, index)
    return {name: value * plan.masks[name] if name in plan.masks else value for name, value in found.items()}


@pytest.mark.parametrize("masks", [False, True], ids=["channels", "weights"])
def test_weights_go_back_to_the_beginning(tmp_path, masks) -> None:
    noted = Noted()
    pruning = IterativePruning(Rounds(1, 1, 2), Sparsity(0.5), granularity=Weights() if masks else None)
    fit(tmp_path, Lit(), pruning, Rewind(), noted, max_epochs=3)
    initial, before_1, after_1, before_2, after_2 = noted.weights
    assert not same(before_1, initial)
    once = cut(initial, noted.plans[0])
    assert same(after_1, once)
    assert not same(before_2, once)
    assert same(after_2, cut(once, noted.plans[1]))
    assert noted.states[1] > 0
    assert noted.states[2] == noted.states[4] == 0  # optimizers begin anew
    assert noted.rates[0] == noted.rates[2] == noted.rates[4] == 0.05
    assert noted.rates[1] == pytest.approx(0.05 * 0.9)


@pytest.mark.parametrize(("unit", "to"), [("epoch", 1), ("step", STEPS + 1)])
def test_weights_go_back_to_a_point(tmp_path, unit, to) -> None:
    class There(Callback):
        def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
            now = trainer.current_epoch if unit == "epoch" else trainer.global_step
            if now == to and not hasattr(self, "weights"):
                self.weights = {name: value.clone() for name, value in pl_module.state_dict().items()}

    noted, there = Noted(), There()
    pruning = IterativePruning(Constant(2), HALF)
    fit(tmp_path, Lit(), pruning, Rewind(to, unit, "weights"), noted, there, max_epochs=3)
    assert same(noted.weights[2], cut(there.weights, noted.plans[0]))
    assert noted.rates[2] == noted.rates[1]  # what="weights"


def test_learning_rates_go_back_alone(tmp_path) -> None:
    noted = Noted()
    fit(tmp_path, Lit(), IterativePruning(Constant(2), HALF), Rewind(1, what="lr"), noted, max_epochs=4)
    assert same(noted.weights[2], cut(noted.weights[1], noted.plans[0]))
    assert noted.states[2] > 0
    rates = noted.every_rate[::STEPS]
    assert rates == pytest.approx([0.05, 0.05 * 0.9, 0.05 * 0.9, 0.05 * 0.9**2])  # epoch 2 has the rate of epoch 1


def test_new_weights_are_those_of_the_layers_and_the_same_everywhere(tmp_path) -> None:
    found = []
    for folder in ("a", "b"):
        noted = Noted()
        torch.manual_seed(len(found))
        fit(tmp_path / folder, Lit(), IterativePruning(Constant(1), HALF), Rewind("random"), noted, max_epochs=2)
        found.append(noted.weights[2])
        state = torch.get_rng_state()
    assert same(*found)
    weight = found[0]["net.3.weight"]
    assert not same(weight, cut(noted.weights[0], noted.plans[0])["net.3.weight"])
    assert weight.abs().max() <= (1 / weight[0].numel()) ** 0.5  # kaiming_uniform of nn.Conv2d
    assert torch.equal(state, torch.get_rng_state())


def test_new_weights_keep_masks_and_say_what_they_leave(tmp_path) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.full((3,), 2.0))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.scale

    lit = Lit()
    lit.net.append(Scaled())
    pruning = IterativePruning(Constant(1), Sparsity(0.5), granularity=Weights())
    with pytest.warns(UserWarning, match=r"does not change 'net.9.scale' \(and 0 more\): its module has no reset_par"):
        fit(tmp_path, lit, pruning, Rewind("random"), max_epochs=2)
    assert zero_share(lit) == pytest.approx(0.5)


@pytest.mark.parametrize("masks", [False, True], ids=["channels", "weights"])
@pytest.mark.parametrize("to", ["init", 1, "random"])
def test_a_resumed_run_ends_bit_identical(tmp_path, masks, to) -> None:
    def make() -> list[Callback]:
        pruning = IterativePruning(Rounds(2, 1, 2), Sparsity(0.5), granularity=Weights() if masks else None)
        return [pruning, Rewind(to), FinetuneLR(0.5)]

    save = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    whole, callbacks = Lit(), make()
    fit(tmp_path, whole, *callbacks, save, max_epochs=5)
    for epoch in (0, 1, 2, 3):
        torch.manual_seed(5)
        part, resumed = Lit(), make()
        trainer = trainer_for(tmp_path / "part", *resumed, max_epochs=5)
        trainer.fit(part, ckpt_path=str(tmp_path / f"epoch={epoch}.ckpt"))
        assert same(dict(part.state_dict()), dict(whole.state_dict())), epoch
        assert same([c.state_dict() for c in resumed[1:]], [c.state_dict() for c in callbacks[1:]]), epoch


def test_a_rollback_takes_the_stored_weights_along(tmp_path) -> None:
    class Falling(Lit):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("score", 0.5 if self.net[0].out_channels == 4 else 0.9)

    guard = AccuracyGuard("score", 0.1, on_drop="rollback")
    lit, rewind = Falling(), Rewind()
    fit(tmp_path, lit, guard, IterativePruning(Rounds(1, 1, 2), HALF), rewind, max_epochs=4)
    assert widths(lit) == [6, 6, 3]
    assert rewind.state_dict()["weights"]["net.0.weight"].shape == lit.net[0].weight.shape


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"to": "start"}, "Rewind to='start' is not known; use 'init', 'random', or the number of an epoch or step"),
        ({"to": -1}, "Rewind to=-1 is not known"),
        ({"to": True}, "Rewind to=True is not known"),
        ({"unit": "share"}, "Rewind unit='share' is not known; use 'epoch' or 'step'"),
        ({"what": "all"}, "Rewind what='all' is not known; use 'weights', 'lr' or 'both'"),
        ({"to": "random", "what": "lr"}, "draws new weights, but what='lr' keeps them"),
    ],
)
def test_arguments(arguments, message) -> None:
    with pytest.raises(MisconfigurationException, match=message):
        Rewind(**arguments)


def test_a_point_after_the_first_event(tmp_path) -> None:
    message = r"Rewind to=3 \(epoch\) is after the first event, at epoch 1 and step 4: rewind to an earlier point"
    with pytest.raises(MisconfigurationException, match=message):
        fit(tmp_path, Lit(), IterativePruning(Constant(1), HALF), Rewind(3), max_epochs=4)


@pytest.mark.parametrize("callback", [Rewind(), FinetuneLR()], ids=["Rewind", "FinetuneLR"])
def test_without_pruning(tmp_path, callback) -> None:
    with pytest.raises(MisconfigurationException, match="has no effect without pruning"):
        fit(tmp_path, Lit(), callback, max_epochs=1)


@pytest.mark.parametrize(
    ("rewind", "message"),
    [
        (
            Rewind(),
            "to='init' rewinds to epoch 0, but this training is resumed from epoch 2 of a training without",
        ),
        (
            Rewind("random"),
            "to='random' rewinds to epoch 0, but this training is resumed from epoch 2 of a training without",
        ),
        (Rewind(1), "to=1 rewinds to epoch 1, but this training is resumed from epoch 2 of a training without Rewind"),
        (
            Rewind(7, "step"),
            "to=7 rewinds to step 7, but this training is resumed from step 8 of a training",
        ),
    ],
)
def test_a_point_that_has_passed_in_a_training_without_it(tmp_path, rewind, message) -> None:
    save = ModelCheckpoint(tmp_path, "{epoch}")
    fit(tmp_path, Lit(), IterativePruning(Constant(3), HALF), save, max_epochs=2)
    trainer = trainer_for(tmp_path, IterativePruning(Constant(3), HALF), rewind, max_epochs=4)
    with pytest.raises(MisconfigurationException, match=message):
        trainer.fit(Lit(), ckpt_path=save.best_model_path)


def test_the_same_trainer_goes_on(tmp_path) -> None:
    lit, noted = Lit(), Noted()
    trainer = fit(tmp_path, lit, IterativePruning(Constant(3), HALF), Rewind(), noted, max_epochs=2)
    initial = noted.weights[0]
    trainer.fit_loop.max_epochs = 4
    trainer.fit(lit)
    assert same(noted.weights[-1], cut(initial, noted.plans[0]))


# ---- FinetuneLR


SCHEDULERS = {
    "step": lambda o: lr_scheduler.StepLR(o, 1, 0.9),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 6),
    "cosine to a floor": lambda o: lr_scheduler.CosineAnnealingLR(o, 6, eta_min=0.01),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=8),
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 0.8**epoch),
    "sequence": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.5, 1.0, 3), lr_scheduler.ExponentialLR(o, 0.9)], [3]
    ),
}


class Scheduled(Lit):
    def __init__(self, scheduler: str) -> None:
        super().__init__()
        self.scheduler = scheduler

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), 0.05)
        return [optimizer], [SCHEDULERS[self.scheduler](optimizer)]


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_rates_are_scaled_once_whatever_the_scheduler(tmp_path, scheduler) -> None:
    rates = []
    for callbacks in ([FinetuneLR(0.1)], []):
        noted = Noted()
        pruning = IterativePruning(Rounds(2, 1, 2), HALF)
        fit(tmp_path, Scheduled(scheduler), pruning, *callbacks, noted, max_epochs=6)
        rates.append(noted.every_rate[::STEPS])
    scaled, plain = rates
    assert scaled[:2] == pytest.approx(plain[:2])
    assert scaled[2:] == pytest.approx([0.1 * rate for rate in plain[2:]])


@pytest.mark.parametrize("scale", [0, -1, float("inf"), True, "0.1"])
def test_scales_out_of_range(scale) -> None:
    with pytest.raises(MisconfigurationException, match="must be a finite number above 0"):
        FinetuneLR(scale)
