"""Blocks that get more than their input (masks, a context) are removed: what is left, and what files say of it."""

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.training import same
from torch import Tensor, nn

from lightning_prune import Blocks, Channels, Report, Scope, load_pruned, prune_once
from lightning_prune.budgets import Count, Ratio
from lightning_prune.checkpoint.manifest import set_removed_modules
from lightning_prune.criteria import BlockInfluence, Random, Sensitivity
from lightning_prune.network.example_input import Example
from lightning_prune.pruners.removable_blocks import find_removable
from lightning_prune.surgery.passthrough import Passthrough, identity_for, is_identity

WIDTH = 8


def tokens(count: int, batch_first: bool = True, seed: int = 0) -> Tensor:
    values = torch.randn(3, count, WIDTH, generator=torch.Generator().manual_seed(seed))
    return values if batch_first else values.transpose(0, 1).contiguous()


def padding(count: int) -> Tensor:
    """True where a sequence has ended."""
    return torch.arange(count) >= torch.tensor([count, count - 1, count - 2])[:, None]


CAUSAL = nn.Transformer.generate_square_subsequent_mask(5)


def encoder(layers: int, **settings: Any) -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 16, dropout=0.0, **{"batch_first": True, **settings})
    return with_values(nn.TransformerEncoder(layer, layers, nn.LayerNorm(WIDTH), enable_nested_tensor=False))


def decoder(layers: int, **settings: Any) -> nn.TransformerDecoder:
    layer = nn.TransformerDecoderLayer(WIDTH, 2, 16, dropout=0.0, **{"batch_first": True, **settings})
    return with_values(nn.TransformerDecoder(layer, layers, nn.LayerNorm(WIDTH)))


