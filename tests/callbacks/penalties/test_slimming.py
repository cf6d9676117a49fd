"""SlimmingPenalty compared with hand-written training loops, in which the penalty is part of the loss."""

import copy
import math
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_prune import IterativePruning, SlimmingPenalty
from lightning_prune.budgets import Ratio
from lightning_prune.penalties import slimming_gammas
from lightning_prune.schedules import Constant
from lightning_prune.tasks import DigitsData, ImageClassifier

BATCHES = 4
LR = 0.1


class Regression(pl.LightningModule):
    def __init__(self, lr: float = LR) -> None:
        super().__init__()
        self.lr = lr
        self.net = nn.Sequential(
            nn.Linear(3, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 1)
        )
        self.losses: list[float] = []

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = nn.functional.mse_loss(self(batch[0]), batch[1])
        self.log("train_loss", loss)
        self.losses.append(float(loss.detach()))
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


def batches(dtype: torch.dtype = torch.float32) -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(8 * BATCHES, 3, generator=generator, dtype=dtype)
    return TensorDataset(x, x.sum(1, keepdim=True).sin())


def loader(dtype: torch.dtype = torch.float32) -> DataLoader:
    return DataLoader(batches(dtype), batch_size=8)


def module(cls: type = Regression, **arguments: Any) -> Any:
    torch.manual_seed(0)
    made = cls(**arguments)
    for name, gamma in slimming_gammas(made).items():
        nn.init.normal_(gamma, generator=torch.Generator().manual_seed(len(name)))
    return made


def fit(pl_module: pl.LightningModule, callbacks: list[Callback], root: Path, **arguments: Any) -> pl.Trainer:
    trainer = pl.Trainer(
        accelerator="cpu",
        callbacks=callbacks,
        default_root_dir=root,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        **{"max_epochs": 2, **arguments},
    )
    dtype = torch.float64 if arguments.get("precision") == "64-true" else torch.float32
    trainer.fit(pl_module, loader(dtype))
    return trainer


def l1(net: nn.Module) -> Tensor:
    return sum((gamma.abs().sum() for gamma in slimming_gammas(net).values()), torch.zeros(()))


def assert_same_weights(a: nn.Module, b: nn.Module, tolerance: float = 1e-12) -> None:
    for (name, left), right in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=tolerance, msg=name)


@pytest.mark.parametrize("clip", [None, 0.2], ids=["unclipped", "clipped"])
@pytest.mark.parametrize("accumulate", [1, 3])  # with 3, the last window of an epoch has one batch
def test_trains_as_if_the_penalty_were_in_the_loss(tmp_path: Path, accumulate: int, clip: float | None) -> None:
    strength, trained = 0.05, module()
    by_hand = copy.deepcopy(trained).double()
    fit(
        trained,
        [SlimmingPenalty(strength)],
        tmp_path,
        precision="64-true",
        accumulate_grad_batches=accumulate,
        gradient_clip_val=clip,
    )
    optimizer = torch.optim.SGD(by_hand.parameters(), lr=LR, momentum=0.9)
    for _ in range(2):
        for index, (x, y) in enumerate(loader(torch.float64)):
            (nn.functional.mse_loss(by_hand(x), y) / accumulate).backward()
            if (index + 1) % accumulate == 0 or index + 1 == BATCHES:
                (strength * l1(by_hand)).backward()  # once for every optimizer step
                if clip is not None:
                    nn.utils.clip_grad_norm_(by_hand.parameters(), clip)
                optimizer.step()
                optimizer.zero_grad()
    assert_same_weights(trained, by_hand)


class Gradients(Callback):
    """Keeps the gradients of all γ at every optimizer step."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Regression, optimizer: Any) -> None:
        gammas = slimming_gammas(pl_module).values()
        self.seen.append(torch.cat([g.grad for g in gammas]).clone())  # type: ignore[misc]


class Signs(Callback):
    """Keeps the signs of all γ at every optimizer step."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Regression, optimizer: Any) -> None:
        self.seen.append(torch.cat([g.detach().sign() for g in slimming_gammas(pl_module).values()]))


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_each_step_gets_strength_times_sign(tmp_path: Path, precision: Any) -> None:
    before, signs, after = Gradients(), Signs(), Gradients()
    fit(module(), [before, signs, SlimmingPenalty(0.05), after], tmp_path, precision=precision)
    assert len(after.seen) == 2 * BATCHES
    for sign, plain, penalised in zip(signs.seen, before.seen, after.seen, strict=True):
        assert penalised.dtype == torch.float32
        torch.testing.assert_close(penalised - plain, 0.05 * sign, rtol=0, atol=1e-6)


