"""Stratified, seeded splits of labelled images, and the loaders over them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightning_prune.network.argument_checks import check_number


def stratified_split(labels: Tensor | Sequence[int], fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Split indices so that each class keeps its share in both parts.

    The second part has `round(fraction * len(labels))` indices. Each class gives its share of them, rounded
    down; what is then missing comes from the classes with the largest remainders, the lower label first.

    Args:
        labels: `(images,)`, one class label per image.
        fraction: Share of the second part, in (0, 1).
        seed: Which images go where; the same seed gives the same split. Leaves torch's global seed alone.

    Returns:
        Indices of the first and of the second part, each ascending.

    Raises:
        ValueError: If `fraction` is outside (0, 1), or one part would be empty.

    Example:
        >>> rest, part = stratified_split([0, 0, 0, 0, 1, 1], fraction=0.5, seed=0)
        >>> len(rest), len(part)
        (3, 3)
    """
    check_number("stratified_split", "fraction", fraction, above=0, below=1)
    labels = torch.as_tensor(labels)
    size = round(fraction * len(labels))
    if size in (0, len(labels)):
        raise ValueError(
            f"A fraction of {fraction} of {len(labels)} images leaves one part of the split empty. "
            "Choose another fraction, or add images."
        )
    classes, counts = labels.unique(return_counts=True)
    quotas = fraction * counts.double()
    sizes = quotas.floor().long()
    by_remainder = torch.argsort(quotas - sizes, descending=True, stable=True)
    sizes[by_remainder[: size - int(sizes.sum())]] += 1

    generator = torch.Generator().manual_seed(seed)
    in_part = torch.zeros(len(labels), dtype=torch.bool)
    for label, class_size in zip(classes, sizes.tolist(), strict=True):
        members = (labels == label).nonzero().flatten()
        order = torch.randperm(len(members), generator=generator)
        in_part[members[order[:class_size]]] = True
    return (~in_part).nonzero().flatten().tolist(), in_part.nonzero().flatten().tolist()


def three_way_split(
    labels: Tensor | Sequence[int], val_fraction: float, test_fraction: float, seed: int
) -> dict[str, list[int]]:
    """Indices of `train`, `val` and `test`, each ascending; both fractions are of all images."""
    labels = torch.as_tensor(labels)
    rest, test = stratified_split(labels, test_fraction, seed)
    val_share = val_fraction * len(labels) / len(rest)  # of those that the test left
    train, val = stratified_split(labels[rest], val_share, seed)
    return {"train": [rest[i] for i in train], "val": [rest[i] for i in val], "test": test}


def train_loader(dataset: Dataset, batch_size: int, num_workers: int) -> DataLoader[Any]:
    """Return a loader that shuffles by torch's global seed.

    The incomplete last batch is left out where there is a complete one: batch norm cannot train on one image.
    """
    return DataLoader(
        dataset,
        batch_size=batch_size,
        shuffle=True,
        drop_last=len(dataset) > batch_size,  # type: ignore[arg-type]
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
    )


def evaluation_loader(dataset: Dataset, batch_size: int, num_workers: int) -> DataLoader[Any]:
    """Return a loader that gives every image once, in a fixed order."""
    return DataLoader(dataset, batch_size=batch_size, num_workers=num_workers, persistent_workers=num_workers > 0)