def with_values(net: Any) -> Any:
    """The same every time, and others in every layer."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return net


def prune(model: nn.Module, inputs: Any, *names: str, **settings: Any) -> Report:
    settings = {"criterion": Random(), "budget": Count(len(names)), "scope": Scope(include=list(names)), **settings}
    return prune_once(model, inputs, granularity=Blocks(), **settings)


def built_without(pruned: Any, dense: Any, control: Any, *gone: int) -> nn.Module:
    """``control``, which was built with fewer layers, with the weights of the others in ``dense``."""
    left = [number for number in range(len(dense.layers)) if number not in gone]
    assert len(control.layers) == len(left)
    control.norm.load_state_dict(dense.norm.state_dict())
    for layer, number in zip(control.layers, left, strict=True):
        layer.load_state_dict(dense.layers[number].state_dict())
    assert sum(p.numel() for p in pruned.parameters()) == sum(p.numel() for p in control.parameters())
    return control


def gradients(net: nn.Module, outputs: Tensor) -> list[Tensor]:
    net.zero_grad()
    outputs.square().sum().backward()
    return [parameter.grad for parameter in net.parameters() if parameter.grad is not None]


def assert_equal(pruned: nn.Module, control: nn.Module, *args: Any, **kwargs: Any) -> None:
    """To the bit: outputs in both modes, and gradients."""
    for training in (True, False):
        outputs = [net.train(training)(*args, **kwargs) for net in (pruned, control)]
        assert torch.equal(*outputs)
        assert float(outputs[0].detach().abs().sum()) > 1
        found, expected = (gradients(net, out) for net, out in zip((pruned, control), outputs, strict=True))
        assert same(found, expected)
        assert len(found) == len(list(control.parameters()))


class Swapped(nn.Module):
    """Layers that get what goes through them behind, or before, another tensor of the same shape."""

    def __init__(self, behind: bool) -> None:
        super().__init__()
        self.behind = behind
        self.layers = nn.ModuleList(nn.TransformerDecoderLayer(WIDTH, 2, 16, 0.0, batch_first=True) for _ in range(3))

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(memory, x) if self.behind else layer(x, memory)
        return x


@pytest.mark.parametrize("behind", [True, False])
def test_where_several_inputs_could_be_handed_on_all_stay(behind: bool) -> None:
    same_shape = Example.of((tokens(5), tokens(5, seed=1)))
    removable = find_removable(Swapped(behind), same_shape)
    assert not [name for name in removable.fits if name.count(".") == 1]  # what lies in them may
    assert all("it is not known which one an identity returns" in removable.misfits[f"layers.{n}"] for n in range(3))
    if not behind:
        another = find_removable(Swapped(behind), Example.of((tokens(5), tokens(4))))
        assert list(another.blocks) == ["layers.0", "layers.1", "layers.2"]


# --- layers of PyTorch


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize(
    "masks", [{}, {"mask": CAUSAL, "is_causal": True}, {"src_key_padding_mask": padding(5)}], ids=lambda m: "+".join(m)
)
def test_layers_of_an_encoder(masks: dict[str, Any], batch_first: bool, norm_first: bool) -> None:
    settings = {"batch_first": batch_first, "norm_first": norm_first}
    net, x = encoder(4, **settings), tokens(5, batch_first)
    dense = copy.deepcopy(net)
    report = prune(net, {"src": x, **masks}, "layers.1", "layers.3")
    assert report.plan.removed_modules == ("layers.1", "layers.3")
    assert report.after.params == sum(p.numel() for p in net.parameters())
    assert not [name for name in net.state_dict() if name.startswith(("layers.1", "layers.3"))]
    assert_equal(net, built_without(net, dense, encoder(2, **settings), 1, 3), x, **masks)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_layers_of_a_decoder(masked: bool, batch_first: bool) -> None:
    net, target, memory = decoder(3, batch_first=batch_first), tokens(5, batch_first), tokens(4, batch_first, seed=1)
    masks = {"tgt_mask": CAUSAL, "tgt_is_causal": True, "memory_key_padding_mask": padding(4)} if masked else {}
    dense = copy.deepcopy(net)
    report = prune(net, {"tgt": target, "memory": memory, **masks}, "layers.1")
    assert report.plan.removed_modules == ("layers.1",)
    assert_equal(net, built_without(net, dense, decoder(2, batch_first=batch_first), 1), target, memory, **masks)


def test_the_first_layer_stays_because_pytorch_reads_its_attributes() -> None:
    net = nn.Transformer(WIDTH, 2, 3, 2, 16, batch_first=True)
    removable = find_removable(net, Example.of((tokens(5), tokens(4)), net))
    assert removable.blocks == ["encoder.layers.1", "encoder.layers.2", "decoder.layers.1"]
    for name in ("encoder.layers.0", "decoder.layers.0"):
        assert removable.frozen[name].startswith("the forward pass fails without it: ")
        assert "has no attribute 'self_attn'" in removable.frozen[name]


def test_nested_tensors_pass_through() -> None:
    """In eval mode an encoder packs what is not padding, and its layers receive that."""
    settings = nn.TransformerEncoderLayer(WIDTH, 2, 16, batch_first=True)
    net = with_values(nn.TransformerEncoder(settings, 3)).eval().requires_grad_(False)
    assert net.use_nested_tensor
    dense, x, ends = copy.deepcopy(net), tokens(5), padding(5)
    prune(net, {"src": x, "src_key_padding_mask": ends}, "layers.1")
    received: list[bool] = []
    net.layers[1].register_forward_hook(lambda module, args, output: received.append(output.is_nested))
    control = nn.TransformerEncoder(settings, 2).eval().requires_grad_(False)
    for layer, number in zip(control.layers, (0, 2), strict=True):
        layer.load_state_dict(dense.layers[number].state_dict())
    assert torch.equal(net(x, src_key_padding_mask=ends), control(x, src_key_padding_mask=ends))
    assert received == [True]


# --- blocks of one's own


class Decoding(nn.Module):
    """As in a small GPT: a mask comes along, by place or by name."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mix, self.out = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, mask: Tensor | None = None, *, scale: float = 1.0) -> Tensor:
        weights = torch.softmax(x @ x.transpose(1, 2) + (0 if mask is None else mask), -1)
        return x + scale * self.out(torch.relu(self.mix(weights @ self.norm(x))))


class GPT(nn.Module):
    def __init__(self, blocks: int = 4) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Decoding() for _ in range(blocks)])
        self.norm = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        for layer in self.layers:
            x = layer(x, mask, scale=0.5)
        return self.norm(x)


def test_blocks_of_ones_own() -> None:
    net, x = with_values(GPT()), tokens(5)
    dense = copy.deepcopy(net)
    report = prune(net, (x, CAUSAL), "layers.0", "layers.2")
    assert report.plan.removed_modules == ("layers.0", "layers.2")
    assert type(net.layers[0]) is Passthrough
    assert_equal(net, built_without(net, dense, GPT(2), 0, 2), x, CAUSAL)


