"""Base class of the data modules: images that are split once, and loaders of the splits."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from lightning_prune.network.argument_checks import check_number
from lightning_prune.tasks.splits import evaluation_loader, train_loader

_Images = TypeVar("_Images", bound=Dataset)


class SplitData(LightningDataModule, ABC):
    """Batches of images that are split once.

    Args:
        batch_size: Images per batch.
        num_workers: Processes that load batches; 0 loads in the main process.
    """

    def __init__(self, batch_size: int, num_workers: int) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.splits: dict[str, Dataset] = {}

    def check_fraction(self, val_fraction: float) -> None:
        """Raise an error if the training images cannot be split by this fraction."""
        check_number(self, "val_fraction", val_fraction, above=0, below=1)

    def check_fractions(self, val_fraction: float, test_fraction: float) -> None:
        """Raise an error if a three-way split by these fractions is impossible."""
        if not (val_fraction > 0 and test_fraction > 0 and val_fraction + test_fraction < 1):
            raise ValueError(
                f"{type(self).__name__} needs val_fraction and test_fraction above 0 and below 1 together, got "
                f"val_fraction={val_fraction} and test_fraction={test_fraction}."
            )

    def open_download(self, open_images: Callable[[], _Images], root: str, name: str, folder: str) -> _Images:
        """Open images that torchvision has downloaded to ``root``.

        Raises:
            FileNotFoundError: If ``root`` does not contain them.
        """
        try:
            return open_images()
        except RuntimeError as error:
            raise FileNotFoundError(
                f"root={root!r} ({Path(root).resolve()}) holds no {name} in {folder}. "
                "Set download=True, or point root to the folder that has it."
            ) from error

    @abstractmethod
    def split(self) -> dict[str, Dataset]:
        """Load the images and return the splits `train`, `val` and `test`."""

    def setup(self, stage: str) -> None:
        """Load and split the images, once."""
        if not self.splits:
            self.splits = self.split()

    def train_dataloader(self) -> DataLoader[Any]:
        """Return shuffled training batches, augmented where the data set is."""
        return train_loader(self.splits["train"], self.batch_size, self.num_workers)

    def val_dataloader(self) -> DataLoader[Any]:
        """Return the validation batches."""
        return evaluation_loader(self.splits["val"], self.batch_size, self.num_workers)

    def test_dataloader(self) -> DataLoader[Any]:
        """Return the test batches."""
        return evaluation_loader(self.splits["test"], self.batch_size, self.num_workers)
