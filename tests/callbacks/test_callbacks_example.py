"""Where `IterativePruning` takes the example input from."""

from typing import Any

import pytest
import torch
from helpers import Events, Lit, fit, images, widths
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_prune import IterativePruning, Weights
from lightning_prune.budgets import Ratio, Sparsity
from lightning_prune.schedules import Constant

HALF = Ratio(0.5)


@pytest.mark.parametrize(
    "example",
    [torch.zeros(4, 2, 3, 4), (torch.zeros(1, 2, 3, 4),), {"images": torch.zeros(2, 2, 3, 4)}],
    ids=["tensor", "tuple", "dict"],
)
def test_the_example_is_example_input_array(tmp_path, example) -> None:
    lit, events = Lit(), Events()
    lit.example_input_array = example
    pruning = IterativePruning(Constant(0), HALF)
    fit(tmp_path, lit, pruning, events, max_epochs=1)
    assert widths(lit.net) == [4, 4, 3]
    assert pruning.example is not None
    assert pruning.example.batch == 2


class Batches(Lit):
    """Trains on batches of every form; ``pick`` says where images and labels are."""

    def __init__(self, wrap: Any, pick: Any) -> None:
        super().__init__()
        self.wrap, self.pick = wrap, pick

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        inputs, labels = self.pick(batch)
        return F.cross_entropy(self.net(inputs), labels)

    def train_dataloader(self) -> Any:
        return DataLoader(images(), 8, collate_fn=self.collate)

    def collate(self, samples: Any) -> Any:
        inputs, labels = torch.utils.data.default_collate(samples)
        return self.wrap(inputs, labels)


def zeros(inputs: Tensor) -> Tensor:
    return torch.zeros(len(inputs), dtype=torch.long)


@pytest.mark.parametrize(
    ("wrap", "pick"),
    [
        (lambda x, y: x, lambda b: (b, zeros(b))),
        (lambda x, y: (x, y), lambda b: b),
        (lambda x, y: [x, y], lambda b: b),
        (lambda x, y: {"images": x, "labels": y}, lambda b: (b["images"], b["labels"])),
        (lambda x, y: {"labels": y, "pixels": x}, lambda b: (b["pixels"], b["labels"])),
        (lambda x, y: ((x, y), {"index": y}), lambda b: b[0]),
        (lambda x, y: {"views": [x, x], "labels": y}, lambda b: (b["views"][0], b["labels"])),
    ],
    ids=["tensor", "tuple", "list", "keywords", "other_keys", "nested", "list_in_dict"],
)
def test_the_example_is_found_in_the_first_batch(tmp_path, wrap, pick) -> None:
    lit = Batches(wrap, pick)
    fit(tmp_path, lit, IterativePruning(Constant(0), HALF), max_epochs=1, limit_val_batches=0)
    assert widths(lit.net) == [4, 4, 3]


class TwoInputs(Batches):
    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self.net(images), labels)


@pytest.mark.parametrize("form", [lambda x, y: (x, y), lambda x, y: {"labels": y, "images": x, "index": y}])
def test_a_forward_with_several_arguments(tmp_path, form) -> None:
    pick = lambda b: (b["images"], b["labels"]) if isinstance(b, dict) else b  # noqa: E731
    lit = TwoInputs(form, pick)
    fit(tmp_path, lit, IterativePruning(Constant(0), HALF), max_epochs=1, limit_val_batches=0)
    assert widths(lit.net) == [4, 4, 3]


class NoForward(LightningModule):
    """Everything happens in its training step."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Lit().net

    training_step = Batches.training_step
    pick = staticmethod(lambda b: b)
    configure_optimizers = lambda self: torch.optim.SGD(self.parameters(), 0.1)  # noqa: E731
    train_dataloader = Lit.train_dataloader


def test_a_module_without_forward_is_told_to_set_example_input_array(tmp_path) -> None:
    message = (
        r"the forward of NoForward runs on no part of the first training batch \(list\): .*Set `example_input_array`"
    )
    with pytest.raises(MisconfigurationException, match=message):
        fit(tmp_path, NoForward(), IterativePruning(Constant(1), HALF), max_epochs=2)


def test_masks_need_no_example(tmp_path) -> None:
    lit, events = NoForward(), Events()
    pruning = IterativePruning(Constant(1), Sparsity(0.5), granularity=Weights())
    fit(tmp_path, lit, pruning, events, max_epochs=2)
    assert pruning.sparsity == 0.5
    assert events.reports[0].after.macs is None
