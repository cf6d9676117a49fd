"""scikit-learn's 8x8 digits: the data set that needs no download."""

from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from lightning_prune.tasks.splits import evaluation_loader, stratified_split, train_loader


class DigitsData(LightningDataModule):
    """1797 grey images `(1, 8, 8)` of the ten digits, in [-1, 1], embedded in scikit-learn.

    Test and validation images are drawn class by class with fixed seeds; the remaining ones train.

    Args:
        batch_size: Images per batch.
        val_fraction: Share of all images for validation, in (0, 1).
        test_fraction: Share of all images for the test, in (0, 1).
        seed: Which images go into which split. The order of training follows the global seed.
        num_workers: Processes that load batches; 0 loads in the main process.

    Raises:
        ValueError: If the fractions leave a split empty.

    Example:
        >>> data = DigitsData(batch_size=32)
        >>> data.setup("fit")
        >>> images, labels = next(iter(data.val_dataloader()))
        >>> images.shape, labels.shape
        (torch.Size([32, 1, 8, 8]), torch.Size([32]))
    """

    def __init__(
        self,
        batch_size: int = 64,
        val_fraction: float = 0.15,
        test_fraction: float = 0.2,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        if not (val_fraction > 0 and test_fraction > 0 and val_fraction + test_fraction < 1):
            raise ValueError(
                "DigitsData needs val_fraction and test_fraction above 0 and below 1 together, got "
                f"val_fraction={val_fraction} and test_fraction={test_fraction}."
            )
        self.batch_size = batch_size
        self.val_fraction = val_fraction
        self.test_fraction = test_fraction
        self.seed = seed
        self.num_workers = num_workers
        self.splits: dict[str, Dataset] = {}

    def setup(self, stage: str) -> None:
        """Load and split the images, once.

        Raises:
            ImportError: If scikit-learn is not installed.
        """
        if self.splits:
            return
        images, labels = _load_digits()
        everything = TensorDataset(images, labels)
        rest, test = stratified_split(labels, self.test_fraction, self.seed)
        # The fraction is of all images, the split is of those that the test left.
        val_share = self.val_fraction * len(labels) / len(rest)
        train_of_rest, val_of_rest = stratified_split(labels[rest], val_share, self.seed)
        self.splits = {
            "train": Subset(everything, [rest[i] for i in train_of_rest]),
            "val": Subset(everything, [rest[i] for i in val_of_rest]),
            "test": Subset(everything, test),
        }

    def train_dataloader(self) -> DataLoader[Any]:
        """Return shuffled training batches."""
        return train_loader(self.splits["train"], self.batch_size, self.num_workers)

    def val_dataloader(self) -> DataLoader[Any]:
        """Return the validation batches."""
        return evaluation_loader(self.splits["val"], self.batch_size, self.num_workers)

    def test_dataloader(self) -> DataLoader[Any]:
        """Return the test batches."""
        return evaluation_loader(self.splits["test"], self.batch_size, self.num_workers)


def _load_digits() -> tuple[torch.Tensor, torch.Tensor]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "DigitsData takes its images from scikit-learn, which is not installed. "
            'Run: pip install "lightning-prune[recipes]"'
        ) from error
    digits = load_digits()
    # Pixels are whole numbers from 0 to 16.
    images = torch.from_numpy(digits.images).float().unsqueeze(1) / 8 - 1
    return images, torch.from_numpy(digits.target).long()
