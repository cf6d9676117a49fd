"""Caltech-101 through torchvision."""

from functools import partial
from typing import Any

from PIL import Image
from torch.utils.data import Dataset, Subset
from torchvision import datasets, transforms

from lightning_prune.network.argument_checks import check_integer
from lightning_prune.tasks.split_data import SplitData
from lightning_prune.tasks.splits import three_way_split

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, in [0, 1]


class Caltech101Data(SplitData):
    """Photographs of 101 kinds of objects, 8,677 in all, as RGB images `(3, image_size, image_size)`.

    There is no official split: test and validation images are drawn class by class with a fixed seed; the remaining
    ones train. They are normalized with ImageNet's mean and deviation, as torchvision's pretrained weights expect; gray
    photographs become RGB. The shorter side is resized and its center cropped; of training images another part is cut
    out every time, at random in size and place, and half of them are flipped.

    torchvision reads these images only where SciPy is installed.

    Args:
        root: Folder that holds, or gets, `caltech101/101_ObjectCategories`.
        download: Download the images (140 MB) if they are not there.
        image_size: Side of the square images in pixels, at least 1.
        batch_size: Images per batch.
        val_fraction: Share of all images for validation, in (0, 1).
        test_fraction: Share of all images for the test, in (0, 1).
        seed: Which images go into which split. Training order and augmentation follow the global seed.
        num_workers: Processes that load batches; 0 loads in the main process.

    Raises:
        ValueError: If `image_size` is below 1, or the fractions leave a split empty.
    """

    def __init__(
        self,
        root: str = "data",
        download: bool = True,
        image_size: int = 224,
        batch_size: int = 32,
        val_fraction: float = 0.1,
        test_fraction: float = 0.2,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__(batch_size, num_workers)
        check_integer(self, "image_size", image_size, minimum=1)
        self.check_fractions(val_fraction, test_fraction)
        self.root = root
        self.download = download
        self.image_size = image_size
        self.val_fraction = val_fraction
        self.test_fraction = test_fraction
        self.seed = seed

    def prepare_data(self) -> None:
        """Download the images if asked to; Lightning calls this in one process."""
        if self.download:
            datasets.Caltech101(self.root, download=True)

    def split(self) -> dict[str, Dataset]:
        """Find and split the images.

        Raises:
            FileNotFoundError: If `root` holds no Caltech-101.
            ImportError: If SciPy is not installed.
        """
        _check_scipy()
        end = [transforms.ToTensor(), transforms.Normalize(_MEAN, _STD)]
        cut = [transforms.RandomResizedCrop(self.image_size), transforms.RandomHorizontalFlip()]
        whole = [transforms.Resize(self.image_size), transforms.CenterCrop(self.image_size)]
        augmented, plain = self._load([*cut, *end]), self._load([*whole, *end])
        parts = three_way_split(plain.y, self.val_fraction, self.test_fraction, self.seed)
        return {name: Subset(augmented if name == "train" else plain, indices) for name, indices in parts.items()}

    def _load(self, steps: list[Any]) -> datasets.Caltech101:
        images = partial(
            datasets.Caltech101, self.root, transform=transforms.Compose([_in_color, *steps]), download=False
        )
        return self.open_download(images, self.root, "Caltech-101", "caltech101/101_ObjectCategories")


def _check_scipy() -> None:
    """Else the first batch would fail, perhaps in a process of its own."""
    try:
        import scipy.io  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "Caltech101Data reads its images through torchvision, which needs SciPy for them, and that is not "
            'installed. Run: pip install "lightning-prune[recipes]"'
        ) from error


def _in_color(image: Image.Image) -> Image.Image:
    return image.convert("RGB")
