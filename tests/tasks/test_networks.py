import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from torch import nn
from torchvision import models

from lightning_prune.tasks import DigitsData, ImageClassifier, SmallResNet
from lightning_prune.tasks.build import build_network


@pytest.mark.parametrize(("size", "channels"), [(8, 1), (28, 1), (32, 3)])
def test_small_resnet_takes_every_image_size(size: int, channels: int) -> None:
    network = SmallResNet(num_classes=7, in_channels=channels, width=4, blocks=2)
    assert network(torch.zeros(2, channels, size, size)).shape == (2, 7)


def test_small_resnet_counts_its_parameters_as_resnet20() -> None:
    # He et al. give 0.27 M for ResNet-20; the two projections instead of parameter-free shortcuts add
    # 16*32 + 2*32 and 32*64 + 2*64 parameters.
    network = SmallResNet(num_classes=10, in_channels=3, width=16, blocks=3)
    without_projections = sum(p.numel() for p in network.parameters()) - (16 * 32 + 64) - (32 * 64 + 128)
    assert without_projections == 269_722


def test_small_resnet_block_adds_its_shortcut() -> None:
    block = SmallResNet(width=4).layer1[0].eval()
    for parameter in block.bn2.parameters():
        nn.init.zeros_(parameter)
    features = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(block(features), features.relu())


@pytest.mark.parametrize("argument", ["num_classes", "in_channels", "width", "blocks"])
def test_small_resnet_names_the_argument_that_is_too_small(argument: str) -> None:
    with pytest.raises(ValueError, match=f"SmallResNet {argument}=0 must be an integer of at least 1"):
        SmallResNet(**{argument: 0})


def test_small_resnet_learns_the_digits(tmp_path) -> None:
    seed_everything(0)
    classifier = ImageClassifier(
        model_args={"width": 8}, optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=0.01)
    )
    trainer = Trainer(
        max_epochs=5,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    data = DigitsData(batch_size=64)
    trainer.fit(classifier, datamodule=data)
    assert trainer.callback_metrics["val_acc"] > 0.9
    assert trainer.test(classifier, datamodule=data, verbose=False)[0]["test_acc"] > 0.9


@pytest.mark.parametrize(
    "name", ["resnet18", "mobilenet_v3_small", "squeezenet1_1", "densenet121", "vit_b_32", "swin_t"]
)
def test_torchvision_networks_take_gray_images_and_any_number_of_classes(name: str) -> None:
    size = 224 if name == "vit_b_32" else 64
    network = build_network(name, num_classes=5, in_channels=1).eval()
    with torch.no_grad():
        assert network(torch.zeros(1, 1, size, size)).shape == (1, 5)


def test_in_every_torchvision_network_only_the_first_convolution_sees_the_image() -> None:
    # What build_network relies on. RegNets cannot be made on the meta device: one of them for all.
    with torch.device("meta"):
        networks = {
            name: models.get_model(name, weights=None, num_classes=10)
            for name in models.list_models(module=models)
            if not name.startswith(("regnet", "googlenet", "inception"))
        }
    networks["regnet_y_400mf"] = models.get_model("regnet_y_400mf", weights=None)
    for name in ("googlenet", "inception_v3"):
        networks[name] = models.get_model(name, weights=None, init_weights=False)
    for name, network in networks.items():
        channels = [module.in_channels for module in network.modules() if isinstance(module, nn.Conv2d)]
        assert channels[0] == 3, name
        assert 3 not in channels[1:], name


def test_gray_stem_equals_feeding_the_image_to_all_three_channels() -> None:
    torch.manual_seed(3)
    color = build_network("resnet18", num_classes=5, in_channels=3)
    torch.manual_seed(3)
    gray = build_network("resnet18", num_classes=5, in_channels=1)
    images = torch.randn(2, 1, 32, 32)
    assert torch.allclose(gray.conv1(images), color.conv1(images.expand(-1, 3, -1, -1)), atol=1e-5)


@pytest.fixture
def no_download(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that are all 0.5 instead of downloaded ones."""

    def filled(weights, **_):
        name = {"ResNet18_Weights": "resnet18", "GoogLeNet_Weights": "googlenet"}[type(weights).__name__]
        arguments = {"init_weights": False} if name == "googlenet" else {}
        state = models.get_model(name, weights=None, **arguments).state_dict()
        return {key: torch.full_like(tensor, 0.5) for key, tensor in state.items()}

    monkeypatch.setattr(models.WeightsEnum, "get_state_dict", filled)


@pytest.mark.usefixtures("no_download")
def test_pretrained_weights_are_kept_but_for_a_classifier_of_another_size() -> None:
    network = build_network("resnet18", num_classes=10, in_channels=3, arguments={"weights": "DEFAULT"})
    assert network.fc.weight.shape == (10, 512)
    assert not torch.all(network.fc.weight == 0.5)
    kept = [value for name, value in network.named_parameters() if not name.startswith("fc")]
    assert all(torch.all(value == 0.5) for value in kept)

    same = build_network("resnet18", num_classes=1000, in_channels=3, arguments={"weights": "IMAGENET1K_V1"})
    assert torch.all(same.fc.weight == 0.5)


@pytest.mark.usefixtures("no_download")
def test_pretrained_googlenet_takes_gray_images() -> None:
    network = build_network("googlenet", num_classes=4, in_channels=1, arguments={"weights": "DEFAULT"}).eval()
    assert torch.all(network.conv1.conv.weight == 1.5)
    assert network(torch.zeros(1, 1, 64, 64)).shape == (1, 4)


def test_unknown_weights_list_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"weights='V9'; 'resnet50' has IMAGENET1K_V1, IMAGENET1K_V2, DEFAULT"):
        build_network("resnet50", num_classes=10, in_channels=3, arguments={"weights": "V9"})


@pytest.mark.parametrize(
    ("name", "closest"),
    [("resnet19", "'resnet18'"), ("smal_resnet", "'small_resnet'"), ("MobileNetV2", "'mobilenet_v2'")],
)
def test_unknown_network_names_the_closest(name: str, closest: str) -> None:
    with pytest.raises(ValueError, match=rf"model='{name}' is no known network\. Did you mean .*{closest}.*\?"):
        ImageClassifier(name)


def test_unknown_network_without_a_close_name_says_where_the_names_are() -> None:
    with pytest.raises(
        ValueError,
        match=r"no known network\. Known are 'small_resnet', 'small_vit', 'cifar_resnet' and the names in torchvision",
    ):
        ImageClassifier("zzzz")


def test_detection_networks_are_no_classifiers() -> None:
    with pytest.raises(ValueError, match="is no known network"):
        ImageClassifier("fasterrcnn_resnet50_fpn")


@pytest.mark.parametrize("name", ["small_resnet", "resnet18"])
def test_wrong_network_argument_is_named(name: str) -> None:
    with pytest.raises(TypeError, match=rf"model='{name}' does not take model_args=.*depth"):
        ImageClassifier(name, model_args={"depth": 3})


@pytest.mark.parametrize("argument", ["num_classes", "in_channels"])
def test_sizes_below_one_are_refused(argument: str) -> None:
    with pytest.raises(ValueError, match=f"{argument}=0 must be an integer of at least 1"):
        ImageClassifier("resnet18", **{argument: 0})
