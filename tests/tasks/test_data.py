import os
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer, seed_everything
from PIL import Image
from torch.utils.data import Dataset
from torchvision import datasets

from lightning_prune.tasks import CIFAR10Data, DigitsData, ImageClassifier, ImageFolderData, MNISTData

CLASSES = ["cat", "dog", "owl"]


def keys(dataset: Dataset) -> list[bytes]:
    """The pixels of each image, to tell images apart."""
    return [dataset[index][0].numpy().tobytes() for index in range(len(dataset))]  # type: ignore[arg-type]


def labels_of(dataset: Dataset) -> torch.Tensor:
    return torch.tensor([int(dataset[index][1]) for index in range(len(dataset))])  # type: ignore[arg-type]


def assert_augments_only_training(data: LightningDataModule) -> None:
    splits = data.splits  # type: ignore[attr-defined]
    seed_everything(0)
    assert len({splits["train"][0][0].numpy().tobytes() for _ in range(20)}) > 1
    for split in ("val", "test"):
        assert len({splits[split][0][0].numpy().tobytes() for _ in range(20)}) == 1


def assert_trains(data: LightningDataModule, root: Path, **arguments: Any) -> None:
    trainer = Trainer(
        fast_dev_run=True, logger=False, accelerator="cpu", enable_progress_bar=False, default_root_dir=root
    )
    classifier = ImageClassifier(model_args={"width": 4}, **arguments)
    trainer.fit(classifier, datamodule=data)
    trainer.test(classifier, datamodule=data, verbose=False)
    assert torch.isfinite(trainer.callback_metrics["test_loss"])


@pytest.fixture
def digits() -> DigitsData:
    data = DigitsData(batch_size=32)
    data.setup("fit")
    return data


def test_digits_are_split_by_share_and_class(digits: DigitsData) -> None:
    sizes = {name: len(split) for name, split in digits.splits.items()}  # type: ignore[arg-type]
    assert sizes == {"train": 1168, "val": 270, "test": 359}
    everyone = torch.cat([labels_of(split) for split in digits.splits.values()])
    for split in digits.splits.values():
        own = labels_of(split)
        shares = own.bincount(minlength=10) / len(own) - everyone.bincount(minlength=10) / len(everyone)
        assert shares.abs().max() < 0.01


def test_digits_share_no_image_between_splits(digits: DigitsData) -> None:
    train, val, test = (set(keys(digits.splits[name])) for name in ("train", "val", "test"))
    assert train.isdisjoint(val)
    assert train.isdisjoint(test)
    assert val.isdisjoint(test)


def test_digits_are_in_range_and_shape(digits: DigitsData) -> None:
    for loader in (digits.train_dataloader(), digits.val_dataloader(), digits.test_dataloader()):
        images, labels = next(iter(loader))
        assert images.shape == (32, 1, 8, 8)
        assert images.dtype == torch.float32
        assert labels.shape == (32,)
        assert labels.dtype == torch.int64
        assert images.min() == -1
        assert images.max() == 1


def test_digits_are_determined_by_their_seed(digits: DigitsData) -> None:
    same, other = DigitsData(), DigitsData(seed=1)
    same.setup("fit")
    other.setup("fit")
    assert keys(same.splits["test"]) == keys(digits.splits["test"])
    assert keys(same.splits["val"]) == keys(digits.splits["val"])
    assert keys(other.splits["test"]) != keys(digits.splits["test"])
    assert keys(other.splits["val"]) != keys(digits.splits["val"])


def test_digits_are_set_up_once(digits: DigitsData) -> None:
    before = digits.splits["test"]
    digits.setup("test")
    assert digits.splits["test"] is before


@pytest.mark.parametrize("fractions", [(0, 0.2), (0.2, 0), (0.5, 0.5), (-0.1, 0.2)])
def test_digits_refuse_fractions_that_leave_nothing(fractions: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="val_fraction and test_fraction above 0 and below 1 together"):
        DigitsData(val_fraction=fractions[0], test_fraction=fractions[1])


def test_digits_without_scikit_learn_name_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r'pip install "lightning-prune\[recipes\]"'):
        DigitsData().setup("fit")


