"""Any images on disk, one folder a class."""

from pathlib import Path
from typing import Any

from torch.utils.data import Dataset, Subset
from torchvision import datasets, transforms

from lightning_prune.network.argument_checks import check_integer
from lightning_prune.tasks.split_data import SplitData
from lightning_prune.tasks.splits import stratified_split

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, in [0, 1]


class ImageFolderData(SplitData):
    """Images in `root/train/<class>/`, and if there are any in `root/val/<class>/` and `root/test/<class>/`.

    Without `val/` the validation images are carved from the training images class by class; without `test/`
    the validation images are also the test images. Images become RGB, `(3, image_size, image_size)`: the
    shorter side is resized and its center cropped. They are normalized with ImageNet's mean and deviation,
    as torchvision's pretrained weights expect.

    Args:
        root: Folder with `train/` in it.
        image_size: Side of the square images in pixels, at least 1.
        augment: Crop training images at random after padding them by an eighth of their size, which is the
            usual 4 pixels of 32 for CIFAR, and flip half of them. Validation and test images are left alone.
        batch_size: Images per batch.
        val_fraction: Share of the training images kept for validation where `val/` is missing, in (0, 1).
        seed: Which images then validate. Training order and augmentation follow the global seed.
        num_workers: Processes that load batches; 0 loads in the main process.

    Raises:
        ValueError: If `image_size` is below 1 or `val_fraction` outside (0, 1).
    """

    def __init__(
        self,
        root: str,
        image_size: int = 224,
        augment: bool = True,
        batch_size: int = 64,
        val_fraction: float = 0.1,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__(batch_size, num_workers)
        check_integer(self, "image_size", image_size, minimum=1)
        self.check_fraction(val_fraction)
        self.root = root
        self.image_size = image_size
        self.augment = augment
        self.val_fraction = val_fraction
        self.seed = seed

    def split(self) -> dict[str, Dataset]:
        """Find and split the images.

        Raises:
            FileNotFoundError: If there is no `train/` in `root`, or a class without an image.
            ValueError: If two splits do not have the same classes.
        """
        root = Path(self.root)
        if not (root / "train").is_dir():
            raise FileNotFoundError(
                f"root={self.root!r} has no folder {(root / 'train').resolve()}. Point root to the folder "
                "with train/<class>/<image> in it, and if there are any with val/ and test/ beside train/."
            )
        training = self._open("train", augment=self.augment)
        val: Dataset
        if (root / "val").is_dir():
            train: Dataset = training
            val = self._open("val", like=training)
        else:
            train_indices, val_indices = stratified_split(training.targets, self.val_fraction, self.seed)
            train = Subset(training, train_indices)
            val = Subset(self._open("train"), val_indices)
        test = self._open("test", like=training) if (root / "test").is_dir() else val
        return {"train": train, "val": val, "test": test}

    def _open(
        self, folder: str, augment: bool = False, like: datasets.ImageFolder | None = None
    ) -> datasets.ImageFolder:
        path = Path(self.root) / folder
        dataset = datasets.ImageFolder(str(path), transform=_transform(self.image_size, augment))
        if like is not None and dataset.classes != like.classes:
            raise ValueError(
                f"{path} has the classes {dataset.classes}, train/ has {like.classes}. "
                "Labels are numbered by folder: give both the same class folders."
            )
        return dataset


def _transform(image_size: int, augment: bool) -> transforms.Compose:
    resize: list[Any] = [transforms.Resize(image_size)]
    end: list[Any] = [transforms.ToTensor(), transforms.Normalize(_MEAN, _STD)]
    if not augment:
        return transforms.Compose([*resize, transforms.CenterCrop(image_size), *end])
    crop = transforms.RandomCrop(image_size, padding=image_size // 8)
    return transforms.Compose([*resize, crop, transforms.RandomHorizontalFlip(), *end])
