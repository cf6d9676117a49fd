"""Which modules can be removed as a whole: hand-built cases, and networks that people use."""

from typing import Any

import pytest
import torch
from helpers.residual import Block, residual_net
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import models

from lightning_prune import Scope
from lightning_prune.network.example_input import Example
from lightning_prune.network.size import count_macs
from lightning_prune.pruners.removable_blocks import Cost, Removable, find_removable, why_it_fails
from lightning_prune.tasks.networks import SmallResNet

IMAGE = torch.zeros(2, 2, 3, 4)


def found(net: nn.Module, inputs: Any = IMAGE) -> Removable:
    return find_removable(net, Example.of(inputs, net))


def names(net: nn.Module, scope: Scope, inputs: Any = IMAGE) -> list[str]:
    return found(net, inputs).within(scope, net)[0]


# --- networks of torchvision


def test_resnet18() -> None:
    removable = found(models.resnet18(weights=None), torch.zeros(1, 3, 32, 32))
    assert removable.blocks == ["layer1.0", "layer1.1", "layer2.1", "layer3.1", "layer4.1"]
    assert removable.frozen["layer2.0"] == "it turns (2, 64, 8, 8) into (2, 128, 4, 4)"
    assert list(removable.frozen) == ["conv1", "layer2.0", "layer3.0", "layer4.0", "fc"]


def test_mobilenet_v2() -> None:
    net = models.mobilenet_v2(weights=None)
    with_shortcut = [f"features.{n}" for n, block in enumerate(net.features) if getattr(block, "use_res_connect", 0)]
    assert found(net, torch.zeros(1, 3, 32, 32)).blocks == with_shortcut
    assert len(with_shortcut) == 10


def test_vision_transformer() -> None:
    net = models.VisionTransformer(32, 8, num_layers=3, num_heads=2, hidden_dim=16, mlp_dim=32)
    removable = found(net, torch.zeros(1, 3, 32, 32))
    assert removable.blocks == [f"encoder.layers.encoder_layer_{n}" for n in range(3)]
    assert list(removable.frozen) == ["conv_proj", "heads"]


@pytest.mark.parametrize(
    ("net", "kind"),
    [(models.convnext_tiny, "CNBlock"), (models.swin_t, "SwinTransformerBlock"), (models.efficientnet_b0, "MBConv"),
     (models.regnet_y_400mf, "ResBottleneckBlock")],
)  # fmt: skip
def test_blocks_and_not_the_stages_that_hold_them(net: Any, kind: str) -> None:
    network = net(weights=None)
    removable = found(network, torch.zeros(1, 3, 32, 32))
    assert {type(network.get_submodule(name)).__name__ for name in removable.blocks} == {kind}
    assert len(removable.blocks) >= 9


def test_vgg_has_layers() -> None:
    net = models.vgg11(weights=None)
    square = ["features.8", "features.13", "features.16", "features.18", "classifier.3"]
    assert found(net, torch.zeros(1, 3, 32, 32)).blocks == square


# --- by hand


def test_costs_are_those_of_the_modules() -> None:
    net = residual_net()
    removable = found(net)
    one = 6 * 6 * 9 + 6 + 12 + 6 * 6 + 6
    assert removable.fits["1"] == Cost(one, (6 * 6 * 9 + 6 * 6) * 12)
    assert removable.fits["1.conv2"] == Cost(6 * 6 + 6, 6 * 6 * 12)
    assert removable.whole == Cost(sum(p.numel() for p in net.parameters()), count_macs(net, Example.of(IMAGE)))


def test_layers_of_a_plain_network_go_and_activations_stay() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.PReLU(8), nn.LayerNorm(8), nn.Linear(8, 2))
    removable = found(net, torch.zeros(3, 4))
    assert removable.blocks == ["2"]
    assert removable.frozen == {"0": "it turns (2, 4) into (2, 8)", "5": "it turns (2, 8) into (2, 2)"}


def test_a_stem_that_repeats_itself_inside_a_block_is_no_block() -> None:
    removable = found(SmallResNet(in_channels=2, width=4, blocks=2), torch.zeros(2, 2, 8, 8))
    assert removable.blocks == ["layer1.0", "layer1.1", "layer2.1", "layer3.1"]
    assert "layer2.0.conv2" in removable.fits  # where a scope asks for it


