"""Where `IterativePruning` takes the example input from."""

import random
from collections import UserDict
from typing import Any

import numpy as np
import pytest
import torch
from helpers.training import STEPS, Events, Lit, fit, images, widths
from lightning.pytorch import LightningModule, seed_everything
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchmetrics import Accuracy

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
    """Trains on batches of every form; ``pick`` selects images and labels."""

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
    """Runs the network in its training step only."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Lit().net

    training_step = Batches.training_step
    pick = staticmethod(lambda b: b)
    configure_optimizers = lambda self: torch.optim.SGD(self.parameters(), 0.1)  # noqa: E731
    train_dataloader = Lit.train_dataloader


def test_without_forward_it_is_what_the_training_step_calls(tmp_path) -> None:
    lit = NoForward()
    pruning = IterativePruning(Constant(1), HALF)
    fit(tmp_path, lit, pruning, max_epochs=2)
    assert widths(lit.net) == [4, 4, 3]
    assert pruning.example is not None
    assert (pruning.example.module, pruning.example.batch) == ("net", 2)


def test_without_forward_a_training_goes_on_as_with_it(tmp_path) -> None:
    """Recording the training step changes no random numbers, batch-norm statistics or logs."""
    found = []
    for given in (None, torch.zeros(2, 2, 3, 4)):
        seed_everything(1)
        lit = Noisy()
        if given is not None:
            lit.forward, lit.example_input_array = lit.net.forward, given
        trainer = fit(tmp_path, lit, IterativePruning(Constant(1), HALF), max_epochs=2)
        found.append((lit.state_dict(), trainer.logged_metrics["seen"], lit.seen))
    (state, logged, seen), (wanted, wanted_logged, wanted_seen) = found
    assert (logged, seen) == (wanted_logged, wanted_seen)
    assert len(seen) == 2 * STEPS
    assert all(torch.equal(state[name], wanted[name]) for name in wanted)


class Noisy(NoForward):
    """Uses random numbers of all kinds, counts samples, logs, and removes labels from the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        labels = batch.pop()
        self.seen.append(batch_idx)
        self.log("seen", float(len(self.seen)))
        noise = torch.randn_like(batch[0]) * np.random.beta(0.4, 0.4) + random.random()
        return F.cross_entropy(self.net(batch[0] + noise), labels)


