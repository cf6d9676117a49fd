"""scikit-learn's 8x8 digits: the data set that needs no download."""

import torch
from torch.utils.data import Dataset, Subset, TensorDataset

from lightning_prune.tasks.split_data import SplitData
from lightning_prune.tasks.splits import three_way_split


class DigitsData(SplitData):
    """1797 gray images `(1, 8, 8)` of the ten digits, in [-1, 1], embedded in scikit-learn.

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
        super().__init__(batch_size, num_workers)
        self.check_fractions(val_fraction, test_fraction)
        self.val_fraction = val_fraction
        self.test_fraction = test_fraction
        self.seed = seed

    def split(self) -> dict[str, Dataset]:
        """Load and split the images.

        Raises:
            ImportError: If scikit-learn is not installed.
        """
        images, labels = _load_digits()
        everything = TensorDataset(images, labels)
        parts = three_way_split(labels, self.val_fraction, self.test_fraction, self.seed)
        return {name: Subset(everything, indices) for name, indices in parts.items()}


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
