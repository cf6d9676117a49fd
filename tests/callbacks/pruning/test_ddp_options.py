"""Two ranks with the options of DDP: pruned, synchronized in each step, and equal to runs without the option."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.ranks import launch
from helpers.training import Lit, same

from lightning_prune import Plan
from lightning_prune.callbacks.trainer.ranks import fingerprints, plan_checksums

SCRIPT = """
import sys
from pathlib import Path

import torch
from helpers.training import Events, Lit, fit, images
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler

from lightning_prune import IterativePruning
from lightning_prune.budgets import Ratio
from lightning_prune.schedules import Rounds

ranks, folder = int(sys.argv[1]), Path(sys.argv[2])
torch.set_num_threads(1)


class Half(Lit):
    def __init__(self):
        super().__init__(norm=False)

    def train_dataloader(self):
        sampler = DistributedSampler(images(64), ranks, self.global_rank, shuffle=False)
        return DataLoader(images(64), batch_size=16 // ranks, sampler=sampler)


class NoForward(Half):
    forward, validation_step = LightningModule.forward, LightningModule.validation_step

    def training_step(self, batch, batch_idx):
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.losses.append(float(loss.detach()))
        return loss


class Turns(Half):
    '''A branch that only the second rank uses in training; the analysis sees it in `forward`.'''

    def __init__(self):
        super().__init__()
        self.branch = nn.Sequential(nn.Conv2d(2, 6, 1), nn.ReLU(), nn.Conv2d(6, 2, 1))

    def forward(self, inputs):
        if not self.training or self.global_rank == 1 or not torch.is_grad_enabled():
            inputs = inputs + self.branch(inputs)
        return self.net(inputs)


class Spoilt(Callback):
    '''One rank changes a weight on its own.'''

    def on_before_prune(self, trainer, pl_module, pruning):
        if trainer.global_rank == 1:
            with torch.no_grad():
                pl_module.net[3].weight[0, 0, 0, 0] += 1e-6


class Gradients(Callback):
    def __init__(self):
        self.found = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.found.append([p.grad.clone() for p in pl_module.parameters() if p.grad is not None])


def main():
    options = {
        "plain": {},
        "find_unused_parameters": {"find_unused_parameters": True},
        "static_graph": {"static_graph": True},
        "gradient_as_bucket_view": {"gradient_as_bucket_view": True},
        "accumulation": {},
        "turns": {"find_unused_parameters": True},
        "no forward": {},
        "spoilt": {},
    }
    for name, option in options.items():
        torch.manual_seed(0)
        kind = {"turns": Turns, "no forward": NoForward}.get(name, Half)
        lit, events, gradients = kind(), Events(), Gradients()
        callbacks = [IterativePruning(Rounds(1, 1, 2), Ratio(0.5), "taylor"), events, gradients]
        result = {"error": ""}
        try:
            trainer = fit(
                folder, lit, *callbacks, *([Spoilt()] if name == "spoilt" else []), max_epochs=4, devices=ranks,
                strategy=DDPStrategy(**option), use_distributed_sampler=False,
                accumulate_grad_batches=2 if name == "accumulation" else 1,
            )
            result["optimizer"] = trainer.optimizers[0].state_dict()["state"]
        except RuntimeError as error:
            result["error"] = str(error)
        result["weights"] = {name: p.detach().clone() for name, p in lit.named_parameters()}
        result["plans"] = [report.plan.to_dict() for report in events.reports]
        result["gradients"], result["losses"] = gradients.found, lit.losses
        torch.save(result, folder / f"{name}_{lit.global_rank}.pt")


if __name__ == "__main__":
    main()
"""
DDP_OPTIONS = ("find_unused_parameters", "static_graph", "gradient_as_bucket_view")
OPTIONS = ("plain", *DDP_OPTIONS, "accumulation", "turns", "no forward")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    folder: Path = tmp_path_factory.mktemp("options")
    return launch(folder, 2, SCRIPT, (*OPTIONS, "spoilt"))


@pytest.mark.slow
@pytest.mark.parametrize("option", OPTIONS)
def test_both_ranks_hold_the_same_pruned_network(two, option) -> None:
    first, second = two[option]
    assert first["error"] == second["error"] == ""
    for part in ("weights", "plans", "optimizer", "gradients"):
        assert same(first[part], second[part]), part
    assert all(a != b for a, b in zip(first["losses"], second["losses"], strict=True))  # from different data
    assert len(first["gradients"]) == (8 if option == "accumulation" else 16)
    assert len(first["plans"]) == 2
    assert first["weights"]["net.3.weight"].shape == (4, 4, 3, 3)


@pytest.mark.slow
@pytest.mark.parametrize("option", [*DDP_OPTIONS, "no forward"])
def test_an_option_changes_nothing(two, option) -> None:
    for mine, theirs in zip(two[option], two["plain"], strict=True):
        assert same(mine["plans"], theirs["plans"])
        for name, value in mine["weights"].items():
            assert torch.allclose(value, theirs["weights"][name], atol=1e-6), name


@pytest.mark.slow
def test_statistics_of_a_layer_that_one_rank_uses(two) -> None:
    """The other rank has no such statistics, and must not deadlock."""
    for rank in two["turns"]:
        assert rank["weights"]["branch.0.weight"].shape == (3, 2, 1, 1)


@pytest.mark.slow
def test_different_ranks_raise_an_error_on_every_rank(two) -> None:
    for rank in two["spoilt"]:
        assert rank["error"].startswith("'net.3.weight' is not the same on rank 1 as on rank 0 after a pruning event")


def test_a_fingerprint_depends_on_every_bit() -> None:
    lit = Lit()
    before = fingerprints(lit)
    assert fingerprints(lit) == before
    with torch.no_grad():
        lit.net[3].bias.view(torch.int32)[2] ^= 1
    after = fingerprints(lit)
    assert {name for name in before if before[name] != after[name]} == {"net.3.bias"}
    assert "net.0.weight" not in fingerprints(lit, {"net.0.weight"})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.complex64, torch.float64])
def test_a_fingerprint_of_every_dtype(dtype) -> None:
    module = torch.nn.Linear(3, 3, dtype=dtype)
    before = fingerprints(module)
    with torch.no_grad():
        module.weight.copy_(module.weight.flip(0))
    assert fingerprints(module)["weight"] != before["weight"]
    assert fingerprints(module)["bias"] == before["bias"]


def test_checksums_of_a_plan_distinguish_plans_and_attributes() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Linear(6, 2))
    plan = Plan(
        keep={"0.weight": {0: torch.tensor([0, 2])}},
        masks={"1.weight": torch.ones(2, 6, dtype=torch.bool)},
        attributes={"0": {"out_features": 2}},
    )
    before = plan_checksums(plan, net)
    assert list(before) == ["removed modules", "plan of 0.weight, dimension 0", "mask of 1.weight", "0.out_features"]
    others = {
        "removed modules": replace(plan, removed_modules=("1",)),
        "plan of 0.weight, dimension 0": replace(plan, keep={"0.weight": {0: torch.tensor([0, 3])}}),
        "mask of 1.weight": replace(plan, masks={"1.weight": torch.zeros(2, 6, dtype=torch.bool)}),
    }
    for name, other in others.items():
        after = plan_checksums(other, net)
        assert [key for key in before if after[key] != before[key]] == [name]
    net[0].out_features = 3
    after = plan_checksums(plan, net)
    assert [key for key in before if after[key] != before[key]] == ["0.out_features"]
