"""Caltech-101 from a folder like the original's, without a download."""

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.caltech import write_caltech
from lightning.pytorch import Trainer, seed_everything
from PIL import Image
from torch.utils.data import Subset
from torchvision import datasets

from lightning_prune.tasks import Caltech101Data, ImageClassifier

CLASSES = ["accordion", "brain", "camera"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Three classes of ten images, 40 high and 60 wide."""
    return str(write_caltech(tmp_path_factory.mktemp("data"), CLASSES, count=10, side=40))


def prepared(root: str, **arguments: Any) -> Caltech101Data:
    data = Caltech101Data(root, **{"image_size": 16, "batch_size": 4, **arguments})
    data.prepare_data()  # what is there is not downloaded again
    data.setup("fit")
    return data


def indices(data: Caltech101Data) -> list[list[int]]:
    parts = [data.splits[name] for name in ("train", "val", "test")]
    assert all(isinstance(part, Subset) for part in parts)
    return [list(part.indices) for part in parts]  # type: ignore[attr-defined]


def test_split_by_share_and_class_without_the_background(root: str) -> None:
    data = prepared(root, val_fraction=0.1, test_fraction=0.2)
    train, val, test = indices(data)
    assert sorted([*train, *val, *test]) == list(range(30))  # each image once, BACKGROUND_Google not at all
    for part, each in ((train, 7), (val, 1), (test, 2)):
        assert Counter(index // 10 for index in part) == {0: each, 1: each, 2: each}
    assert [data.splits["test"][n][1] for n in range(6)] == [0, 0, 1, 1, 2, 2]


def test_the_seed_decides_who_tests(root: str) -> None:
    first, same, other = (indices(prepared(root, seed=seed)) for seed in (0, 0, 1))
    assert first == same
    assert first[1] != other[1]
    assert first[2] != other[2]


@pytest.mark.parametrize("size", [16, 24])
def test_every_image_is_rgb_of_the_given_size(root: str, size: int) -> None:
    data = prepared(root, image_size=size)
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        for images, labels in loader:
            assert images.shape == (len(labels), 3, size, size)
            assert images.dtype == torch.float32


def test_images_that_do_not_train_are_the_center_normalized(root: str) -> None:
    # 40 high and 60 wide: at the size of its shorter side nothing is resized, and columns 10 to 49 stay.
    data = prepared(root, image_size=40)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    kinds = set()
    for split in ("val", "test"):
        for found, at in zip(data.splits[split], data.splits[split].indices, strict=True):  # type: ignore[attr-defined]
            file = f"{CLASSES[at // 10]}/image_{at % 10 + 1:04}.jpg"
            with Image.open(Path(root) / "caltech101" / "101_ObjectCategories" / file) as image:
                pixels = np.asarray(image)
            kinds.add(pixels.ndim)
            rgb = np.stack([pixels] * 3, axis=2) if pixels.ndim == 2 else pixels
            wanted = (torch.tensor(rgb[:, 10:50]).permute(2, 0, 1) / 255 - mean[:, None, None]) / std[:, None, None]
            torch.testing.assert_close(found[0], wanted)
            assert found[1] == at // 10
    assert kinds == {2, 3}, "a gray photograph and one in color"


def test_only_training_images_are_augmented(root: str) -> None:
    data = prepared(root)
    seed_everything(0)
    for split, different in (("train", True), ("val", False), ("test", False)):
        found = {data.splits[split][1][0].numpy().tobytes() for _ in range(20)}
        assert (len(found) > 1) == different


def test_it_trains(root: str, tmp_path: Path) -> None:
    data = Caltech101Data(root, image_size=16, batch_size=8)
    trainer = Trainer(
        fast_dev_run=True, logger=False, accelerator="cpu", enable_progress_bar=False, default_root_dir=tmp_path
    )
    classifier = ImageClassifier(num_classes=3, in_channels=3, model_args={"width": 4})
    trainer.fit(classifier, datamodule=data)
    trainer.test(classifier, datamodule=data, verbose=False)
    assert torch.isfinite(trainer.callback_metrics["test_loss"])


def test_it_is_set_up_once(root: str) -> None:
    data = prepared(root)
    before = data.splits["test"]
    data.setup("test")
    assert data.splits["test"] is before


def test_only_prepare_data_downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def download(dataset: datasets.Caltech101) -> None:
        calls.append(str(dataset.root))
        write_caltech(tmp_path, CLASSES, count=10)

    monkeypatch.setattr(datasets.Caltech101, "download", download)
    Caltech101Data(str(tmp_path), download=False).prepare_data()
    data = Caltech101Data(str(tmp_path))
    assert calls == []
    data.prepare_data()
    data.setup("fit")
    assert calls == [str(tmp_path / "caltech101")]


def test_missing_images_name_the_folder_and_the_cure(tmp_path: Path) -> None:
    data = Caltech101Data(str(tmp_path / "nowhere"), download=False)
    data.prepare_data()
    with pytest.raises(FileNotFoundError, match=r"nowhere.* holds no Caltech-101 in caltech101.*Set download=True"):
        data.setup("fit")


def test_without_scipy_the_cure_is_named(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(ImportError, match=r'needs SciPy.*pip install "lightning-prune\[recipes\]"'):
        prepared(root)


@pytest.mark.parametrize("fractions", [(0, 0.2), (0.2, 0), (0.5, 0.5), (-0.1, 0.2)])
def test_fractions_that_leave_nothing_are_refused(fractions: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="val_fraction and test_fraction above 0 and below 1 together"):
        Caltech101Data(val_fraction=fractions[0], test_fraction=fractions[1])


def test_image_size_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="Caltech101Data image_size=0 must be an integer of at least 1"):
        Caltech101Data(image_size=0)
