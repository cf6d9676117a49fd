"""MNIST through torchvision."""

from functools import partial

from torch.utils.data import Dataset, Subset, TensorDataset
from torchvision import datasets

from lightning_prune.tasks.split_data import SplitData
from lightning_prune.tasks.splits import stratified_split

_MEAN, _STD = 0.1307, 0.3081  # of the training pixels, in [0, 1]


class MNISTData(SplitData):
    """Gray images `(1, 28, 28)` of the ten digits, normalized to mean 0 and deviation 1.

    The validation images are carved from the training images class by class.

    Args:
        root: Folder that holds, or gets, `MNIST/raw`.
        download: Download the images (12 MB) if they are not there.
        batch_size: Images per batch.
        val_fraction: Share of the training images kept for validation, in (0, 1).
        seed: Which images validate. The order of training follows the global seed.
        num_workers: Processes that load batches; 0 loads in the main process.

    Raises:
        ValueError: If `val_fraction` is outside (0, 1).
    """

    def __init__(
        self,
        root: str = "data",
        download: bool = True,
        batch_size: int = 64,
        val_fraction: float = 0.1,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__(batch_size, num_workers)
        self.check_fraction(val_fraction)
        self.root = root
        self.download = download
        self.val_fraction = val_fraction
        self.seed = seed

    def prepare_data(self) -> None:
        """Download the images if asked to; Lightning calls this in one process."""
        if self.download:
            datasets.MNIST(self.root, train=True, download=True)

    def split(self) -> dict[str, Dataset]:
        """Load and split the images.

        Raises:
            FileNotFoundError: If `root` holds no MNIST.
        """
        training = self._load(train=True)
        train, val = stratified_split(training.tensors[1], self.val_fraction, self.seed)
        return {
            "train": Subset(training, train),
            "val": Subset(training, val),
            "test": self._load(train=False),
        }

    def _load(self, train: bool) -> TensorDataset:
        dataset = self.open_download(
            partial(datasets.MNIST, self.root, train=train, download=False), self.root, "MNIST", "MNIST/raw"
        )
        # Normalized at once: image by image, through PIL, loading would take longer than training.
        images = (dataset.data.unsqueeze(1).float() / 255 - _MEAN) / _STD
        return TensorDataset(images, dataset.targets)
