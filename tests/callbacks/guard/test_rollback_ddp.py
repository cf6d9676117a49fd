"""Rollbacks with two ranks on the CPU: all ranks restore the same network, and gradients are averaged again.

The script runs as a user's would; see the tests of two ranks without a guard. Only rank 0 sees the metric drop.
"""

from typing import Any

import pytest
import torch
from helpers.ranks import launch
from helpers.training import same

pytestmark = pytest.mark.slow

SCRIPT = """
import copy, sys
from pathlib import Path

import torch
from helpers.training import Events, Lit, fit, images
from lightning.pytorch.callbacks import Callback
from torch.utils.data import DataLoader, DistributedSampler

from lightning_prune import AccuracyGuard, IterativePruning, Weights
from lightning_prune.budgets import Ratio, Sparsity
from lightning_prune.schedules import Rounds

ranks, folder = int(sys.argv[1]), Path(sys.argv[2])
torch.set_num_threads(1)
DROPS = {"retry": [3], "stop": [3], "end": [5]}


class Watch(Callback):
    def __init__(self):
        self.gradients, self.before = [], []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.gradients.append([p.grad.clone() for p in pl_module.parameters()])

    def on_before_prune(self, trainer, pl_module, pruning):
        weights = {name: p.detach().clone() for name, p in pl_module.named_parameters()}
        self.before.append((weights, copy.deepcopy(trainer.optimizers[0].state_dict()["state"])))


class Half(Lit):
    def __init__(self, drops):
        super().__init__(norm=False)
        self.drops = drops

    def train_dataloader(self):
        sampler = DistributedSampler(images(64), ranks, self.global_rank, shuffle=False)
        return DataLoader(images(64), batch_size=16 // ranks, sampler=sampler)

    def on_validation_epoch_end(self):
        dropped = self.current_epoch in self.drops and self.global_rank == 0
        self.log("score", 0.1 if dropped else 0.9)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.05, momentum=0.9)


def main():
    for case, drops in DROPS.items():
        torch.manual_seed(0)
        lit, events, watch = Half(drops), Events(), Watch()
        guard = AccuracyGuard("score", 0.1, on_drop="rollback", retry=1 if case == "retry" else 0)
        pruners = [
            IterativePruning(Rounds(2, 2, 2), Ratio(0.5), "taylor"),
            IterativePruning(Rounds(2, 2, 2), Sparsity(0.6), granularity=Weights()),
        ]
        options = {"strategy": "ddp" if ranks > 1 else "auto", "devices": ranks, "use_distributed_sampler": False}
        trainer = fit(folder, lit, *pruners, watch, guard, events, max_epochs=6, **options)
        torch.save(
            {
                "weights": {name: p.detach().clone() for name, p in lit.named_parameters()},
                "optimizer": trainer.optimizers[0].state_dict()["state"],
                "before": watch.before,
                "gradients": watch.gradients,
                "losses": lit.losses,
                "times": events.times,
                "verdicts": [verdict.rolled_back for verdict in guard.verdicts],
                "left": [path.name for path in folder.glob("accepted*")],
            },
            folder / f"{case}_{trainer.global_rank}.pt",
        )


if __name__ == "__main__":
    main()
"""


CASE_NAMES = ("retry", "stop", "end")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    return launch(tmp_path_factory.mktemp("two"), 2, SCRIPT, CASE_NAMES)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    return launch(tmp_path_factory.mktemp("one"), 1, SCRIPT, CASE_NAMES)


CASES = pytest.mark.parametrize("case", CASE_NAMES)


@CASES
def test_both_ranks_hold_the_same_network(two, case) -> None:
    first, second = two[case]
    for part in ("weights", "optimizer", "verdicts", "times"):
        assert same(first[part], second[part]), part
    assert first["verdicts"] == {"retry": [0, 1, 0], "stop": [0, 1], "end": [0, 0, 1]}[case]
    assert first["left"] == []  # rank 0 removes the file


@pytest.mark.parametrize("case", ["stop", "end"])
def test_the_network_on_every_rank_is_the_accepted_one(two, case) -> None:
    for rank in two[case]:
        weights, state = rank["before"][0 if case == "stop" else 2]  # two pruners: two calls for each round
        assert rank["weights"]["net.3.weight"].shape[:2] == ((8, 8) if case == "stop" else (6, 6))
        assert same(rank["weights"], weights)
        assert same(rank["optimizer"], state)


def test_a_smaller_step_is_taken(two) -> None:
    for rank in two["retry"]:
        assert rank["weights"]["net.3.weight"].shape[:2] == (7, 7)


@CASES
def test_gradients_are_averaged_in_every_step(two, case) -> None:
    """Also after the wrapper was rebuilt for the restored network."""
    first, second = two[case]
    assert len(first["gradients"]) == (16 if case == "stop" else 24)
    assert all(a != b for a, b in zip(first["losses"], second["losses"], strict=True))  # different data
    assert same(first["gradients"], second["gradients"])
    assert all(gradient.any() for gradients in first["gradients"] for gradient in gradients)


@CASES
def test_two_ranks_decide_as_one_process_with_the_same_samples(one, two, case) -> None:
    alone, (first, _) = one[case][0], two[case]
    assert alone["times"] == first["times"]
    for name, value in alone["weights"].items():
        assert torch.allclose(value, first["weights"][name], atol=1e-4), name