def write_mnist(root: Path, train: int, test: int) -> None:
    """Write IDX files: a big-endian header with type, rank and sizes, then the bytes."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    random = np.random.default_rng(0)
    for prefix, count in (("train", train), ("t10k", test)):
        images = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        for name, array in (("images-idx3", images), ("labels-idx1", labels)):
            header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, dtype=">i4").tobytes()
            (raw / f"{prefix}-{name}-ubyte").write_bytes(header + array.tobytes())


def test_mnist_is_split_normalized_and_trains(tmp_path: Path) -> None:
    write_mnist(tmp_path, train=100, test=20)
    data = MNISTData(root=str(tmp_path), download=False, batch_size=10, val_fraction=0.2)
    data.setup("fit")
    assert [len(data.splits[name]) for name in ("train", "val", "test")] == [80, 20, 20]  # type: ignore[arg-type]
    assert labels_of(data.splits["val"]).bincount().tolist() == [2] * 10
    assert set(keys(data.splits["train"])).isdisjoint(keys(data.splits["val"]))
    pixels = datasets.MNIST(str(tmp_path), train=False).data[0]
    assert torch.allclose(data.splits["test"][0][0], (pixels[None] / 255 - 0.1307) / 0.3081)
    assert_trains(data, tmp_path)


def test_mnist_validates_by_its_seed(tmp_path: Path) -> None:
    write_mnist(tmp_path, train=100, test=20)

    def validation(seed: int) -> list[bytes]:
        data = MNISTData(root=str(tmp_path), download=False, seed=seed)
        data.setup("fit")
        return keys(data.splits["val"])

    assert validation(0) == validation(0)
    assert validation(0) != validation(1)


@pytest.mark.parametrize(("kind", "name"), [(MNISTData, "MNIST"), (CIFAR10Data, "CIFAR-10")])
def test_missing_images_name_the_folder_and_the_cure(kind: Any, name: str, tmp_path: Path) -> None:
    data = kind(root=str(tmp_path / "nowhere"), download=False)
    data.prepare_data()
    with pytest.raises(FileNotFoundError, match=rf"nowhere.* holds no {name} .*Set download=True"):
        data.setup("fit")


@pytest.mark.parametrize(("kind", "name"), [(MNISTData, "MNIST"), (CIFAR10Data, "CIFAR10")])
def test_only_prepare_data_downloads(kind: Any, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(datasets, name, lambda root, **arguments: calls.append(arguments))
    kind(root=str(tmp_path), download=False).prepare_data()
    data = kind(root=str(tmp_path))
    assert calls == []
    data.prepare_data()
    assert [call["download"] for call in calls] == [True]


@pytest.mark.parametrize(
    ("kind", "arguments"), [(MNISTData, {}), (CIFAR10Data, {}), (ImageFolderData, {"root": "images"})]
)
@pytest.mark.parametrize("fraction", [0, 1])
def test_validation_fractions_outside_are_refused(kind: Any, arguments: Any, fraction: float) -> None:
    with pytest.raises(ValueError, match=f"val_fraction={fraction} " r"must be a number in \(0, 1\)"):
        kind(val_fraction=fraction, **arguments)


class FakeCIFAR10:
    """Torchvision's CIFAR10 has checksums, so that only a stand-in comes without a download."""

    def __init__(self, root: str, train: bool, transform: Any, download: bool) -> None:
        assert not download
        random = np.random.default_rng(int(train))
        count = 200 if train else 40
        self.data = random.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        self.targets = [index % 10 for index in range(count)]
        self.transform = transform

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.transform(Image.fromarray(self.data[index])), self.targets[index]


def test_cifar10_is_split_and_augments_only_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "CIFAR10", FakeCIFAR10)
    data = CIFAR10Data(root=str(tmp_path), download=False, batch_size=10)
    data.setup("fit")
    train, val, test = (data.splits[name] for name in ("train", "val", "test"))
    assert (len(train), len(val), len(test)) == (180, 20, 40)  # type: ignore[arg-type]
    assert labels_of(val).bincount().tolist() == [2] * 10
    assert set(train.indices).isdisjoint(val.indices)  # type: ignore[attr-defined]
    assert next(iter(data.train_dataloader()))[0].shape == (10, 3, 32, 32)
    assert_augments_only_training(data)
    # Uniform pixels in [0, 1] have mean 0.5 and deviation 0.29: normalized near 0 and 1.
    images = torch.cat([images for images, _ in data.test_dataloader()])
    assert images.mean().item() == pytest.approx((0.5 - 0.473) / 0.251, abs=0.02)
    assert_trains(data, tmp_path, in_channels=3)


