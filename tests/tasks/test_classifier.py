import math
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningCLI, ReduceLROnPlateau
from torch.nn import functional as F
from torch.optim import SGD, AdamW
from torch.optim import lr_scheduler as schedulers
from torch.utils.data import DataLoader, TensorDataset

from lightning_prune.tasks import DigitsData, ImageClassifier

SMALL: dict[str, Any] = {"width": 4}


def make_trainer(root: Path, **arguments: Any) -> Trainer:
    return Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=root,
        **arguments,
    )


def make_images(count: int, channels: int = 1, size: int = 8, classes: int = 10) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(count)
    images = torch.randn(count, channels, size, size, generator=generator)
    return images, torch.randint(classes, (count,), generator=generator)


def test_one_batch_trains_validates_and_tests(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, fast_dev_run=True)
    classifier, data = ImageClassifier(model_args=SMALL), DigitsData(batch_size=16)
    before = classifier.network.conv1.weight.detach().clone()
    trainer.fit(classifier, datamodule=data)
    assert {"train_loss", "val_loss", "val_acc"} <= set(trainer.callback_metrics)
    assert not torch.equal(classifier.network.conv1.weight, before)
    trainer.test(classifier, datamodule=data, verbose=False)
    assert {"test_loss", "test_acc"} <= set(trainer.callback_metrics)


def test_val_acc_is_on_the_progress_bar(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, fast_dev_run=True)
    trainer.fit(ImageClassifier(model_args=SMALL), datamodule=DigitsData(batch_size=16))
    assert "val_acc" in trainer.progress_bar_metrics


