"""Two ranks on the CPU: one decision, equal networks, and a wrapper that continues to synchronize.

The script runs as a user's would: Lightning starts it once more for the second rank. Every rank writes down what it
has; the tests compare.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.ranks import launch
from helpers.training import same

pytestmark = pytest.mark.slow


METHOD_NAMES = ("channels", "steps", "masks")

SCRIPT = """
import sys
from pathlib import Path

import torch
from helpers.training import Events, Lit, fit, images, trainer_for
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch.utils.data import DataLoader, DistributedSampler

from lightning_prune import IterativePruning, Weights
from lightning_prune.budgets import Ratio, Sparsity
from lightning_prune.criteria import Random
from lightning_prune.schedules import Cubic, Rounds

ranks, folder = int(sys.argv[1]), Path(sys.argv[2])
torch.set_num_threads(1)


class Synchronised(Callback):
    def __init__(self):
        self.gradients, self.widths, self.totals = [], [], None

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.gradients.append([p.grad.clone() for p in pl_module.parameters()])

    def on_train_epoch_end(self, trainer, pl_module):
        statistics = trainer.callbacks[0].pruner.statistics
        if self.totals is None and statistics is not None:
            self.totals = {name: total.clone() for name, total in statistics.totals.items()}

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.widths.append([p.shape[0] for p in pl_module.parameters() if p.dim() > 1])


class Half(Lit):
    def train_dataloader(self):
        sampler = DistributedSampler(images(64), ranks, self.global_rank, shuffle=False)  # Lightning's own shuffles
        return DataLoader(images(64), batch_size=16 // ranks, sampler=sampler)


def main():
    methods = {
        "channels": lambda: [IterativePruning(Rounds(1, 1, 2), Ratio(0.5), "taylor")],
        "steps": lambda: [IterativePruning(Rounds(5, 3, 2, unit="step"), Ratio(0.5), "taylor")],
        "masks": lambda: [IterativePruning(Cubic(0, 2), Sparsity(0.5), Random(), granularity=Weights())],
    }
    for method, make in methods.items():
        torch.manual_seed(0)
        lit, events, seen = Half(norm=False), Events(), Synchronised()
        save = ModelCheckpoint(folder / method, "{epoch}", save_top_k=-1)
        strategy = "ddp" if ranks > 1 else "auto"
        callbacks = [*make(), events, seen, save]
        options = {"strategy": strategy, "devices": ranks, "use_distributed_sampler": False}
        trainer = fit(folder, lit, *callbacks, max_epochs=4, **options)
        result = {
            "weights": {name: p.detach().clone() for name, p in lit.named_parameters()},
            "plans": [report.plan.to_dict() for report in events.reports],
            "times": events.times,
            "gradients": seen.gradients,
            "widths": seen.widths,
            "losses": lit.losses,
            "optimizer": trainer.optimizers[0].state_dict()["state"],
            "held": [id(p) for g in trainer.optimizers[0].param_groups for p in g["params"]]
            == [id(p) for p in lit.parameters()],
        }
        if method == "channels":
            path = folder / method / "epoch=0.ckpt"
            state = torch.load(path, weights_only=True)["callbacks"][callbacks[0].state_key]
            result["saved"], result["own"] = state["pruner"]["statistics"]["totals"], seen.totals
            resumed = Half(norm=False)
            trainer = trainer_for(folder, *make(), max_epochs=4, **options)
            trainer.fit(resumed, ckpt_path=path)
            result["resumed"] = {name: p.detach().clone() for name, p in resumed.named_parameters()}
        torch.save(result, folder / f"{method}_{trainer.global_rank}.pt")


if __name__ == "__main__":
    main()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("two")


@pytest.fixture(scope="module")
def two(folder: Path) -> dict[str, list[dict[str, Any]]]:
    return launch(folder, 2, SCRIPT, METHOD_NAMES)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    return launch(tmp_path_factory.mktemp("one"), 1, SCRIPT, METHOD_NAMES)


METHODS = pytest.mark.parametrize("method", METHOD_NAMES)


@METHODS
def test_both_ranks_hold_the_same_network(two, method) -> None:
    first, second = two[method]
    for part in ("weights", "plans", "times", "widths", "optimizer"):
        assert same(first[part], second[part]), part
    assert first["held"]
    assert second["held"]


@pytest.mark.parametrize("method", ["channels", "steps"])
def test_units_are_removed_on_both_ranks(two, method) -> None:
    for rank in two[method]:
        assert rank["times"] == ([(1, 4), (2, 8)] if method == "channels" else [(1, 5), (2, 8)])
        assert rank["widths"][-1] == [4, 4, 3]
        assert rank["weights"]["net.3.weight"].shape == (4, 4, 3, 3)


@METHODS
def test_the_ranks_see_different_data(two, method) -> None:
    """Otherwise the comparisons below would be trivial."""
    first, second = two[method]
    assert all(a != b for a, b in zip(first["losses"], second["losses"], strict=True))


@METHODS
def test_gradients_are_averaged_in_every_step(two, method) -> None:
    """Before, between and after the events."""
    first, second = two[method]
    assert len(first["gradients"]) == 16
    for step, (a, b) in enumerate(zip(first["gradients"], second["gradients"], strict=True)):
        assert same(a, b), f"gradients differ between the ranks in step {step}"
        assert all(gradient.any() for gradient in a), step


def test_statistics_of_all_ranks_survive_a_resume(two) -> None:
    """Only rank 0 writes the file, and both ranks load it: their totals must keep the same sum."""
    first, second = two["channels"]
    assert len(first["saved"]) == 2
    for name, total in first["saved"].items():
        assert not torch.equal(first["own"][name], second["own"][name])
        assert torch.equal(total, (first["own"][name] + second["own"][name]) / 2)
    for rank in (first, second):
        assert same(rank["resumed"], rank["weights"])


@METHODS
def test_two_ranks_decide_as_one_process_with_the_same_samples(one, two, method) -> None:
    alone, (first, _) = one[method][0], two[method]
    assert alone["times"] == first["times"]
    for mine, theirs in zip(alone["plans"], first["plans"], strict=True):
        assert same(mine, theirs)
    for name, value in alone["weights"].items():
        assert torch.allclose(value, first["weights"][name], atol=1e-4), name


def test_masks_are_identical_and_hold(two) -> None:
    first, second = two["masks"]
    assert same(first["plans"][-1]["masks"], second["plans"][-1]["masks"])
    matrices = [value for value in first["weights"].values() if value.dim() > 1]
    assert sum(int((value == 0).sum()) for value in matrices) == sum(v.numel() for v in matrices) // 2


def test_events_are_logged_once(two, folder) -> None:
    log = (folder / "log.txt").read_text()
    assert log.count("Pruning event 2 at epoch 2") == 4  # three methods and a resumed run, not two ranks
