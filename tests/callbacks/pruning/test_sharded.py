"""FSDP2 on two gloo ranks: masks are those of the whole network, and are enforced on each shard."""

from typing import Any

import pytest
import torch
from helpers.ranks import launch
from helpers.training import Lit, fit, same
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_prune import IterativePruning, SparsityLogger
from lightning_prune.budgets import Ratio
from lightning_prune.callbacks import PruningSummary
from lightning_prune.network.sharded import full_tensor, is_sharded, local_tensor, shard_like
from lightning_prune.schedules import Constant

SCRIPT = """
import sys
from pathlib import Path

import torch
from helpers.training import Events, Lit, images, trainer_for
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, DistributedSampler

from lightning_prune import IterativePruning, Weights
from lightning_prune.budgets import Sparsity
from lightning_prune.criteria import Magnitude, Random
from lightning_prune.schedules import Cubic, Linear
from lightning_prune.network.sharded import reshard, full_tensor

ranks, folder = int(sys.argv[1]), Path(sys.argv[2])
torch.set_num_threads(1)


class Sharded(Lit):
    def __init__(self):
        super().__init__(width=9, norm=False)

    def configure_model(self):
        if ranks > 1:
            fully_shard(self.net[3], mesh=self.device_mesh["data_parallel"])
            fully_shard(self.net, mesh=self.device_mesh["data_parallel"])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.05, momentum=0.9)

    def train_dataloader(self):
        sampler = DistributedSampler(images(64), ranks, self.global_rank, shuffle=False)
        return DataLoader(images(64), batch_size=16 // ranks, sampler=sampler)


class Whole(Callback):
    '''The whole weights and momenta after every epoch.'''

    def __init__(self):
        self.weights, self.momenta = [], []

    def on_train_epoch_end(self, trainer, pl_module):
        reshard(pl_module)
        parameters = dict(pl_module.named_parameters())
        self.weights.append({name: full_tensor(p.detach()).clone() for name, p in parameters.items()})
        state = trainer.optimizers[0].state
        self.momenta.append({name: full_tensor(state[p]["momentum_buffer"]).clone() for name, p in parameters.items()})


def main():
    runs = {
        "global": (Cubic(0, 2), Magnitude()),
        "steps": (Linear(2, 10, every=4, unit="step"), Magnitude()),
        "random": (Cubic(0, 2), Random()),
    }
    for name, (schedule, criterion) in runs.items():
        torch.manual_seed(0)
        lit, seen, events = Sharded(), Whole(), Events()
        strategy = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1) if ranks > 1 else "auto"
        budget = Sparsity(0.5)
        pruning = IterativePruning(schedule, budget, criterion, granularity=Weights())
        trainer = trainer_for(
            folder, pruning, events, seen, max_epochs=4, devices=ranks, strategy=strategy, use_distributed_sampler=False
        )
        trainer.fit(lit)
        result = {"weights": seen.weights, "momenta": seen.momenta, "masks": pruning.pruner.masks}
        torch.save({**result, "losses": lit.losses, "times": events.times}, folder / f"{name}_{trainer.global_rank}.pt")


if __name__ == "__main__":
    main()
"""
RUNS = ("global", "steps", "random")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    return launch(tmp_path_factory.mktemp("sharded"), 2, SCRIPT, RUNS)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    return launch(tmp_path_factory.mktemp("whole"), 1, SCRIPT, RUNS)


@pytest.mark.slow
@pytest.mark.parametrize("run", RUNS)
def test_masks_are_those_of_one_process_with_the_same_samples(one, two, run) -> None:
    alone, (first, second) = one[run][0], two[run]
    assert first["losses"] != second["losses"]  # the ranks see different data
    assert alone["times"] == first["times"] == second["times"]
    for rank in (first, second):
        assert same(rank["masks"], alone["masks"])
        for mine, theirs in zip(rank["weights"], alone["weights"], strict=True):
            assert all(torch.allclose(mine[name], value, atol=1e-5) for name, value in theirs.items())


@pytest.mark.slow
@pytest.mark.parametrize("run", RUNS)
def test_masked_weights_and_momenta_stay_zero(two, run) -> None:
    for rank in two[run]:
        masks = rank["masks"]
        hidden = sum(int((~mask).sum()) for mask in masks.values())
        assert hidden == sum(mask.numel() for mask in masks.values()) // 2
        for values in (rank["weights"][-1], rank["momenta"][-1]):
            assert not any(values[name][~mask].any() for name, mask in masks.items())
            assert all(values[name][mask].all() for name, mask in masks.items())


@pytest.mark.parametrize("callback", [SparsityLogger, PruningSummary])
def test_callbacks_that_need_whole_parameters_are_refused(tmp_path, callback, monkeypatch) -> None:
    from lightning.pytorch.strategies import SingleDeviceStrategy

    class ModelParallelStrategy(SingleDeviceStrategy):
        """A stand-in; only its name is used."""

    with pytest.raises(MisconfigurationException, match=f"{callback.__name__} needs whole parameters"):
        fit(tmp_path, Lit(), callback(), IterativePruning(Constant(1), Ratio(0.5)), strategy=ModelParallelStrategy())


def test_plain_tensors_are_not_sharded() -> None:
    lit = Lit()
    weight = lit.net[0].weight
    assert full_tensor(weight) is local_tensor(weight) is weight
    assert not is_sharded(lit)
    assert torch.equal(shard_like(torch.ones(3), weight), torch.ones(3))