def write_folder(root: Path, splits: dict[str, int], classes: list[str] = CLASSES) -> str:
    """Write `splits[name]` different images for each class, wider than high."""
    random = np.random.default_rng(0)
    for split, count in splits.items():
        for label in classes:
            folder = root / split / label
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 256, (20, 30, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return str(root)


@pytest.mark.parametrize(
    ("splits", "sizes"),
    [
        ({"train": 10, "val": 2, "test": 3}, [30, 6, 9]),
        ({"train": 10, "test": 3}, [24, 6, 9]),
        ({"train": 10, "val": 2}, [30, 6, 6]),
        ({"train": 10}, [24, 6, 6]),
    ],
)
def test_folder_takes_what_splits_there_are(splits: dict[str, int], sizes: list[int], tmp_path: Path) -> None:
    data = ImageFolderData(write_folder(tmp_path, splits), image_size=16, batch_size=4, val_fraction=0.2)
    data.setup("fit")
    assert [len(data.splits[name]) for name in ("train", "val", "test")] == sizes  # type: ignore[arg-type]
    assert labels_of(data.splits["val"]).bincount().tolist() == [2, 2, 2]
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        assert next(iter(loader))[0].shape == (4, 3, 16, 16)
    assert_augments_only_training(data)


def test_folder_splits_share_no_image_and_follow_their_seed(tmp_path: Path) -> None:
    root = write_folder(tmp_path, {"train": 10})

    def split(seed: int) -> tuple[list[bytes], list[bytes]]:
        data = ImageFolderData(root, image_size=20, augment=False, val_fraction=0.2, seed=seed)
        data.setup("fit")
        return keys(data.splits["train"]), keys(data.splits["val"])

    train, val = split(0)
    assert set(train).isdisjoint(val)
    assert len(set(train + val)) == 30
    assert split(0) == (train, val)
    assert split(1)[1] != val


def test_folder_without_augmentation_trains_on_the_images_as_they_are(tmp_path: Path) -> None:
    data = ImageFolderData(write_folder(tmp_path, {"train": 10}), image_size=20, augment=False)
    data.setup("fit")
    assert len({data.splits["train"][0][0].numpy().tobytes() for _ in range(5)}) == 1
    # 20 high and 30 wide: the centre crop keeps columns 5 to 24.
    path = data.splits["train"].dataset.samples[data.splits["train"].indices[0]][0]  # type: ignore[attr-defined]
    pixels = torch.from_numpy(np.array(Image.open(path))[:, 5:25]).permute(2, 0, 1) / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = (pixels - mean[:, None, None]) / std[:, None, None]
    assert torch.allclose(data.splits["train"][0][0], expected, atol=1e-6)


def test_missing_folder_names_the_path_and_the_cure(tmp_path: Path) -> None:
    data = ImageFolderData(str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match=r"nowhere/train\. Point root to the folder with train/<class>"):
        data.setup("fit")


def test_splits_with_other_classes_are_refused(tmp_path: Path) -> None:
    write_folder(tmp_path, {"train": 2})
    write_folder(tmp_path, {"test": 2}, classes=["cat", "dog"])
    data = ImageFolderData(str(tmp_path), val_fraction=0.5)
    with pytest.raises(ValueError, match=r"test has the classes \['cat', 'dog'\], train/ has \['cat', 'dog', 'owl'\]"):
        data.setup("fit")


def test_image_size_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="image_size=0 must be an integer of at least 1"):
        ImageFolderData("images", image_size=0)


@pytest.fixture
def real_data() -> Path:
    if "LIGHTNING_PRUNE_DATA" not in os.environ:
        pytest.skip("needs real images: set LIGHTNING_PRUNE_DATA to the folder that has them")
    return Path(os.environ["LIGHTNING_PRUNE_DATA"])


def test_real_mnist_trains(real_data: Path, tmp_path: Path) -> None:
    data = MNISTData(root=str(real_data / "mnist10k"), download=False, batch_size=32)
    data.setup("fit")
    assert [len(data.splits[name]) for name in ("train", "val", "test")] == [8100, 900, 1000]  # type: ignore[arg-type]
    images = torch.stack([data.splits["train"][index][0] for index in range(2000)])
    assert abs(images.mean()) < 0.1
    assert abs(images.std() - 1) < 0.1
    assert_trains(data, tmp_path)


def test_real_images_in_folders_train(real_data: Path, tmp_path: Path) -> None:
    for split, count in (("train", 6), ("test", 2)):
        with zipfile.ZipFile(real_data / "cifar10-jpeg" / f"{split}.zip") as archive:
            names = archive.namelist()
            for label in ("airplane", "bird", "truck"):
                members = sorted(name for name in names if name.startswith(f"{split}/{label}/") and name[-1] != "/")
                archive.extractall(tmp_path, members[:count])
    data = ImageFolderData(str(tmp_path), image_size=32, batch_size=4, val_fraction=1 / 3)
    data.setup("fit")
    assert [len(data.splits[name]) for name in ("train", "val", "test")] == [12, 6, 6]  # type: ignore[arg-type]
    assert labels_of(data.splits["val"]).bincount().tolist() == [2, 2, 2]
    assert next(iter(data.train_dataloader()))[0].shape == (4, 3, 32, 32)
    assert_augments_only_training(data)
    assert_trains(data, tmp_path, num_classes=3, in_channels=3)
