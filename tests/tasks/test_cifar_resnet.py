import io
import os
import re
import zipfile
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from torchvision.transforms import functional as T

from lightning_prune import prune_once
from lightning_prune.budgets import MACs
from lightning_prune.tasks import CifarResNet, ImageClassifier

DATA = os.environ.get("LIGHTNING_PRUNE_DATA")
needs_data = pytest.mark.skipif(DATA is None, reason="LIGHTNING_PRUNE_DATA names no folder with the published weights")
FILES = {20: "resnet20-12fca82f.th", 56: "resnet56-4bfd9763.th"}


@pytest.mark.parametrize(("depth", "params"), [(20, 269_722), (32, 464_154), (44, 658_586), (56, 853_018)])
def test_as_many_parameters_as_published(depth, params) -> None:
    """He et al.: 0.27 M, 0.46 M, 0.66 M, 0.85 M."""
    assert sum(p.numel() for p in CifarResNet(depth).parameters()) == params


def by_hand(state, images, blocks):
    """The network from its paper, as functions of its weights."""

    def norm(x, name):
        return F.batch_norm(x, state[f"{name}.running_mean"], state[f"{name}.running_var"], state[f"{name}.weight"],
                            state[f"{name}.bias"])  # fmt: skip

    x = norm(F.conv2d(images, state["conv1.weight"], padding=1), "bn1").relu()
    for stage, block in [(s, b) for s in (1, 2, 3) for b in range(blocks)]:
        name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
        y = norm(F.conv2d(x, state[f"{name}.conv1.weight"], stride=stride, padding=1), f"{name}.bn1").relu()
        y = norm(F.conv2d(y, state[f"{name}.conv2.weight"], padding=1), f"{name}.bn2")
        if stride == 2:
            zeros = torch.zeros(x.shape[0], x.shape[1] // 2, *y.shape[2:])
            x = torch.cat([zeros, x[:, :, ::2, ::2], zeros], 1)
        x = (x + y).relu()
    return x.mean((2, 3)) @ state["linear.weight"].T + state["linear.bias"]


@pytest.mark.parametrize("depth", [8, 20])
def test_the_network_of_the_paper(depth) -> None:
    torch.manual_seed(0)
    network = CifarResNet(depth, num_classes=7).train()
    images = torch.randn(4, 3, 32, 32)
    network(images)  # running statistics of their own
    network.eval()
    assert torch.allclose(network(images), by_hand(network.state_dict(), images, depth // 6), atol=1e-5)


def test_it_shrinks_inside_its_blocks_and_before_the_first_padding() -> None:
    network = CifarResNet(20)
    report = prune_once(network, torch.zeros(1, 3, 32, 32), budget=MACs(keep=0.4))
    assert {name for name, (before, after) in report.widths.items() if after < before} == {
        "conv1.weight", *(f"layer{s}.{b}.conv1.weight" for s in (1, 2, 3) for b in range(3))
    }  # fmt: skip
    assert "of which only some channels come from a layer" in report.frozen["layer2.0.conv2.weight"]


@needs_data
@pytest.mark.slow
@pytest.mark.parametrize("depth", FILES)
def test_the_published_weights(depth) -> None:
    """On JPEG files, whose artefacts the weights have not seen, about four in five are right."""
    network = ImageClassifier(
        "cifar_resnet", 10, model_args={"depth": depth, "weights": str(Path(DATA, "pretrained", FILES[depth]))}
    ).network.eval()
    with zipfile.ZipFile(Path(DATA, "cifar10-jpeg", "test.zip")) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".jpg"))
        classes = sorted({name.split("/")[-2] for name in names})
        chosen = names[:: len(names) // 400]
        images = torch.stack(
            [T.to_tensor(Image.open(io.BytesIO(archive.read(name))).convert("RGB")) for name in chosen]
        )
    images = T.normalize(images, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    labels = torch.tensor([classes.index(name.split("/")[-2]) for name in chosen])
    with torch.no_grad():
        right = (network(images).argmax(1) == labels).float().mean()
    assert len(classes) == 10
    assert 0.72 < right < 0.92


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 21}, "CifarResNet depth=21 must be 6n + 2"),
        ({"depth": 2}, "CifarResNet depth=2 must be 6n + 2"),
        ({"width": 0}, "CifarResNet width=0 must be an integer of at least 1"),
        ({"weights": "nowhere.th"}, "CifarResNet weights='nowhere.th' is no file"),
    ],
)
def test_arguments(arguments, message) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        CifarResNet(**arguments)


def test_weights_of_another_network(tmp_path) -> None:
    path = tmp_path / "weights.th"
    torch.save({"state_dict": {f"module.{n}": v for n, v in CifarResNet(8).state_dict().items()}}, path)
    assert torch.equal(
        CifarResNet(8, weights=str(path)).conv1.weight, torch.load(path)["state_dict"]["module.conv1.weight"]
    )
    with pytest.raises(ValueError, match="are those of another network"):
        CifarResNet(14, weights=str(path))