class TwoOptimizers(Regression):
    """Two alternating networks; the parameters of the inactive optimizer do not require gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.other = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))

    def training_step(self, batch: Any, batch_idx: int) -> None:
        for index, net in enumerate((self.net, self.other)):
            optimizer = self.optimizers()[index]
            self.toggle_optimizer(optimizer)
            optimizer.zero_grad()
            self.manual_backward(nn.functional.mse_loss(net(batch[0]), batch[1]))
            if index == 0 or batch_idx % 2 == 0:
                optimizer.step()
            self.untoggle_optimizer(optimizer)

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(net.parameters(), lr=LR) for net in (self.net, self.other)]


class OneBackward(TwoOptimizers):
    """Computes all gradients before the first of the two optimizers steps."""

    def training_step(self, batch: Any, batch_idx: int) -> None:
        first, second = self.optimizers()
        first.zero_grad()
        second.zero_grad()
        losses = [nn.functional.mse_loss(net(batch[0]), batch[1]) for net in (self.net, self.other)]
        self.manual_backward(losses[0] + losses[1])
        first.step()
        if batch_idx % 2 == 0:
            second.step()


@pytest.mark.parametrize("cls", [TwoOptimizers, OneBackward])
def test_manual_optimization_with_two_optimizers(tmp_path: Path, cls: type) -> None:
    strength, trained = 0.05, module(cls)
    by_hand = copy.deepcopy(trained).double()
    fit(trained, [SlimmingPenalty(strength)], tmp_path, precision="64-true")
    optimizers = [torch.optim.SGD(net.parameters(), lr=LR) for net in (by_hand.net, by_hand.other)]
    for _ in range(2):
        for batch_idx, (x, y) in enumerate(loader(torch.float64)):
            for index, net in enumerate((by_hand.net, by_hand.other)):
                optimizers[index].zero_grad()
                (nn.functional.mse_loss(net(x), y) + strength * l1(net)).backward()
                if index == 0 or batch_idx % 2 == 0:
                    optimizers[index].step()
    assert_same_weights(trained, by_hand)


class OneWithoutBatchNorm(TwoOptimizers):
    """As in a GAN: while the second network trains, no γ requires gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))


def test_a_step_without_any_scale_passes(tmp_path: Path) -> None:
    trained = module(OneWithoutBatchNorm)
    trainer = fit(trained, [SlimmingPenalty(0.05)], tmp_path)
    assert trainer.global_step == 2 * (BATCHES + BATCHES // 2)


def test_temporarily_frozen_scales_do_not_change(tmp_path: Path) -> None:
    class Freeze(Callback):
        def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Regression) -> None:
            for gamma in pl_module.gammas:  # type: ignore[union-attr, attr-defined]
                gamma.requires_grad = trainer.current_epoch > 0

        def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Regression) -> None:
            ends.append(torch.cat([g.detach().clone() for g in pl_module.gammas]))  # type: ignore[union-attr, attr-defined]

    ends: list[Tensor] = []
    trained = module()
    trained.gammas = list(slimming_gammas(trained).values())
    start = torch.cat([g.detach().clone() for g in trained.gammas])
    fit(trained, [Freeze(), SlimmingPenalty(0.05)], tmp_path)
    assert torch.equal(ends[0], start)
    assert not torch.equal(ends[1], start)


def test_statistics_and_loss_are_those_of_the_same_step_without_it(tmp_path: Path) -> None:
    results = []
    for strength in (0.0, 10.0):
        pruning = IterativePruning(Constant(start=9), Ratio(0.5), criterion="taylor")
        still = module(lr=0.0)  # the weights stay: whatever differs comes from the penalty itself
        trainer = fit(still, [SlimmingPenalty(strength), pruning], tmp_path, max_epochs=1)
        assert pruning.pruner.statistics is not None
        results.append((pruning.pruner.statistics.totals, still.losses, trainer.callback_metrics["train_loss"]))
    (plain, losses, logged), (penalised, penalised_losses, penalised_logged) = results
    assert plain.keys() == penalised.keys()
    assert plain
    assert all(torch.equal(plain[name], penalised[name]) for name in plain)
    assert losses == penalised_losses
    assert torch.equal(logged, penalised_logged)


def test_scales_shrink(tmp_path: Path) -> None:
    means = {}
    for strength in (0.0, 0.02):
        torch.manual_seed(0)
        classifier = ImageClassifier(
            model_args={"width": 4}, optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.05)
        )
        data = DigitsData(batch_size=64)
        trainer = pl.Trainer(
            accelerator="cpu",
            max_epochs=2,
            callbacks=[SlimmingPenalty(strength)],
            default_root_dir=tmp_path,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            limit_val_batches=0,
        )
        trainer.fit(classifier, data)
        means[strength] = float(torch.cat([g.abs() for g in slimming_gammas(classifier).values()]).mean())
    # 36 steps of SGD at 0.05 move every γ by up to 36 · 0.05 · 0.02 = 0.036
    assert means[0.0] - means[0.02] == pytest.approx(0.036, rel=0.15)


@pytest.mark.parametrize("strength", [-1e-4, math.nan, math.inf, True, "1e-4", None])
def test_strength_is_checked(strength: Any) -> None:
    with pytest.raises(MisconfigurationException) as caught:
        SlimmingPenalty(strength)
    assert str(caught.value) == f"SlimmingPenalty strength={strength!r} must be a finite number of at least 0"


def test_a_network_without_batch_norm_is_refused_before_training(tmp_path: Path) -> None:
    plain = Regression()
    plain.net = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 1))
    with pytest.raises(MisconfigurationException, match="Regression has no batch norm with a trainable scale"):
        fit(plain, [SlimmingPenalty()], tmp_path)
    assert plain.losses == []
