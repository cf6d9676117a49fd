"""CIFAR-10 through torchvision."""

from functools import partial
from typing import Any

from torch.utils.data import Dataset, Subset
from torchvision import datasets, transforms

from lightning_prune.tasks.split_data import SplitData
from lightning_prune.tasks.splits import stratified_split

_MEAN, _STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)  # of the training pixels, in [0, 1]


class CIFAR10Data(SplitData):
    """Color images `(3, 32, 32)` of ten classes, normalized to mean 0 and deviation 1.

    Training images are augmented as usual: a random crop after padding by 4 pixels, and a random flip.
    The validation images are carved from the training images class by class and are not augmented.

    Args:
        root: Folder that holds, or gets, `cifar-10-batches-py`.
        download: Download the images (170 MB) if they are not there.
        batch_size: Images per batch.
        val_fraction: Share of the training images kept for validation, in (0, 1).
        seed: Which images validate. Training order and augmentation follow the global seed.
        num_workers: Processes that load batches; 0 loads in the main process.

    Raises:
        ValueError: If `val_fraction` is outside (0, 1).
    """

    def __init__(
        self,
        root: str = "data",
        download: bool = True,
        batch_size: int = 128,
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
            datasets.CIFAR10(self.root, train=True, download=True)

    def split(self) -> dict[str, Dataset]:
        """Load and split the images.

        Raises:
            FileNotFoundError: If `root` holds no CIFAR-10.
        """
        plain = [transforms.ToTensor(), transforms.Normalize(_MEAN, _STD)]
        augmented = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), *plain]
        training = self._load(train=True, steps=augmented)
        train, val = stratified_split(training.targets, self.val_fraction, self.seed)
        return {
            "train": Subset(training, train),
            "val": Subset(self._load(train=True, steps=plain), val),
            "test": self._load(train=False, steps=plain),
        }

    def _load(self, train: bool, steps: list[Any]) -> datasets.CIFAR10:
        images = partial(datasets.CIFAR10, self.root, train=train, transform=transforms.Compose(steps), download=False)
        return self.open_download(images, self.root, "CIFAR-10", "cifar-10-batches-py")
