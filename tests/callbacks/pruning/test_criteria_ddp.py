"""Statistics of gradients and activations on two ranks: the same decisions as one process with the same samples."""

import sys
from typing import Any

import pytest
import torch
from helpers.ranks import launch
from helpers.training import same

pytestmark = pytest.mark.slow

SCRIPT = """
import sys
from pathlib import Path

import torch
from helpers.training import Events, Lit, fit, images
from lightning.pytorch.callbacks import Callback
from torch.utils.data import DataLoader, DistributedSampler

from lightning_prune import Channels, IterativePruning, Weights
from lightning_prune.budgets import Ratio, Sparsity
from lightning_prune.criteria import Fisher, MeanActivation, Movement, WeightTaylor
from lightning_prune.schedules import Rounds

ranks, folder = int(sys.argv[1]), Path(sys.argv[2])
torch.set_num_threads(1)


class NotYet(MeanActivation):
    def score_units(self, group, scoring):  # on rank 0 alone, and only the first time
        if scoring.module.current_epoch == 1:
            raise ValueError("not yet")
        return super().score_units(group, scoring)


class Totals(Callback):
    def __init__(self):
        self.before, self.after = [], []

    def on_before_prune(self, trainer, pl_module, pruning):
        self.before.append({name: total.clone() for name, total in pruning.pruner.statistics.totals.items()})

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 0:
            statistics = trainer.callbacks[0].pruner.statistics
            self.after.append({name: total.clone() for name, total in statistics.totals.items()})


class Half(Lit):
    def train_dataloader(self):
        # each batch of 16 is split between the ranks, in the same order
        sampler = DistributedSampler(images(64), ranks, self.global_rank, shuffle=False)
        return DataLoader(images(64), batch_size=16 // ranks, sampler=sampler)


def main():
    masked = Weights()
    methods = {
        "channels": IterativePruning(Rounds(1, 1, 2), Ratio(0.5), WeightTaylor(), Channels()),
        "movement": IterativePruning(Rounds(1, 1, 2), Sparsity(0.5), Movement(), masked),
        "fisher": IterativePruning(Rounds(1, 1, 2), Sparsity(0.5), Fisher(), masked),
        "held": IterativePruning(Rounds(1, 1, 1), Ratio(0.5), NotYet(), Channels()),
    }
    for method, pruning in methods.items():
        torch.manual_seed(0)
        lit, events, seen = Half(norm=False), Events(), Totals()
        strategy = "ddp" if ranks > 1 else "auto"
        trainer = fit(
            folder, lit, pruning, events, seen,
            max_epochs=3, strategy=strategy, devices=ranks, use_distributed_sampler=False,
        )
        result = {
            "weights": {name: p.detach().clone() for name, p in lit.named_parameters()},
            "plans": [report.plan.to_dict() for report in events.reports],
            "scores": [dict(report.scores) for report in events.reports],
            "times": events.times, "before": seen.before, "after": seen.after, "losses": lit.losses,
        }
        torch.save(result, folder / f"{method}_{trainer.global_rank}.pt")


if __name__ == "__main__":
    main()
"""

METHODS = ("channels", "movement", "fisher", "held")
EACH = pytest.mark.parametrize("method", METHODS)
Results = dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return launch(tmp_path_factory.mktemp("two"), 2, SCRIPT, METHODS)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder, namespace = tmp_path_factory.mktemp("one"), {"__name__": "one"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train.py", "1", str(folder)])
        exec(SCRIPT, namespace)
        namespace["main"]()  # type: ignore[operator]  # in this process, which has imported everything
    return {method: [torch.load(folder / f"{method}_0.pt", weights_only=True)] for method in METHODS}


@EACH
def test_both_ranks_hold_the_same_network(two: Results, method: str) -> None:
    first, second = two[method]
    for part in ("weights", "plans", "times", "scores"):
        assert same(first[part], second[part]), part
    assert all(a != b for a, b in zip(first["losses"], second["losses"], strict=True))  # they see different data


@EACH
def test_two_ranks_decide_as_one_process_with_the_same_samples(one: Results, two: Results, method: str) -> None:
    alone, (first, _) = one[method][0], two[method]
    assert alone["times"] == first["times"] == ([(2, 8)] if method == "held" else [(1, 4), (2, 8)])
    assert same(alone["plans"], first["plans"])
    for mine, theirs in zip(alone["scores"], first["scores"], strict=True):
        for name, values in mine.items():
            torch.testing.assert_close(values, theirs[name], rtol=1e-4, atol=1e-6)
    for name, value in alone["weights"].items():
        assert torch.allclose(value, first["weights"][name], atol=1e-4), name


@pytest.mark.parametrize("method", ["channels", "movement", "fisher"])
def test_gradients_are_those_of_all_ranks(one: Results, two: Results, method: str) -> None:
    """Their statistics are the same on both ranks, and as large as those of one process."""
    first, second = two[method]
    assert len(first["before"]) == 2
    assert same(first["before"], second["before"])
    for mine, theirs in zip(one[method][0]["before"], first["before"], strict=True):
        for name, total in mine.items():
            assert float((total - theirs[name]).norm()) <= 1e-4 * float(total.norm()), name


def test_a_postponed_event_counts_nothing_twice(one: Results, two: Results) -> None:
    """Each rank keeps its own statistics; sums reveal this, means would not."""
    alone, ranks = one["held"][0], two["held"]
    for rank in ranks:
        assert len(rank["before"]) == 2
        assert same(rank["after"][1], rank["before"][0])  # the event of epoch 1 has found out all, and left it
        for number, before in enumerate(rank["before"], start=1):
            assert before["examples of net.0"].item() == number * 32 * 12
    for number in range(2):
        for name, total in alone["before"][number].items():
            torch.testing.assert_close(sum(rank["before"][number][name] for rank in ranks), total, rtol=1e-4, atol=1e-4)
