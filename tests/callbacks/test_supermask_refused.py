"""Errors of Supermask, and the remedies that they name."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.supermasked import WeightAveraging, model
from helpers.training import Lit, fit
from lightning.pytorch.callbacks import StochasticWeightAveraging
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_prune import IterativePruning, Scope, Weights
from lightning_prune.budgets import Ratio, Sparsity
from lightning_prune.callbacks import Supermask
from lightning_prune.schedules import Constant


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sparsity": 0}, r"sparsity=0 must be a number in \(0, 1\)"),
        ({"sparsity": 1.0}, r"sparsity=1.0 must be"),
        ({"sparsity": "half"}, r"sparsity='half' must be"),
        ({"momentum": 1}, r"momentum=1 must be a number in \[0, 1\)"),
        ({"momentum": True}, r"momentum=True must be"),
        ({"lr": 0}, r"lr=0 must be a finite number above 0, or None"),
        ({"lr": float("nan")}, r"lr=nan must be"),
        ({"scores": "ones"}, r"scores='ones' is not known; use 'random' or 'magnitude'"),
    ],
)
def test_arguments_out_of_range(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(MisconfigurationException, match=f"^Supermask {message}"):
        Supermask(**arguments)


def test_a_scope_of_another_kind() -> None:
    with pytest.raises(MisconfigurationException, match="Supermask scope='net' is not a Scope; it takes an object"):
        Supermask(scope="net")  # type: ignore[arg-type]


def test_other_callbacks_that_change_the_same_weights(tmp_path: Path) -> None:
    channels = IterativePruning(Constant(1), Ratio(0.5))
    weights = IterativePruning(Constant(1), Sparsity(0.5), granularity=Weights())
    with pytest.raises(MisconfigurationException, match="IterativePruning cannot remove any in the same training"):
        fit(tmp_path, model(), Supermask(), channels)
    with pytest.raises(MisconfigurationException, match=r"IterativePruning both mask 'net.0.weight' \(and 2 more\)"):
        fit(tmp_path, model(), Supermask(), weights)
    first, second = Supermask(scope=Scope(include=["net.0"])), Supermask(0.9)
    with pytest.raises(MisconfigurationException, match=r"another Supermask both mask 'net.0.weight' \(and 0 more\)"):
        fit(tmp_path, model(), first, second)


@pytest.mark.skipif(WeightAveraging is None, reason="this version of Lightning has no WeightAveraging")
def test_averaging_after_the_weights_are_masked(tmp_path: Path) -> None:
    lit = model()
    with pytest.raises(MisconfigurationException, match="Supermask must come after WeightAveraging in callbacks"):
        fit(tmp_path, lit, Supermask(), WeightAveraging(), max_epochs=1)
    assert not lit.losses
    swa = StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=1)  # averages before the steps of an epoch
    fit(tmp_path, lit, Supermask(0.5), swa, max_epochs=3)
    assert int((lit.net[3].weight == 0).sum()) == 288


def test_weights_that_are_not_trained(tmp_path: Path) -> None:
    lit = model()
    lit.net[3].requires_grad_(False)
    with pytest.raises(MisconfigurationException, match=r"'net.3.weight' when its optimizer steps, but it is frozen"):
        fit(tmp_path, lit, Supermask(scope=Scope(include=["net.3", "net.8"])), max_epochs=1)

    class Half(Lit):
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.net[0].parameters(), 0.1)

    with pytest.raises(MisconfigurationException, match=r"'net.3.weight' .* but it is in no optimizer; exclude it"):
        fit(tmp_path, Half(), Supermask(), max_epochs=1)

    class Batchwise(Lit):
        def configure_optimizers(self) -> Any:
            return torch.optim.LBFGS(self.parameters())

    with pytest.raises(MisconfigurationException, match="Supermask cannot step with LBFGS"):
        fit(tmp_path, Batchwise(), Supermask(), max_epochs=1)


def test_another_network(tmp_path: Path) -> None:
    supermask = Supermask()
    fit(tmp_path, model(), supermask, max_epochs=1)
    with pytest.raises(MisconfigurationException, match="this Supermask holds the weights of another network; give"):
        fit(tmp_path, model(), supermask, max_epochs=1)


def test_shards_are_refused(tmp_path: Path) -> None:
    from lightning.pytorch.strategies import SingleDeviceStrategy

    class ModelParallelStrategy(SingleDeviceStrategy):
        """A stand-in; only its name is used."""

    with pytest.raises(MisconfigurationException, match="Supermask needs whole parameters"):
        fit(tmp_path, model(), Supermask(), strategy=ModelParallelStrategy())
