"""Layers that a callback unfreezes before the first event."""

import pytest
from helpers.training import Lit, fit, widths, zero_share
from lightning.pytorch.callbacks import BaseFinetuning, Callback

from lightning_prune import Channels, IterativePruning, Weights
from lightning_prune.budgets import Ratio, Sparsity
from lightning_prune.callbacks.trainer.lightning_packages import MisconfigurationException
from lightning_prune.criteria import Criterion, Magnitude, Movement, Taylor, WeightTaylor
from lightning_prune.schedules import Rounds


class Unfreezing(BaseFinetuning):
    """Freezes all but the last layer, and unfreezes them at the beginning of an epoch."""

    def __init__(self, epoch: int = 1) -> None:
        super().__init__()
        self.epoch = epoch

    def freeze_before_training(self, pl_module) -> None:
        self.freeze(list(pl_module.net)[:-1], train_bn=False)

    def finetune_function(self, pl_module, epoch, optimizer) -> None:
        if epoch == self.epoch:
            self.unfreeze_and_add_param_group(list(pl_module.net)[:-1], optimizer, lr=0.01)


@pytest.mark.parametrize("criterion", [Taylor(), WeightTaylor(), Magnitude()], ids=str)
@pytest.mark.parametrize("first", [True, False])
def test_channels(tmp_path, criterion: Criterion, first: bool) -> None:
    pruning = IterativePruning(Rounds(3, 1, 2), Ratio(0.5), criterion, Channels())
    lit = Lit()
    callbacks = [pruning, Unfreezing()] if first else [Unfreezing(), pruning]
    fit(tmp_path, lit, *callbacks, max_epochs=6)
    assert pruning.pruner.event == 2
    assert sum(widths(lit.net)[:2]) < 16


def test_all_weights_of_a_unit_count(tmp_path) -> None:
    class Observed(Callback):
        names: frozenset[str] = frozenset()

        def on_before_prune(self, trainer, pl_module, pruning) -> None:
            self.names = self.names or frozenset(pruning.pruner.statistics.totals)

    observed = Observed()
    pruning = IterativePruning(Rounds(3, 1, 2), Ratio(0.5), WeightTaylor(), Channels())
    fit(tmp_path, Lit(), pruning, Unfreezing(), observed, max_epochs=5)
    assert observed.names >= {"net.0.weight", "net.3.weight", "net.8.weight"}


@pytest.mark.parametrize("criterion", [WeightTaylor(), Movement(), Magnitude()], ids=str)
@pytest.mark.parametrize("epoch", [0, 1])
@pytest.mark.parametrize("first", [True, False])
def test_weights(tmp_path, criterion: Criterion, first: bool, epoch: int) -> None:
    pruning = IterativePruning(Rounds(3, 1, 2), Sparsity(0.5), criterion, Weights())
    lit = Lit()
    callbacks = [pruning, Unfreezing(epoch)] if first else [Unfreezing(epoch), pruning]
    fit(tmp_path, lit, *callbacks, max_epochs=6)
    assert pruning.sparsity == pytest.approx(0.5, abs=0.01)
    assert zero_share(lit) > 0.4


def test_an_event_waits_until_then(tmp_path) -> None:
    pruning = IterativePruning(Rounds(1, 1, 2), Ratio(0.5), Taylor())
    with pytest.warns(UserWarning, match="The pruning event that is due has to wait: Taylor.* needs gradients of"):
        fit(tmp_path, lit := Lit(), pruning, Unfreezing(epoch=3), max_epochs=7)
    assert widths(lit.net) == [4, 4, 3]


def test_without_such_a_callback_it_is_an_error_at_once(tmp_path) -> None:
    lit = Lit()
    for number in (0, 1):
        lit.net[number].requires_grad_(False)
    message = r"Scope\(exclude=\['net.1'\]\), or unfreeze it with a BaseFinetuning callback\."
    with pytest.raises(MisconfigurationException, match=message):
        fit(tmp_path, lit, IterativePruning(Rounds(3, 1, 2), Ratio(0.5), Taylor()), max_epochs=5)
    assert len(lit.losses) == 1