@pytest.mark.parametrize("split", ["val", "test"])
def test_logged_figures_equal_those_computed_by_hand(tmp_path: Path, split: str) -> None:
    torch.manual_seed(0)
    classifier = ImageClassifier(model_args=SMALL)
    images, labels = make_images(50)
    # 50 in batches of 16: the mean over batches is not the mean over images.
    loader = DataLoader(TensorDataset(images, labels), batch_size=16)
    trainer = make_trainer(tmp_path)
    run = trainer.validate if split == "val" else trainer.test
    figures = run(classifier, loader, verbose=False)[0]

    classifier.eval()
    with torch.no_grad():
        logits = classifier(images)
    correct = sum(int(row.argmax() == label) for row, label in zip(logits, labels, strict=True))
    assert figures[f"{split}_acc"] == pytest.approx(correct / 50)
    assert figures[f"{split}_loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)


def test_auxiliary_classifiers_add_three_tenths_of_their_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    classifier = ImageClassifier("googlenet", num_classes=3, in_channels=1, model_args={"init_weights": False})
    logged: dict[str, torch.Tensor] = {}
    monkeypatch.setattr(classifier, "log", lambda name, value, **_: logged.update({name: value}))
    images, labels = make_images(2, size=64, classes=3)
    torch.manual_seed(1)
    loss = classifier.training_step((images, labels), 0)
    torch.manual_seed(1)  # dropout
    logits, second, first = classifier(images)
    expected = (
        F.cross_entropy(logits, labels) + 0.3 * F.cross_entropy(second, labels) + 0.3 * F.cross_entropy(first, labels)
    )
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    assert logged["train_loss"] is loss


def test_a_network_without_its_auxiliary_classifiers_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = {"init_weights": False, "aux_logits": False}
    classifier = ImageClassifier("googlenet", num_classes=3, in_channels=1, model_args=arguments)
    monkeypatch.setattr(classifier, "log", lambda *_, **__: None)
    loss = classifier.training_step(make_images(2, size=64, classes=3), 0)
    assert math.isfinite(loss.item())


@pytest.mark.parametrize(
    ("model", "given", "expected"),
    [("small_resnet", None, 1), ("resnet18", None, 3), ("small_resnet", 3, 3), ("resnet18", 1, 1)],
)
def test_image_channels_are_those_of_the_network_unless_given(model: str, given: int | None, expected: int) -> None:
    classifier = ImageClassifier(model, in_channels=given)
    assert classifier.network.conv1.in_channels == expected
    assert classifier(torch.zeros(2, expected, 32, 32)).shape == (2, 10)


def test_the_default_optimizer_is_adamw() -> None:
    assert isinstance(ImageClassifier(model_args=SMALL).configure_optimizers(), AdamW)


def test_the_optimizer_has_every_parameter_and_its_arguments() -> None:
    classifier = ImageClassifier(model_args=SMALL, optimizer=partial(SGD, lr=0.25, momentum=0.5))
    optimizer = classifier.configure_optimizers()
    assert isinstance(optimizer, SGD)
    assert (optimizer.defaults["lr"], optimizer.defaults["momentum"]) == (0.25, 0.5)
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert held == {id(parameter) for parameter in classifier.network.parameters()}


@pytest.mark.parametrize(
    ("scheduler", "interval", "monitor"),
    [
        (partial(schedulers.StepLR, step_size=2), "epoch", None),
        (partial(schedulers.OneCycleLR, max_lr=0.1, total_steps=10), "step", None),
        (partial(ReduceLROnPlateau, monitor="val_acc", mode="max"), "epoch", "val_acc"),
    ],
)
def test_schedulers_step_when_they_should(scheduler: Any, interval: str, monitor: str | None) -> None:
    classifier = ImageClassifier(model_args=SMALL, optimizer=partial(SGD, lr=0.1, momentum=0.9), lr_scheduler=scheduler)
    config = classifier.configure_optimizers()
    assert isinstance(config["lr_scheduler"]["scheduler"], scheduler.func)
    assert config["lr_scheduler"]["scheduler"].optimizer is config["optimizer"]
    assert config["lr_scheduler"]["interval"] == interval
    assert config["lr_scheduler"].get("monitor") == monitor


def test_a_plateau_without_a_metric_is_refused() -> None:
    classifier = ImageClassifier(model_args=SMALL, lr_scheduler=schedulers.ReduceLROnPlateau)
    with pytest.raises(TypeError, match=r"Use lightning\.pytorch\.cli\.ReduceLROnPlateau with monitor="):
        classifier.configure_optimizers()


@pytest.mark.parametrize(
    ("scheduler", "expected"),
    [
        (partial(schedulers.StepLR, step_size=1, gamma=0.5), 0.1 * 0.5**2),
        (
            # An accuracy cannot grow by 100: the first epoch sets the mark, the second misses it.
            partial(
                ReduceLROnPlateau,
                monitor="val_acc",
                mode="max",
                threshold=100,
                threshold_mode="abs",
                patience=0,
                factor=0.5,
            ),
            0.05,
        ),
    ],
)
def test_schedulers_change_the_learning_rate_in_a_trainer(tmp_path: Path, scheduler: Any, expected: float) -> None:
    trainer = make_trainer(
        tmp_path, max_epochs=2, limit_train_batches=1, limit_val_batches=1, enable_checkpointing=False
    )
    classifier = ImageClassifier(model_args=SMALL, optimizer=partial(SGD, lr=0.1), lr_scheduler=scheduler)
    trainer.fit(classifier, datamodule=DigitsData(batch_size=16))
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(expected)


def assert_loads(path: Path, trained: ImageClassifier) -> dict[str, Any]:
    """The checkpoint loads without pickle, as the same network; return its hyperparameters."""
    hyperparameters = torch.load(path, weights_only=True)["hyper_parameters"]
    loaded = ImageClassifier.load_from_checkpoint(path, weights_only=True)
    images, _ = make_images(4)
    assert torch.equal(loaded.eval()(images), trained.eval()(images))
    assert isinstance(loaded.configure_optimizers(), AdamW)
    again = ImageClassifier.load_from_checkpoint(path, weights_only=True, optimizer=partial(SGD, lr=0.5))
    assert again.configure_optimizers().defaults["lr"] == 0.5
    return hyperparameters


def test_checkpoint_of_a_module_built_in_python(tmp_path: Path) -> None:
    classifier = ImageClassifier(
        model_args=SMALL,
        optimizer=lambda parameters: SGD(parameters, lr=0.1),
        lr_scheduler=lambda optimizer: schedulers.StepLR(optimizer, 1),
    )
    trainer = make_trainer(tmp_path, max_steps=2, limit_val_batches=1, enable_checkpointing=False)
    trainer.fit(classifier, datamodule=DigitsData(batch_size=16))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    hyperparameters = assert_loads(tmp_path / "last.ckpt", classifier)
    assert hyperparameters == {
        "model": "small_resnet",
        "num_classes": 10,
        "in_channels": None,
        "model_args": SMALL,
    }


CONFIG = """
seed_everything: 0
model:
  class_path: lightning_prune.tasks.ImageClassifier
  init_args:
    model_args: {width: 4}
    optimizer:
      class_path: torch.optim.SGD
      init_args: {lr: 0.2, momentum: 0.9}
    lr_scheduler:
      class_path: lightning.pytorch.cli.ReduceLROnPlateau
      init_args: {monitor: val_loss}
data:
  class_path: lightning_prune.tasks.DigitsData
  init_args: {batch_size: 16}
trainer:
  accelerator: cpu
  logger: false
  max_steps: 2
  limit_val_batches: 1
  enable_checkpointing: false
  enable_progress_bar: false
  enable_model_summary: false
"""


def test_checkpoint_of_a_module_built_from_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["fit"])
    (tmp_path / "config.yaml").write_text(CONFIG)
    cli = LightningCLI(
        args=["fit", "--config", str(tmp_path / "config.yaml"), f"--trainer.default_root_dir={tmp_path}"],
        save_config_callback=None,
        auto_configure_optimizers=False,
    )
    optimizer = cli.trainer.optimizers[0]
    assert isinstance(optimizer, SGD)
    # AdamW's own weight decay must not reach the optimizer that replaces it.
    figures = optimizer.param_groups[0]
    assert (figures["lr"], figures["momentum"], figures["weight_decay"]) == (0.2, 0.9, 0)
    assert cli.trainer.lr_scheduler_configs[0].monitor == "val_loss"
    cli.trainer.save_checkpoint(tmp_path / "last.ckpt")
    hyperparameters = assert_loads(tmp_path / "last.ckpt", cli.model)
    assert {"optimizer", "lr_scheduler"}.isdisjoint(hyperparameters)
    assert hyperparameters["model_args"] == SMALL
