"""Attention in common implementations: which channels and heads are removed, and removed = masked in float64."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from helpers.coupling_nets import error_between
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_prune import Channels, Scope, prune_once
from lightning_prune.budgets import Ratio
from lightning_prune.coupling import Coupling, find_coupling
from lightning_prune.network.example_input import Example
from lightning_prune.surgery.apply import zero_removed
from lightning_prune.surgery.report import Report

TOKENS = 7


class Attention(nn.Module):
    """The layers and numbers of an attention layer; ``run(layer, x)`` is its forward pass."""

    def __init__(
        self, run: Callable[..., Tensor], dim: int = 10, heads: int = 3, head_dim: int = 4, kv_heads: int | None = None
    ) -> None:
        super().__init__()
        self.run, self.dim, self.heads, self.head_dim = run, dim, heads, head_dim
        self.kv_heads = kv_heads or heads
        self.inner = heads * head_dim
        self.scale = head_dim**-0.5
        self.q, self.k, self.v = (nn.Linear(dim, n * head_dim) for n in (heads, self.kv_heads, self.kv_heads))
        self.qkv = nn.Linear(dim, 3 * self.inner)
        self.proj = nn.Linear(self.inner, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


class Net(nn.Module):
    """A residual stream around one or more layers."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        dim = layers[0].dim
        self.embed = nn.Linear(5, dim)
        self.layers = nn.ModuleList(layers)
        self.fc = nn.Linear(dim, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for layer in self.layers:
            x = x + layer(x)
        return self.fc(x.sum(1))


def data(*shape: int) -> Tensor:
    return torch.randn(*(shape or (2, TOKENS, 5)), generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def randomised(net: nn.Module, seed: int = 0) -> nn.Module:
    draw = torch.Generator().manual_seed(seed)
    net.double().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.uniform_(-1, 1, generator=draw)
    return net


def pruned(net: nn.Module, mode: str, share: float = 0.5, inputs: Any = None) -> tuple[Coupling, Report, float]:
    """Prune ``net`` in place: its analysis before, the report, and the relative error against masking."""
    inputs = data() if inputs is None else inputs
    example, masked = Example.of(inputs), copy.deepcopy(net)
    coupling = find_coupling(net, example, mode)
    report = prune_once(net, inputs, granularity=Channels(attention=mode), budget=Ratio(share))
    zero_removed(masked, report.plan)
    with torch.no_grad():
        return coupling, report, error_between(example.run(net), example.run(masked))


def short(names: Any) -> Any:
    """Names without the path of the layer."""
    return {name.replace("layers.0.", "").replace(".weight", ""): value for name, value in names.items()}


def fused(
    heads: Callable[[Any, Tensor], tuple[Tensor, ...]], back: Callable[[Any, Tensor], Tensor] | None = None
) -> Any:
    """A forward pass from queries, keys and values of shape (batch, heads, tokens, head_dim)."""

    def run(layer: Any, x: Tensor) -> Tensor:
        y = F.scaled_dot_product_attention(*heads(layer, x)).transpose(1, 2)
        return layer.proj(y.flatten(2) if back is None else back(layer, y))

    return run


def three(t: Tensor) -> tuple[Tensor, ...]:
    return tuple(t.permute(2, 0, 3, 1, 4).unbind(0))


def each(layer: Any, parts: Any, *shape: int) -> tuple[Tensor, ...]:
    return tuple(t.reshape(2, TOKENS, *shape).transpose(1, 2) for t in parts)


def separate(
    weigh: Callable[[Any, Tensor, Tensor, Tensor], Tensor], written: bool = False
) -> Callable[[Any, Tensor], Tensor]:
    def run(layer: Any, x: Tensor) -> Tensor:
        width = layer.head_dim if written else -1
        q, k, v = each(layer, (m(x) for m in (layer.q, layer.k, layer.v)), layer.heads, width)
        return layer.proj(weigh(layer, q, k, v).transpose(1, 2).reshape(2, TOKENS, layer.inner if written else -1))

    return run


def by_hand(scores: Callable[[Any, Tensor, Tensor], Tensor]) -> Callable[[Any, Tensor, Tensor, Tensor], Tensor]:
    return lambda layer, q, k, v: scores(layer, q, k).softmax(-1) @ v


def bmm(layer: Any, x: Tensor) -> Tensor:
    batch, tokens, _ = x.shape
    q, k, v = (
        m(x).view(batch, tokens, layer.heads, layer.head_dim).transpose(1, 2).reshape(-1, tokens, layer.head_dim)
        for m in (layer.q, layer.k, layer.v)
    )
    y = torch.bmm((torch.bmm(q, k.transpose(1, 2)) / math.sqrt(q.shape[-1])).softmax(-1), v)
    y = y.view(batch, layer.heads, tokens, layer.head_dim).transpose(1, 2)
    return layer.proj(y.reshape(batch, tokens, layer.inner))


def sequence_first(layer: Any, x: Tensor) -> Tensor:
    x = x.transpose(0, 1)
    tokens, batch, _ = x.shape
    q, k, v = (
        m(x).contiguous().view(tokens, batch * layer.heads, layer.head_dim).transpose(0, 1)
        for m in (layer.q, layer.k, layer.v)
    )
    y = torch.bmm((torch.bmm(q, k.transpose(1, 2)) * layer.scale).softmax(-1), v)
    return layer.proj(y.transpose(0, 1).contiguous().view(tokens, batch, layer.inner)).transpose(0, 1)


def einsum(layer: Any, x: Tensor) -> Tensor:
    q, k, v = (m(x).view(2, TOKENS, layer.heads, -1) for m in (layer.q, layer.k, layer.v))
    weights = (torch.einsum("bihd,bjhd->bhij", q, k) / q.shape[-1] ** 0.5).softmax(-1)
    return layer.proj(torch.einsum("bhij,bjhd->bihd", weights, v).flatten(2))


def causal(layer: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    mask = torch.ones(TOKENS, TOKENS, dtype=torch.bool, device=q.device).tril()
    return (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(~mask, -math.inf).softmax(-1) @ v


def slices(layer: Any, x: Tensor) -> tuple[Tensor, ...]:
    y, inner = layer.qkv(x), layer.inner
    return each(layer, (y[..., :inner], y[..., inner : 2 * inner], y[..., 2 * inner :]), layer.heads, layer.head_dim)


def by_key(scale: Callable[[Tensor], float]) -> Callable[[Any, Tensor, Tensor, Tensor], Tensor]:
    return by_hand(lambda layer, q, k: (q @ k.transpose(-2, -1)) * scale(q))


@dataclass(frozen=True)
class Kind:
    """What is known about a family of spellings, in both modes: widths after half is gone, bundles, attributes."""

    dims: dict[str, tuple[int, int]]
    dim_bundles: list[dict[str, int]]
    heads: dict[str, tuple[int, int]]
    head_bundles: list[dict[str, int]]
    stream: int = 10


FUSED = Kind(
    {"embed": (10, 5), "proj": (4, 2), "qkv": (4, 2)}, [{"proj": 1, "qkv": 1}],
    {"embed": (10, 5), "qkv": (3, 2)}, [],
)  # fmt: skip
TIED = Kind(  # the code reshapes by the width of the stream: 12 = 3 heads of 4
    {"embed": (12, 6), "proj": (4, 2), "qkv": (4, 2)}, [{"embed": 3, "proj": 1, "qkv": 1}],
    {"embed": (12, 8), "qkv": (3, 2)}, [{"embed": 4, "qkv": 1}], 12,
)  # fmt: skip
APART = Kind({"embed": (10, 5), "q": (4, 2), "v": (4, 2)}, [], {"embed": (10, 5), "q": (3, 2)}, [])
WRITTEN = Kind(  # the head width is an attribute of both
    {"embed": (10, 5), "q": (4, 2), "v": (4, 2)}, [{"q": 1, "v": 1}], {"embed": (10, 5), "q": (3, 2)}, []
)


@dataclass(frozen=True)
class Spelling:
    """A forward pass, its kind, and the attributes that follow in each mode."""

    run: Callable[..., Tensor]
    kind: Kind
    dims: dict[str, int]
    heads: dict[str, int]


BY_HEADS = {"heads": 2}
SPELLINGS = {
    "reshape(B, N, 3, heads, C // heads), back to C": Spelling(
        fused(lambda s, x: three(s.qkv(x).reshape(2, TOKENS, 3, s.heads, x.shape[-1] // s.heads)),
              lambda s, y: y.reshape(2, TOKENS, y.shape[2] * y.shape[3])),
        TIED, {}, BY_HEADS,
    ),
    "chunk, view(B, N, heads, C // heads)": Spelling(
        fused(lambda s, x: each(s, s.qkv(x).chunk(3, -1), s.heads, x.shape[-1] // s.heads)), TIED, {}, BY_HEADS
    ),
    "reshape(B, N, 3, heads, -1), unbind": Spelling(
        fused(lambda s, x: three(s.qkv(x).reshape(2, TOKENS, 3, s.heads, -1))), FUSED, {}, BY_HEADS
    ),
    "reshape(B, N, 3, heads, head_dim), indexed": Spelling(
        fused(lambda s, x: tuple(
            s.qkv(x).reshape(2, TOKENS, 3, s.heads, s.head_dim).permute(2, 0, 3, 1, 4)[i] for i in range(3)
        )),
        FUSED, {"head_dim": 2}, BY_HEADS,
    ),
    "chunk, view(B, N, heads, -1)": Spelling(
        fused(lambda s, x: each(s, s.qkv(x).chunk(3, -1), s.heads, -1)), FUSED, {}, BY_HEADS
    ),
    "split(inner)": Spelling(
        fused(lambda s, x: each(s, s.qkv(x).split(s.inner, -1), s.heads, s.head_dim),
              lambda s, y: y.reshape(2, TOKENS, s.inner)),
        FUSED, {"inner": 6, "head_dim": 2}, {"inner": 8, "heads": 2},
    ),
    "split(heads * head_dim)": Spelling(
        fused(lambda s, x: each(s, s.qkv(x).split(s.heads * s.head_dim, -1), s.heads, s.head_dim),
              lambda s, y: y.reshape(2, TOKENS, s.heads * s.head_dim)),
        FUSED, {"head_dim": 2}, BY_HEADS,
    ),
    "split([inner] * 3)": Spelling(
        fused(lambda s, x: each(s, s.qkv(x).split([s.inner] * 3, -1), s.heads, s.head_dim)),
        FUSED, {"inner": 6, "head_dim": 2}, {"inner": 8, "heads": 2},
    ),
    "slices of inner": Spelling(
        fused(slices, lambda s, y: y.reshape(2, TOKENS, s.inner)),
        FUSED,
        {"inner": 6, "head_dim": 2},
        {"inner": 8, "heads": 2},
    ),
    "view(B, N, heads, 3 * head_dim), chunk": Spelling(
        fused(lambda s, x: s.qkv(x).view(2, TOKENS, s.heads, 3 * s.head_dim).transpose(1, 2).chunk(3, -1)),
        FUSED, {"head_dim": 2}, BY_HEADS,
    ),
    "scaled_dot_product_attention": Spelling(
        separate(lambda s, q, k, v: F.scaled_dot_product_attention(q, k, v)), APART, {}, BY_HEADS
    ),
    "scaled_dot_product_attention(scale=size ** -0.5)": Spelling(
        separate(lambda s, q, k, v: F.scaled_dot_product_attention(q, k, v, scale=q.size(-1) ** -0.5)),
        APART, {}, BY_HEADS,
    ),
    "scaled_dot_product_attention(scale=self.scale)": Spelling(
        separate(lambda s, q, k, v: F.scaled_dot_product_attention(q, k, v, scale=s.scale), True),
        WRITTEN, {"head_dim": 2, "inner": 6}, {"heads": 2, "inner": 8},
    ),
    "/ math.sqrt(size)": Spelling(separate(by_key(lambda q: 1 / math.sqrt(q.size(-1)))), APART, {}, BY_HEADS),
    "/ math.sqrt(head_dim)": Spelling(
        separate(by_hand(lambda s, q, k: q @ k.mT / math.sqrt(s.head_dim)), True),
        WRITTEN, {"head_dim": 2, "inner": 6}, {"heads": 2, "inner": 8},
    ),
    "q * self.scale": Spelling(
        separate(by_hand(lambda s, q, k: (q * s.scale) @ k.mT), True),
        WRITTEN, {"head_dim": 2, "inner": 6}, {"heads": 2, "inner": 8},
    ),
    "scores * size ** -0.5": Spelling(separate(by_key(lambda q: q.shape[-1] ** -0.5)), APART, {}, BY_HEADS),
    "q * size ** -0.5": Spelling(
        separate(by_hand(lambda s, q, k: (q * q.shape[-1] ** -0.5) @ k.mT)), APART, {}, BY_HEADS
    ),
    "k / size ** 0.5": Spelling(
        separate(by_hand(lambda s, q, k: q @ (k / k.shape[-1] ** 0.5).mT)), APART, {}, BY_HEADS
    ),
    "q and k * size ** -0.25": Spelling(
        separate(by_hand(lambda s, q, k: (q * q.shape[-1] ** -0.25) @ (k * q.shape[-1] ** -0.25).mT)),
        APART, {}, BY_HEADS,
    ),
    "scores.mul_(size ** -0.5)": Spelling(
        separate(by_hand(lambda s, q, k: (q @ k.mT).mul_(q.shape[-1] ** -0.5))), APART, {}, BY_HEADS
    ),
    "scaled twice": Spelling(
        separate(by_hand(lambda s, q, k: (q * q.shape[-1] ** -0.5) @ k.mT / math.sqrt(k.shape[-1]))),
        APART, {}, BY_HEADS,
    ),
    "unscaled": Spelling(separate(by_hand(lambda s, q, k: q @ k.mT)), APART, {}, BY_HEADS),
    "causal": Spelling(separate(causal), APART, {}, BY_HEADS),
    "cosine": Spelling(
        separate(by_hand(lambda s, q, k: F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT * 10)), APART, {}, BY_HEADS
    ),
    "relu of q": Spelling(separate(by_hand(lambda s, q, k: q.relu() @ k.mT / q.shape[-1] ** 0.5)), APART, {}, BY_HEADS),
    "bmm": Spelling(bmm, WRITTEN, {"head_dim": 2, "inner": 6}, {"heads": 2, "inner": 8}),
    "sequence first": Spelling(sequence_first, WRITTEN, {"head_dim": 2, "inner": 6}, {"heads": 2, "inner": 8}),
    "einsum": Spelling(einsum, APART, {}, BY_HEADS),
    "linear attention": Spelling(
        separate(lambda s, q, k, v: q.relu() @ (k.relu().mT @ v) / TOKENS), APART, {}, BY_HEADS
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SPELLINGS)
def test_dimensions_inside_every_head(name: str) -> None:
    spelling, kind = SPELLINGS[name], SPELLINGS[name].kind
    net = randomised(Net(Attention(spelling.run, kind.stream)))
    coupling, report, error = pruned(net, "head_dims")
    assert short(report.widths) == kind.dims
    assert [short(bundle.quantum) for bundle in coupling.bundles] == kind.dim_bundles
    assert {n: getattr(net.layers[0], n) for n in spelling.dims} == spelling.dims
    assert net.layers[0].heads == 3
    assert report.inexact == {}
    assert error <= 1e-10


@pytest.mark.parametrize("name", SPELLINGS)
def test_whole_heads(name: str) -> None:
    spelling, kind = SPELLINGS[name], SPELLINGS[name].kind
    net = randomised(Net(Attention(spelling.run, kind.stream)))
    coupling, report, error = pruned(net, "heads")
    assert short(report.widths) == kind.heads
    assert [short(bundle.quantum) for bundle in coupling.bundles] == kind.head_bundles
    assert {n: getattr(net.layers[0], n) for n in spelling.heads} == spelling.heads
    assert net.layers[0].head_dim == 4
    assert report.inexact == {}
    assert error <= 1e-10
    tensor = "layers.0.q.weight" if "q" in kind.heads else "layers.0.qkv.weight"
    kept = report.plan.keep[tensor][0].reshape(-1, 4)  # whole heads
    assert torch.equal(kept, kept[:, :1] + torch.arange(4))
    assert (kept[:, 0] % 4 == 0).all()
    assert torch.equal(kept[:2, 0], report.plan.keep["layers.0.proj.weight"][1][::4]) or "3 * head_dim" in name


@pytest.mark.parametrize("mode", ["head_dims", "heads"])
@pytest.mark.parametrize("name", list(SPELLINGS)[::3])
def test_two_events_in_a_row(name: str, mode: str) -> None:
    spelling, kind = SPELLINGS[name], SPELLINGS[name].kind
    net = randomised(
        Net(Attention(spelling.run, kind.stream, heads=4, head_dim=kind.stream // 4 + 1 - kind.stream % 2))
    )
    if kind is TIED:
        net = randomised(Net(Attention(spelling.run, 16, heads=4, head_dim=4)))
    masked, example = copy.deepcopy(net), Example.of(data())
    plans = [prune_once(net, data(), granularity=Channels(attention=mode), budget=Ratio(s)).plan for s in (0.25, 0.4)]
    again = find_coupling(net, example, mode)
    for bundle in again.bundles:
        steps = {again.groups[name].size / units for name, units in bundle.quantum.items()}
        assert len(steps) == 1
    both = plans[0].then(plans[1])
    zero_removed(masked, both)
    with torch.no_grad():
        assert error_between(net(data()), masked(data())) <= 1e-10


@pytest.mark.parametrize("name", [n for n in SPELLINGS if n != "sequence first"])  # there nothing says it is a head
def test_a_single_head_is_not_removed(name: str) -> None:
    spelling = SPELLINGS[name]
    net = randomised(Net(Attention(spelling.run, 4 if spelling.kind is TIED else 10, heads=1)))
    example = Example.of(data())
    attention = {f"layers.0.{layer}.weight" for layer in ("q", "k", "v", "qkv")}
    assert {name for name, dim in prunable(find_coupling(net, example, "head_dims")) if dim == 0} & attention
    assert not {name for name, dim in prunable(find_coupling(net, example, "heads")) if dim == 0} & attention


def test_a_single_head_of_pytorchs_attention_is_not_removed() -> None:
    layer = nn.TransformerEncoderLayer(8, 1, 6, batch_first=True)
    net = nn.Sequential(nn.Linear(5, 8), layer, nn.Linear(8, 3)).double().eval()
    example = Example.of(data())
    assert ("1.self_attn.in_proj_weight", 0) in prunable(find_coupling(net, example, "head_dims"))
    left = prunable(find_coupling(net, example, "heads"))
    assert ("1.linear1.weight", 0) in left
    assert not {name for name, _ in left} & {"1.self_attn.in_proj_weight", "1.self_attn.out_proj.weight", "0.weight"}


@pytest.mark.parametrize("name", ["chunk, view(B, N, heads, -1)", "reshape(B, N, 3, heads, -1), unbind"])
def test_heads_are_removed_until_one_remains(name: str) -> None:
    net = randomised(Net(Attention(SPELLINGS[name].run, heads=4)))
    heads = {"granularity": Channels(attention="heads"), "scope": Scope(include=["layers.0.qkv"])}
    for left in (2, 1):
        prune_once(net, data(), budget=Ratio(0.5), **heads)
        assert net.layers[0].qkv.out_features == left * 12
    with pytest.raises(ValueError, match="no removable channels"):
        prune_once(net, data(), budget=Ratio(0.5), **heads)


def prunable(coupling: Coupling) -> set[tuple[str, int]]:
    """Tensors and dimensions that can become smaller."""
    return {(member.tensor, member.dim) for group in coupling.groups.values() for member in group.members}


def gpt(layer: Any, x: Tensor) -> Tensor:
    """As nanoGPT spells it."""
    batch, tokens, channels = x.size()
    q, k, v = layer.qkv(x).split(layer.dim, dim=2)
    q, k, v = (t.view(batch, tokens, layer.heads, channels // layer.heads).transpose(1, 2) for t in (q, k, v))
    y = ((q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))).softmax(-1) @ v
    return layer.proj(y.transpose(1, 2).contiguous().view(batch, tokens, channels))


@pytest.mark.parametrize("mode", ["head_dims", "heads"])
def test_as_in_nano_gpt(mode: str) -> None:
    net = randomised(Net(Attention(gpt, 12)))
    _, report, error = pruned(net, mode)
    assert short(report.widths) == (TIED.dims if mode == "head_dims" else TIED.heads)
    assert net.layers[0].dim == net.embed.out_features
    assert error <= 1e-10


def repeated(layer: Any, t: Tensor, how: str) -> Tensor:
    t = t.view(2, TOKENS, layer.kv_heads, layer.head_dim).transpose(1, 2)
    times = layer.heads // layer.kv_heads
    if how == "interleave":
        return t.repeat_interleave(times, dim=1)
    if how == "expand":
        t = t[:, :, None].expand(2, layer.kv_heads, times, TOKENS, layer.head_dim)
        return t.reshape(2, layer.heads, TOKENS, layer.head_dim)
    return t


@pytest.mark.parametrize("how", ["interleave", "expand", "enable_gqa"])
def test_grouped_queries(how: str) -> None:
    def run(layer: Any, x: Tensor) -> Tensor:
        q = layer.q(x).view(2, TOKENS, layer.heads, layer.head_dim).transpose(1, 2)
        k, v = (repeated(layer, m(x), how) for m in (layer.k, layer.v))
        y = F.scaled_dot_product_attention(q, k, v, enable_gqa=how == "enable_gqa")
        return layer.proj(y.transpose(1, 2).reshape(2, TOKENS, -1))

    net = randomised(Net(Attention(run, 10, heads=4, head_dim=6, kv_heads=2)))
    coupling, report, error = pruned(net, "head_dims")
    assert short(report.widths) == {"embed": (10, 5), "q": (6, 3), "v": (6, 3)}
    assert [short(bundle.quantum) for bundle in coupling.bundles] == [{"q": 1, "v": 1}]
    assert (net.layers[0].head_dim, error <= 1e-10, report.inexact) == (3, True, {})
    net = randomised(Net(Attention(run, 10, heads=4, head_dim=6, kv_heads=2)))
    _, report, error = pruned(net, "heads")
    assert short(report.widths) == {"embed": (10, 5), "q": (2, 1)}  # a key head with its two query heads
    assert (net.layers[0].heads, net.layers[0].kv_heads, net.layers[0].head_dim) == (2, 1, 6)
    assert (error <= 1e-10, report.inexact) == (True, {})


@pytest.mark.parametrize("how", ["broadcast", "expand"])
def test_one_key_head_for_all_queries(how: str) -> None:
    def run(layer: Any, x: Tensor) -> Tensor:
        q = layer.q(x).view(2, TOKENS, layer.heads, -1).transpose(1, 2)
        k, v = layer.k(x).unsqueeze(1), layer.v(x).unsqueeze(1)
        if how == "expand":
            k, v = (t.expand(-1, layer.heads, -1, -1) for t in (k, v))
        return layer.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(2, TOKENS, -1))

    net = randomised(Net(Attention(run, kv_heads=1)))
    _, report, error = pruned(net, "head_dims")
    assert short(report.widths) == {"embed": (10, 5), "q": (4, 2), "v": (4, 2)}
    assert (error <= 1e-10, report.inexact) == (True, {})
    assert net.layers[0].k.out_features == net.layers[0].v.out_features == 2
    net = randomised(Net(Attention(run, kv_heads=1)))
    _, report, error = pruned(net, "heads")
    assert (error <= 1e-10, report.inexact) == (True, {})


class Cross(nn.Module):
    """Attention to a second input."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.heads, self.head_dim, self.fused = 3, 4, fused
        self.embed, self.context = nn.Linear(5, 10), nn.Linear(6, 8)
        self.q, self.k, self.v = nn.Linear(10, 12), nn.Linear(8, 12), nn.Linear(8, 12)
        self.kv, self.proj, self.fc = nn.Linear(8, 24), nn.Linear(12, 10), nn.Linear(10, 3)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x, y = self.embed(x), self.context(y).tanh()
        q = self.q(x).reshape(2, TOKENS, self.heads, self.head_dim).permute(0, 2, 1, 3)
        if self.fused:
            k, v = self.kv(y).reshape(2, 4, 2, self.heads, self.head_dim).permute(2, 0, 3, 1, 4)
        else:
            k, v = (m(y).view(2, 4, self.heads, -1).transpose(1, 2) for m in (self.k, self.v))
        z = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1) @ v
        return self.fc((x + self.proj(z.transpose(1, 2).reshape(2, TOKENS, -1))).sum(1))


@pytest.mark.parametrize("fused", [False, True])
def test_cross_attention(fused: bool) -> None:
    inputs = data(), data(2, 4, 6)
    net = randomised(Cross(fused))
    coupling, report, error = pruned(net, "head_dims", inputs=inputs)
    values = {"proj": (4, 2)} if fused else {"v": (4, 2)}
    assert short(report.widths) == {"embed": (10, 5), "context": (8, 4), "q": (4, 2), **values}
    assert (net.head_dim, error <= 1e-10, report.inexact) == (2, True, {})
    assert len(coupling.bundles) == int(fused)
    net = randomised(Cross(fused))
    _, report, error = pruned(net, "heads", inputs=inputs)
    assert report.widths["q.weight"] == (3, 2)
    assert (net.heads, net.head_dim, error <= 1e-10, report.inexact) == (2, 4, True, {})


class MultiHead(nn.Module):
    """``nn.MultiheadAttention``, to itself or to a context of its own widths."""

    def __init__(self, cross: bool = False, need_weights: bool = False, dim: int = 12, **options: Any) -> None:
        super().__init__()
        self.dim, self.cross, self.need_weights = dim, cross, need_weights
        self.inner = nn.MultiheadAttention(dim, 3, **options)
        self.k, self.v = nn.Linear(5, options.get("kdim") or dim), nn.Linear(5, options.get("vdim") or dim)

    def forward(self, x: Tensor) -> Tensor:
        k = v = x
        if self.cross:
            y = torch.arange(40, dtype=x.dtype, device=x.device).view(2, 4, 5).sin()
            k, v = self.k(y).tanh(), self.v(y).tanh()
        if not self.inner.batch_first:
            x = x.transpose(0, 1)
            k, v = (k.transpose(0, 1), v.transpose(0, 1)) if self.cross else (x, x)
        y, weights = self.inner(x, k, v, need_weights=self.need_weights, average_attn_weights=False)
        y = y if weights is None else y * (1 + weights.square().sum((1, 3))[..., None])
        return y if self.inner.batch_first else y.transpose(0, 1)


IN = "inner.in_proj"
SELF = {
    "batch_first": {"batch_first": True},
    "sequence first": {},
    "without bias": {"bias": False, "batch_first": True},
}


@pytest.mark.parametrize("name", SELF)
def test_multi_head_attention(name: str) -> None:
    net = randomised(Net(MultiHead(**SELF[name])))
    coupling, report, error = pruned(net, "head_dims")
    widths = {n: w for n, w in short(report.widths).items()}
    assert widths == {"embed": (12, 6), "inner.out_proj": (4, 2), "inner.in_proj_weight": (4, 2)}
    assert [short(b.quantum) for b in coupling.bundles] == [
        {"embed": 3, "inner.out_proj": 1, "inner.in_proj_weight": 1}
    ]
    inner = net.layers[0].inner
    assert (inner.embed_dim, inner.num_heads, inner.head_dim, inner.kdim, inner.vdim) == (6, 3, 2, 6, 6)
    assert (error <= 1e-10, report.inexact) == (True, {})
    net = randomised(Net(MultiHead(**SELF[name])))
    coupling, report, error = pruned(net, "heads")
    assert short(report.widths) == {"embed": (12, 8), "inner.in_proj_weight": (3, 2)}
    assert [short(b.quantum) for b in coupling.bundles] == [{"embed": 4, "inner.in_proj_weight": 1}]
    inner = net.layers[0].inner
    assert (inner.embed_dim, inner.num_heads, inner.head_dim) == (8, 2, 4)
    assert error <= 1e-10


@pytest.mark.parametrize("mode", ["head_dims", "heads"])
@pytest.mark.parametrize(
    "options",
    [
        {"cross": True},
        {"cross": True, "kdim": 8, "vdim": 10},
        {"add_bias_kv": True},
        {"cross": True, "kdim": 8, "vdim": 10, "batch_first": True},
        {"cross": True, "kdim": 8, "vdim": 10, "bias": False},
    ],
    ids=str,
)
def test_multi_head_attention_with_other_weights_is_exact(options: dict[str, Any], mode: str) -> None:
    net = randomised(Net(MultiHead(**options)))
    _, report, error = pruned(net, mode)
    assert (error <= 1e-10, report.inexact) == (True, {})
    inner = net.layers[0].inner
    assert inner.embed_dim == net.embed.out_features < 12
    assert inner.embed_dim == inner.num_heads * inner.head_dim
    assert inner.num_heads == (3 if mode == "head_dims" else 2)
    inner.train()
    net(data()).sum().backward()


def encoder(norm_first: bool) -> nn.Module:
    layer = nn.TransformerEncoderLayer(12, 3, 20, 0.0, batch_first=True, norm_first=norm_first)
    layer.dim = 12
    return randomised(Net(layer))


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("mode", ["head_dims", "heads"])
def test_encoder_layers(mode: str, norm_first: bool) -> None:
    net = encoder(norm_first)
    layer = net.layers[0]
    coupling, report, _ = pruned(net, mode)
    tied = {"embed": 3, "self_attn.out_proj": 1, "self_attn.in_proj_weight": 1}
    tied = tied if mode == "head_dims" else {"embed": 4, "self_attn.in_proj_weight": 1}
    assert [short(bundle.quantum) for bundle in coupling.bundles] == [tied]
    assert set(report.inexact) == {"embed.weight"}  # the norms run over the stream; nothing else is touched by them
    assert (layer.linear1.out_features, layer.norm1.normalized_shape) == (10, (net.embed.out_features,))
    assert (layer.self_attn.num_heads, layer.self_attn.head_dim) == ((3, 2) if mode == "head_dims" else (2, 4))


@pytest.mark.parametrize("norm_first", [False, True])
def test_hidden_units_of_encoder_layers_are_exact(norm_first: bool) -> None:
    net = encoder(norm_first)
    masked = copy.deepcopy(net)
    report = prune_once(net, data(), scope=Scope(include=["layers.0.linear1"]))
    assert (report.widths, report.inexact) == ({"layers.0.linear1.weight": (20, 10)}, {})
    zero_removed(masked, report.plan)
    with torch.no_grad():
        assert error_between(net(data()), masked(data())) <= 1e-10


@pytest.mark.parametrize("mode", ["head_dims", "heads"])
def test_decoder_layers(mode: str) -> None:
    class Decoder(nn.TransformerDecoderLayer):
        dim = 12

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x, x.flip(1))

    net = randomised(Net(Decoder(12, 3, 20, 0.0, batch_first=True)))
    _, report, _ = pruned(net, mode)
    assert report.widths["embed.weight"] == (12, 6 if mode == "head_dims" else 8)


@pytest.mark.parametrize("cross", [False, True])
def test_attention_weights_that_are_used(cross: bool) -> None:
    options = {"kdim": 8, "vdim": 10} if cross else {}
    net = randomised(Net(MultiHead(cross=cross, need_weights=True, batch_first=True, **options)))
    _, report, error = pruned(net, "heads")
    assert error > 1e-10
    assert report.inexact


@pytest.mark.parametrize("mode", ["head_dims", "heads"])
def test_a_stack_of_layers_shrinks_its_stream_once(mode: str) -> None:
    net = randomised(Net(*(MultiHead(batch_first=True) for _ in range(3))))
    coupling, report, error = pruned(net, mode)
    (bundle,) = coupling.bundles
    per_layer = 2 if mode == "head_dims" else 1
    assert len(bundle.quantum) == 1 + 3 * per_layer
    assert bundle.quantum["embed.weight"] == (3 if mode == "head_dims" else 4)
    assert error <= 1e-10
    assert {layer.inner.embed_dim for layer in net.layers} == {net.embed.out_features}
    kept = [report.plan.keep[f"layers.{i}.inner.out_proj.weight"][1].tolist() for i in range(3)]
    assert len({tuple(k) for k in kept}) > 1  # each layer chooses its own


def biased(layer: Any, x: Tensor) -> Tensor:
    q, k, v = three(layer.qkv(x).reshape(2, TOKENS, 3, layer.heads, -1))
    y = (q @ k.mT * q.shape[-1] ** -0.5 + layer.extra(q)).softmax(-1) @ v
    return layer.proj(y.transpose(1, 2).reshape(2, TOKENS, -1))


class PerHead(nn.Module):
    """Something with one row for each head."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.table = nn.Parameter(torch.zeros((13, 3) if kind == "table" else (3, TOKENS, TOKENS)))
        steps = torch.arange(TOKENS)
        self.register_buffer("index", steps[:, None] - steps[None] + TOKENS - 1)

    def forward(self, q: Tensor) -> Tensor:
        if self.kind == "table":
            return self.table[self.index.view(-1)].view(TOKENS, TOKENS, -1).permute(2, 0, 1).contiguous().unsqueeze(0)
        return self.table[:, :TOKENS, :TOKENS]


@pytest.mark.parametrize("kind", ["table", "matrix"])
def test_relative_position_bias(kind: str) -> None:
    for mode in ("head_dims", "heads"):
        layer = Attention(biased)
        layer.extra = PerHead(kind)
        net = randomised(Net(layer))
        _, report, error = pruned(net, mode)
        assert (error <= 1e-10, report.inexact) == (True, {})
        assert report.widths["embed.weight"] == (10, 5)
        if mode == "head_dims":
            assert short(report.widths) == FUSED.dims
            assert layer.extra.table.shape == ((13, 3) if kind == "table" else (3, TOKENS, TOKENS))
        else:
            assert short(report.widths) == FUSED.heads
            assert layer.extra.table.shape == ((13, 2) if kind == "table" else (2, TOKENS, TOKENS))


@pytest.mark.parametrize("mode", ["head_dims", "heads"])
def test_heads_that_are_mixed(mode: str) -> None:
    def run(layer: Any, x: Tensor) -> Tensor:
        q, k, v = three(layer.qkv(x).reshape(2, TOKENS, 3, layer.heads, -1))
        scores = layer.talk((q @ k.mT * layer.temperature).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return layer.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(2, TOKENS, -1))

    layer = Attention(run)
    layer.talk, layer.temperature = nn.Linear(3, 3), nn.Parameter(torch.ones(3, 1, 1))
    net = randomised(Net(layer))
    _, report, error = pruned(net, mode)
    assert (error <= 1e-10, report.inexact) == (True, {})
    assert layer.heads == layer.talk.in_features == len(layer.temperature) == (3 if mode == "head_dims" else 2)


class Rotary(nn.Module):
    """Rotary position embeddings; the angles of 4 dimensions a head are buffers."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        angles = torch.arange(TOKENS, dtype=torch.float64)[:, None] * torch.tensor([1.0, 0.1], dtype=torch.float64)
        angles = torch.cat([angles, angles], -1) if how == "rotated halves" else angles
        self.register_buffer("turn", torch.polar(torch.ones_like(angles), angles))
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def forward(self, t: Tensor) -> Tensor:
        if self.how == "rotated halves":
            a, b = t.chunk(2, -1)
            return t * self.cos + torch.cat([-b, a], -1) * self.sin
        if self.how == "steps":
            turned = torch.stack([-t[..., 1::2], t[..., ::2]], -1).flatten(-2)
            return t * self.cos.repeat_interleave(2, -1) + turned * self.sin.repeat_interleave(2, -1)
        pairs = t.reshape(*t.shape[:-1], -1, 2)
        if self.how == "complex":
            return torch.view_as_real(torch.view_as_complex(pairs) * self.turn).flatten(-2)
        a, b = pairs.unbind(-1)
        return torch.stack([a * self.cos - b * self.sin, a * self.sin + b * self.cos], -1).flatten(-2)


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("mode", ["head_dims", "heads"])
@pytest.mark.parametrize("how", ["rotated halves", "steps", "pairs", "complex"])
def test_rotary_position_embeddings(how: str, mode: str, apart: bool) -> None:
    """Pairs of dimensions go together, and the scale by the width is taken up through the rotation."""

    def run(layer: Any, x: Tensor) -> Tensor:
        if apart:
            q, k, v = each(layer, (m(x) for m in (layer.q, layer.k, layer.v)), layer.heads, -1)
        else:
            q, k, v = three(layer.qkv(x).reshape(2, TOKENS, 3, layer.heads, -1))
        y = F.scaled_dot_product_attention(layer.extra(q), layer.extra(k), v)
        return layer.proj(y.transpose(1, 2).reshape(2, TOKENS, -1))

    layer = Attention(run)
    layer.extra = Rotary(how)
    net = randomised(Net(layer))
    _, report, error = pruned(net, mode)
    assert (error <= 1e-10, report.inexact) == (True, {})
    if mode == "head_dims":
        assert report.plan.scales
        assert layer.q.out_features == 6 if apart else layer.qkv.out_features == 18
    elif how == "rotated halves":
        assert short(report.widths)["q" if apart else "qkv"] == (3, 2)


@pytest.mark.parametrize("mode", ["head_dims", "heads"])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("queries", [1, 2, 3, 6, 7])
def test_learned_queries(queries: int, batch_first: bool, mode: str) -> None:
    """Attention pooling: reshapes that merge the queries, the batch and the heads have no dimension in common."""

    class Pool(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.last = nn.Linear(5, 12), nn.Linear(12, 4)
            self.query = nn.Parameter(torch.randn(1, queries, 12))
            self.attend = nn.MultiheadAttention(12, 3, batch_first=batch_first)

        def forward(self, x: Tensor) -> Tensor:
            pair = self.query.expand(len(x), -1, -1), self.embed(x)
            q, h = pair if batch_first else (t.transpose(0, 1) for t in pair)
            y, _ = self.attend(q, h, h, need_weights=False)
            return self.last(y)

    net = randomised(Pool())
    masked, x = copy.deepcopy(net), torch.randn(2, 9, 5, dtype=torch.float64)
    report = prune_once(net, x, granularity=Channels(attention=mode))
    zero_removed(masked, report.plan)
    assert report.inexact == {}
    assert torch.allclose(net(x), masked(x), rtol=1e-10, atol=1e-12)
    assert (net.attend.num_heads, net.attend.head_dim) == ((3, 2) if mode == "head_dims" else (2, 4))
    assert net.embed.out_features == (6 if mode == "head_dims" else 8)


# What is not exact, or not at all removable, must say so.

DOUBTFUL: dict[str, Callable[..., Tensor]] = {
    "layer norm of q and k": separate(
        by_hand(
            lambda s, q, k: F.layer_norm(q, q.shape[-1:]) @ F.layer_norm(k, k.shape[-1:]).mT / math.sqrt(q.shape[-1])
        )
    ),
    "softmax of q": separate(lambda s, q, k, v: (q.softmax(-1) * q.shape[-1] ** -0.5) @ (k.softmax(-2).mT @ v)),
    "cross-covariance": separate(
        lambda s, q, k, v: ((q.mT @ k).softmax(-1) @ v.mT).mT
    ),
    "gelu of q and k": separate(by_hand(lambda s, q, k: F.gelu(q) @ F.gelu(k).mT / math.sqrt(q.shape[-1]))),
    "sigmoid of q and k": separate(by_hand(lambda s, q, k: q.sigmoid() @ k.sigmoid().mT / math.sqrt(q.shape[-1]))),
    "sigmoid of q and k, unscaled": separate(  # one number more in every score, which softmax does not see
        by_hand(lambda s, q, k: q.sigmoid() @ k.sigmoid().mT)),
    "elu(q) + 1 and elu(k) + 1": separate(lambda s, q, k, v: (F.elu(q) + 1) @ ((F.elu(k) + 1).mT @ v)),
    "q is also the value": separate(lambda s, q, k, v: F.scaled_dot_product_attention(q, k, q)),
    "q is also added": separate(lambda s, q, k, v: F.scaled_dot_product_attention(q, k, v) + q),
    "q is also the key": separate(lambda s, q, k, v: F.scaled_dot_product_attention(q, q, v)),
    "rotary": separate(lambda s, q, k, v: F.scaled_dot_product_attention(rotated(q), rotated(k), v)),
    "rotary, frequencies from the width": separate(
        lambda s, q, k, v: F.scaled_dot_product_attention(rotated(q, True), rotated(k, True), v)
    ),
    "torch.tensor(size).sqrt() on the device": separate(
        by_hand(lambda s, q, k: q @ k.mT / torch.tensor(q.shape[-1], device=q.device, dtype=q.dtype).sqrt())
    ),
    "torch.tensor(size).sqrt()": separate(
        by_hand(lambda s, q, k: q @ k.mT / torch.tensor(q.shape[-1], dtype=q.dtype).sqrt())
    ),
    "q.new_tensor(size).sqrt()": separate(by_hand(lambda s, q, k: q @ k.mT / q.new_tensor(q.shape[-1]).sqrt())),
    "baddbmm(alpha=size ** -0.5)": separate(lambda s, q, k, v: scores_of(q, k).softmax(-1) @ v),
    "scale by the width of the stream": lambda s, x: separate(by_key(lambda q: x.shape[-1] ** -0.5))(s, x),
    "output scaled": separate(lambda s, q, k, v: (q @ k.mT).softmax(-1) @ v * v.shape[-1] ** -0.5),
    "d before heads": lambda s, x: s.proj(
        F.scaled_dot_product_attention(
            *(t.view(2, TOKENS, -1, s.heads).permute(0, 3, 1, 2) for t in s.qkv(x).chunk(3, -1))
        ).permute(0, 2, 3, 1).flatten(2)
    ),
    "heads before 3": fused(
        lambda s, x: s.qkv(x).view(2, TOKENS, s.heads, 3, s.head_dim).permute(3, 0, 2, 1, 4)
    ),
    "unflatten": fused(lambda s, x: three(s.qkv(x).unflatten(-1, (3, s.heads, s.head_dim)))),
    "split inside heads": fused(
        lambda s, x: s.qkv(x).view(2, TOKENS, s.heads, -1).transpose(1, 2).split([s.head_dim] * 3, -1)
    ),
    "repeated heads of q": separate(
        lambda s, q, k, v: F.scaled_dot_product_attention(q.flip(1), k.roll(1, 1), v)
    ),
}  # fmt: skip


def rotated(t: Tensor, frequencies: bool = False) -> Tensor:
    angle = torch.arange(TOKENS, device=t.device, dtype=t.dtype)[:, None]
    if frequencies:
        size = t.shape[-1]
        angle = angle / 100 ** (torch.arange(0, size, 2, device=t.device, dtype=t.dtype) / size)
    a, b = t.chunk(2, -1)
    return torch.cat([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], -1)


def scores_of(q: Tensor, k: Tensor) -> Tensor:
    batch, heads, tokens, size = q.shape
    empty = torch.empty(batch * heads, tokens, tokens, dtype=q.dtype, device=q.device)
    q, k = q.reshape(-1, tokens, size), k.reshape(-1, tokens, size)
    return torch.baddbmm(empty, q, k.transpose(1, 2), beta=0, alpha=size**-0.5).view(batch, heads, tokens, tokens)


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        (name, mode)
        for name in DOUBTFUL
        for mode in ("head_dims", "heads")
    ],
)  # fmt: skip
def test_inexact_groups_are_reported(name: str, mode: str) -> None:
    net = randomised(Net(Attention(DOUBTFUL[name])))
    _, report, error = pruned(net, mode)
    assert error <= 1e-10 or report.inexact
    assert report.widths["embed.weight"] == (10, 5)
    net.train()
    net(data()).sum().backward()


# Random attention layers

LAYER = st.tuples(
    st.sampled_from(sorted(SPELLINGS)), st.integers(1, 4), st.integers(1, 5), st.integers(0, 4), st.booleans()
)


def random_net(layers: list[tuple[str, int, int, int, bool]]) -> nn.Module:
    made: list[nn.Module] = []
    name, heads, head_dim, extra, _ = layers[0]
    stream = heads * head_dim if SPELLINGS[name].kind is TIED else heads * head_dim + extra
    for name, heads, head_dim, _, mlp in layers:
        if SPELLINGS[name].kind is TIED:
            head_dim = max(stream // heads, 1)
            heads = stream // head_dim
            if heads * head_dim != stream:
                heads, head_dim = 1, stream
        made.append(Attention(SPELLINGS[name].run, stream, heads, head_dim))
        if mlp:
            made.append(nn.Sequential(nn.Linear(stream, 6), nn.GELU(), nn.Linear(6, stream)))
    return Net(*made)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.lists(LAYER, min_size=1, max_size=3), st.sampled_from(["head_dims", "heads"]), st.integers(0, 99))
def test_random_stacks_are_exact(layers, mode, seed) -> None:
    check_random(layers, mode, seed)


@pytest.mark.slow
@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.lists(LAYER, min_size=1, max_size=3), st.sampled_from(["head_dims", "heads"]), st.integers(0, 9999))
def test_many_random_stacks_are_exact(layers, mode, seed) -> None:
    check_random(layers, mode, seed)


def check_random(layers: list[tuple[str, int, int, int, bool]], mode: str, seed: int) -> None:
    net = randomised(random_net(layers), seed)
    try:
        _, report, error = pruned(net, mode, 0.4)
    except ValueError as error_:  # a stream of one channel, for example
        if "removable" in str(error_) or "can be removed" in str(error_):
            return
        raise
    assert error <= 1e-10
    assert report.inexact == {}