def test_sensitivity_and_influence_see_the_first_argument() -> None:
    net, x = with_values(GPT()), tokens(5)
    dense, seen = copy.deepcopy(net).eval(), []
    for layer in dense.layers:
        layer.register_forward_hook(lambda module, args, output: seen.append((args[0].double(), output.double())))
    with torch.no_grad():
        whole = float(dense(x, CAUSAL).square().mean())
    expected = [float((1 - torch.cosine_similarity(a, b, dim=-1)).mean()) for a, b in seen]
    settings = {"calibrate": lambda model: model(x, CAUSAL).square().mean(), "dry_run": True, "budget": Count(1)}
    every = [f"layers.{number}" for number in range(4)]
    influence = prune(net, (x, CAUSAL), *every, criterion=BlockInfluence(), **settings).scores
    assert [float(influence[name]) for name in every] == pytest.approx(expected, rel=1e-5)
    lost = prune(net, (x, CAUSAL), *every, criterion=Sensitivity(), **settings).scores
    with torch.no_grad():
        for number, name in enumerate(every):
            without = copy.deepcopy(net)
            del without.layers[number]
            assert float(lost[name]) == pytest.approx(float(without(x, CAUSAL).square().mean()) - whole, abs=1e-6)


def test_channels_go_on_with_what_is_left() -> None:
    net, x = with_values(GPT()), tokens(5)
    prune(net, (x, CAUSAL), "layers.1")
    before = sum(p.numel() for p in net.parameters())
    prune_once(net, (x, CAUSAL), granularity=Channels(), budget=Ratio(0.5), scope=Scope(include=["layers.*.mix"]))
    assert net.layers[0].mix.out_features == WIDTH // 2
    assert sum(p.numel() for p in net.parameters()) < before
    assert net(x, CAUSAL).shape == (3, 5, 3)


# --- files


@pytest.mark.parametrize("whole", [True, False])
def test_files(tmp_path: Path, whole: bool) -> None:
    net, x = with_values(GPT()), tokens(5)
    dense = copy.deepcopy(net.state_dict())
    prune(net, (x, CAUSAL), "layers.0", "layers.2")
    if whole:
        loaded = pickle.loads(pickle.dumps(net))
    else:
        torch.save(net.state_dict(), tmp_path / "net.pt")
        loaded = load_pruned(GPT(), tmp_path / "net.pt")
    assert [type(loaded.layers[number]) for number in range(4)] == [Passthrough, Decoding, Passthrough, Decoding]
    assert torch.equal(loaded(x, CAUSAL), net(x, CAUSAL))
    assert same(dict(loaded.state_dict()), dict(net.state_dict()))
    set_removed_modules(net, [])
    net.load_state_dict(dense)
    assert not any(isinstance(layer, Passthrough) for layer in net.layers)
    assert torch.equal(net(x, CAUSAL), with_values(GPT())(x, CAUSAL))


@pytest.mark.slow
def test_exported_and_compiled() -> None:
    net, x = with_values(GPT()), tokens(5)
    prune(net, (x, CAUSAL), "layers.0", "layers.2")
    expected = net(x, CAUSAL)
    assert torch.equal(torch.export.export(net, (x, CAUSAL)).module()(x, CAUSAL), expected)
    assert torch.equal(torch.compile(net, backend="eager", fullgraph=True)(x, CAUSAL), expected)


# --- the module itself


def test_what_takes_one_argument_becomes_an_identity_of_pytorch() -> None:
    assert type(identity_for(nn.Linear(2, 2))) is nn.Identity
    assert type(identity_for(nn.Sequential(nn.Linear(2, 2)))) is nn.Identity
    for module in (Decoding(), nn.MultiheadAttention(2, 1), nn.Module()):
        assert type(identity_for(module)) is Passthrough
    traced = torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2))  # which says nothing of its arguments
    assert type(identity_for(traced)) is Passthrough


def test_it_returns_its_first_argument() -> None:
    x = torch.ones(2)
    for found in (Passthrough()(x), Passthrough()(x, None, 3), Passthrough()(x, mask=None, input=3)):
        assert found is x
    assert is_identity(Passthrough())
    assert is_identity(nn.Identity())
    assert not is_identity(nn.Linear(1, 1))
    assert not is_identity(None)