class Encoder(nn.Module):
    """Iterates over a list; attention and the hidden layers have shortcuts of their own."""

    def __init__(self, mask: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Layer() for _ in range(3)])
        self.head, self.mask = nn.Linear(8, 2), mask

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x, torch.zeros(())) if self.mask else layer(x)
        return self.head(x.mean(1))


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm, self.mlp = nn.LayerNorm(8), nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))

    def forward(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
        x = x + self.attention(x, x, x)[0]
        return x + self.mlp(self.norm(x)) + (0 if shift is None else shift)


TOKENS = torch.zeros(2, 5, 8)


def test_a_list_that_forward_iterates_over() -> None:
    assert found(Encoder(), TOKENS).blocks == ["layers.0", "layers.1", "layers.2"]


def test_a_list_whose_blocks_get_more_than_their_input() -> None:
    assert found(Encoder(mask=True), TOKENS).blocks == ["layers.0", "layers.1", "layers.2"]


class Odd(nn.Module):
    """Every way not to fit."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.never, self.read = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.tied, self.tie = nn.Linear(8, 8), nn.Linear(8, 8)
        self.tie.weight = self.tied.weight
        self.one = self.other = nn.Linear(8, 8)
        self.pair, self.halved, self.fine = nn.LSTM(8, 8), Half(), nn.Linear(8, 8)
        self.named = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.twice(self.twice(x)) + self.read(x) * self.read.weight.mean()
        x = self.pair(self.tie(self.tied(self.other(x))))[0]
        return self.named(input=self.fine(self.halved(x).float()))


class Half(nn.Linear):
    def __init__(self) -> None:
        super().__init__(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).bfloat16()


def test_reasons() -> None:
    removable = found(Odd(), torch.zeros(3, 8))
    assert removable.blocks == ["fine"]
    reasons = dict(removable.frozen)
    assert "'Identity' object has no attribute 'weight'" in reasons.pop("read")
    assert reasons == {
        "twice": "a forward pass calls it 2 times",
        "tied": "it shares a parameter with 'tie.weight'",
        "tie": "it shares a parameter with 'tied.weight'",
        "one": "the network contains it, or a part of it, also under the name 'other'",
        "named": "its input is not its first positional argument; call it as block(x, mask=mask)",
        "pair": "its first argument or its output is not one tensor",
        "halved": "it turns torch.float32 into torch.bfloat16",
    }


def test_a_network_is_no_block_of_itself() -> None:
    class Denoiser(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

    removable = found(Denoiser(), torch.zeros(2, 4))
    assert removable.frozen == {"net": "it holds all parameters of the network"}


def test_blocks_that_cannot_go_together() -> None:
    class Either(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            if isinstance(self.a, nn.Identity) and isinstance(self.b, nn.Identity):
                raise RuntimeError("one of them has to stay")
            return self.head(self.b(self.a(x)))

    net, example = Either(), Example.of(torch.zeros(2, 4))
    assert find_removable(net, example).blocks == ["a", "b"]
    assert why_it_fails(net, example, ["a"]) == {}
    (failing,) = why_it_fails(net, example, ["b", "a"]).items()
    assert failing == ("a", "together with others: the forward pass fails without it: one of them has to stay")


def test_control_flow_that_reads_values() -> None:
    """Where a meta copy cannot run, a real one does."""

    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.gated, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            return self.head(F.relu(self.gated(x)) if float(x.sum()) < 1e9 else x)

    assert found(Gated(), torch.ones(2, 4)).blocks == ["first", "gated"]


# --- scopes


def test_a_scope_restricts() -> None:
    net = residual_net()
    names_, reasons = found(net).within(Scope(include=["2", "3"], exclude=["3.bn"]), net)
    assert names_ == ["2"]
    assert {name: reasons[name] for name in "134"} == {
        "1": "outside the scope",
        "3": "the scope excludes '3.bn'",
        "4": "outside the scope",
    }


def test_patterns_on_what_holds_the_blocks_pick_the_blocks() -> None:
    net = models.resnet18(weights=None)
    image = torch.zeros(1, 3, 32, 32)
    assert names(net, Scope(include=["layer1"]), image) == ["layer1.0", "layer1.1"]
    assert names(net, Scope(include=["layer*.*"], exclude=["layer1"]), image) == ["layer2.1", "layer3.1", "layer4.1"]
    assert names(net, Scope(types=["BasicBlock"]), image) == found(net, image).blocks


def test_a_pattern_that_matches_no_block_picks_what_it_names() -> None:
    net = Encoder()
    assert names(net, Scope(include=["layers.*.mlp"]), TOKENS) == ["layers.0.mlp", "layers.1.mlp", "layers.2.mlp"]
    both = names(net, Scope(include=["layers.0", "layers.?.mlp"]), TOKENS)
    assert both == ["layers.0", "layers.1.mlp", "layers.2.mlp"]


def test_averaged_copies_are_no_blocks() -> None:
    class Averaging(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.online, self.average = residual_net(), torch.optim.swa_utils.AveragedModel(residual_net())

        def forward(self, x: Tensor) -> Tensor:
            return self.online(x)

    assert found(Averaging()).blocks == ["online.1", "online.2", "online.3", "online.4"]


def test_the_network_is_left_as_it_is() -> None:
    net = residual_net().train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    found(net)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert net.training
    assert isinstance(net[1], Block)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