class BesideOthers(NoForward):
    """Calls the network twice, a loss and a metric, normalizes, and uses its Trainer at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.loss, self.accuracy = nn.CrossEntropyLoss(), Accuracy("multiclass", num_classes=3)

    def training_step(self, batch: Any) -> Tensor:
        pixels = batch[0].float() / 2
        logits = self.net(pixels)
        self.accuracy(logits, batch[1])
        self.log("lr", self.optimizers().param_groups[0]["lr"])
        return self.loss(logits, batch[1]) + F.mse_loss(logits, self.net(pixels.flip(3)))


class AnyArguments(NoForward):
    def training_step(self, *args: Any) -> Tensor:
        batch, batch_idx = args
        assert isinstance(batch_idx, int)
        return F.cross_entropy(self.net(batch[0]), batch[1])


class OnlyTheBatch(NoForward):
    def training_step(self, batch: Any, **nothing: Any) -> Tensor:
        assert not nothing
        return F.cross_entropy(self.net(batch[0]), batch[1])


@pytest.mark.parametrize("kind", [BesideOthers, AnyArguments, OnlyTheBatch])
def test_training_steps_that_show_the_network(tmp_path, kind) -> None:
    lit = kind()
    pruning = IterativePruning(Constant(1), HALF)
    fit(tmp_path, lit, pruning, max_epochs=2)
    assert widths(lit.net) == [4, 4, 3]
    assert pruning.example is not None
    assert pruning.example.module == "net"


class TwoParts(NoForward):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = self.net[:-1], self.net[-1]
        del self.net

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self.head(self.body(batch[0])), batch[1])


class FrozenBackbone(TwoParts):
    def __init__(self) -> None:
        super().__init__()
        self.body.requires_grad_(False)


class Manual(NoForward):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.optimizers().zero_grad()
        return super().training_step(batch, batch_idx)


class InTurns(NoForward):
    def __init__(self) -> None:
        super().__init__()
        self.other = Lit().net

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy((self.other if batch_idx % 2 else self.net)(batch[0]), batch[1])


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.heads = nn.Linear(24, 8), nn.ModuleList([nn.Linear(8, 3), nn.Linear(8, 3)])

    def forward(self, x: Tensor, head: int) -> Tensor:
        return self.heads[head](self.trunk(x.flatten(1)).relu())


class TwoPaths(NoForward):
    def __init__(self) -> None:
        super().__init__()
        self.net = TwoHeads()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self.net(batch[0], 0) + self.net(batch[0], 1), batch[1])


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (TwoParts, "its training step calls 'body' and 'head'"),
        (FrozenBackbone, "its training step calls 'body' and 'head'"),
        (Manual, "its training step calls no module, then fails on a copy without a Trainer: "),
        (InTurns, "its training step calls 'net' first, whose output does not depend on 'other.0.weight'"),
        (TwoPaths, "its training step calls 'net' first, whose output does not depend on 'net.heads.1.weight'"),
    ],
)
def test_training_steps_that_do_not_show_the_network(tmp_path, kind, reason: str) -> None:
    message = (
        rf"the forward of {kind.__name__} runs on no part of the first training batch \(list\): .*; and {reason}.*"
        r"\. Define `forward` to run the network, and set `example_input_array`"
    )
    with pytest.raises(MisconfigurationException, match=message):
        fit(tmp_path, kind(), IterativePruning(Constant(1), HALF), max_epochs=2)


class Scaled(Batches):
    """``forward`` accepts no part of the batch: the training step creates a keyword."""

    def __init__(self) -> None:
        super().__init__(lambda x, y: (x, y), lambda b: b)

    def forward(self, pixels: Tensor, *, scale: Tensor) -> Tensor:
        return self.net(pixels * scale)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0], scale=torch.full((len(batch[0]), 1, 1, 1), 2.0)), batch[1])


def test_keywords_that_only_the_training_step_provides(tmp_path) -> None:
    lit, pruning = Scaled(), IterativePruning(Constant(1), HALF)
    fit(tmp_path, lit, pruning, max_epochs=2, limit_val_batches=0)
    assert widths(lit.net) == [4, 4, 3]
    assert pruning.example is not None
    assert (pruning.example.module, list(pruning.example.kwargs)) == ("", ["scale"])
    assert pruning.example.kwargs["scale"].shape == (2, 1, 1, 1)


class Keywords(Batches):
    """As in the tutorials of Hugging Face: the whole batch is passed to ``forward``."""

    def forward(self, **batch: Tensor) -> Any:
        logits = self.net(batch["pixels"])
        return {"loss": F.cross_entropy(logits, batch["labels"]), "logits": logits}

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self(**batch)["loss"]


@pytest.mark.parametrize("mapping", [dict, UserDict])
def test_a_forward_that_accepts_all_keys_of_the_batch(tmp_path, mapping) -> None:
    lit = Keywords(lambda x, y: mapping(labels=y, pixels=x), None)
    pruning = IterativePruning(Constant(0), HALF)
    fit(tmp_path, lit, pruning, max_epochs=1, limit_val_batches=0)
    assert widths(lit.net) == [4, 4, 3]
    assert pruning.example is not None
    assert sorted(pruning.example.kwargs) == ["labels", "pixels"]


class NamedAndMore(Batches):
    """``forward`` passes on unknown keywords, to a function that does not accept all keys of the batch."""

    def forward(self, pixels: Tensor, **options: Any) -> Tensor:
        return self.net(pixels, **options)


def test_named_arguments_alone_where_forward_could_take_more(tmp_path) -> None:
    lit = NamedAndMore(lambda x, y: {"labels": y, "pixels": x}, lambda b: (b["pixels"], b["labels"]))
    pruning = IterativePruning(Constant(0), HALF)
    fit(tmp_path, lit, pruning, max_epochs=1, limit_val_batches=0)
    assert pruning.example is not None
    assert list(pruning.example.kwargs) == ["pixels"]


class Popping(Batches):
    """``forward`` removes the labels from a batch that is not a dict."""

    def forward(self, batch: Any) -> Tensor:
        labels = batch.pop("labels")
        return F.cross_entropy(self.net(batch["pixels"]), labels)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self(batch)


def test_a_batch_that_forward_changes_is_left_as_it_is(tmp_path) -> None:
    lit = Popping(lambda x, y: UserDict(labels=y, pixels=x), None)
    fit(tmp_path, lit, IterativePruning(Constant(0), HALF), max_epochs=1, limit_val_batches=0)
    assert widths(lit.net) == [4, 4, 3]


def test_masks_need_no_example(tmp_path) -> None:
    lit, events = NoForward(), Events()
    pruning = IterativePruning(Constant(1), Sparsity(0.5), granularity=Weights())
    fit(tmp_path, lit, pruning, events, max_epochs=2)
    assert pruning.sparsity == 0.5
    assert events.reports[0].after.macs is None
