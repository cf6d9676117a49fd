"""One operation between two layers: removing channels equals masking them, for every operation with a rule."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from helpers.coupling_nets import Net, conv, groups_of, image, pooled, removal_error
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import ops

from lightning_prune.coupling import find_coupling
from lightning_prune.network.example_input import Example

WIDTH = 8


@dataclass(frozen=True)
class Op:
    """What lies between a convolution ``a`` of 8 channels and a convolution ``b`` that reads ``read`` of them.

    ``units`` is the size of the group of ``a`` and ``owns`` how many channels of ``a`` and ``b`` a unit owns.
    """

    run: Callable[[Any, Tensor], Tensor]
    read: int = WIDTH
    units: int = WIDTH
    owns: tuple[int, int] = (1, 1)
    inexact: str = ""


def gathered(net: Any, x: Tensor) -> Tensor:
    return x.gather(2, torch.tensor([3, 0, 1], device=x.device).view(1, 1, 3, 1).expand(len(x), x.shape[1], 3, 8))


def scattered(net: Any, x: Tensor) -> Tensor:
    rows = torch.tensor([3, 0, 1, 1, 2, 5, 6, 7], device=x.device).view(1, 1, 8, 1)
    return torch.zeros(x.shape, dtype=x.dtype, device=x.device).scatter_add_(2, rows.expand(x.shape), x)


def written(net: Any, x: Tensor) -> Tensor:
    y = torch.zeros(len(x) + 1, *x.shape[1:], dtype=x.dtype, device=x.device)
    y[torch.tensor([2, 0], device=x.device)] = x
    return y


def unpooled(net: Any, x: Tensor) -> Tensor:
    y, where = F.max_pool2d(x, 2, return_indices=True)
    return F.max_unpool2d(y, where, 2)


def regions(run: Callable[..., Tensor], **options: Any) -> Callable[[Any, Tensor], Tensor]:
    boxes = torch.tensor([[0, 1, 1, 6, 6], [1, 0, 2, 5, 7]])

    def apply(net: Any, x: Tensor) -> Tensor:
        found: Tensor = run(x, boxes.to(x.device, x.dtype), **options)
        return found

    return apply


def sampled(net: Any, x: Tensor) -> Tensor:
    grid = F.affine_grid(torch.eye(2, 3, device=x.device, dtype=x.dtype).repeat(len(x), 1, 1) * 0.7, [len(x), 1, 4, 4])
    return F.grid_sample(x, grid, align_corners=False)


def picked(net: Any, x: Tensor) -> Tensor:
    return x[torch.tensor([1, 0, 1], device=x.device)]


def advanced(net: Any, x: Tensor) -> Tensor:
    rows, columns = torch.tensor([1, 2, 3], device=x.device), torch.tensor([0, 5, 1], device=x.device)
    return x[:, :, rows, columns].unsqueeze(-1)


def apart(net: Any, x: Tensor) -> Tensor:
    """Indices with a slice between them: what they pick comes first."""
    which, columns = torch.tensor([1, 0, 0], device=x.device), torch.tensor([0, 5, 1], device=x.device)
    return x[which, :, :, columns].unsqueeze(-1)


def apart_behind_channels(net: Any, x: Tensor) -> Tensor:
    which, columns = torch.tensor([1, 0, 0], device=x.device), torch.tensor([0, 5, 1], device=x.device)
    return x.transpose(0, 1)[:, which, :, columns].unsqueeze(-1)


def overwritten(net: Any, x: Tensor) -> Tensor:
    y = x.flip(1).clone()
    y[torch.tensor([1], device=x.device)] = x[:1]
    return y


def softmax_gate(net: Any, x: Tensor) -> Tensor:
    return x * pooled(x).softmax(1)[:, :, None, None]


def spectrum(net: Any, x: Tensor) -> Tensor:
    return torch.fft.irfft2(torch.fft.rfft2(x) * 0.5, s=(8, 8))


def block_attention(net: Any, x: Tensor) -> Tensor:
    seen = torch.cat([x.amax(1, keepdim=True), x.mean(1, keepdim=True)], 1)
    return x * seen.sum(1, keepdim=True).sigmoid().expand_as(x)


def resized(**options: Any) -> Callable[[Any, Tensor], Tensor]:
    return lambda net, x: F.interpolate(x, **options)


def beside(tensor: Callable[..., Tensor]) -> Callable[[Any, Tensor], Tensor]:
    return lambda net, x: x * tensor(x.shape[1], 1, 1, dtype=x.dtype, device=x.device) + x


OPS = {
    "pixel_shuffle": Op(lambda net, x: F.pixel_shuffle(x, 2), 2, 2, (4, 1)),
    "pixel_unshuffle": Op(lambda net, x: F.pixel_unshuffle(x, 2), 32, 8, (1, 4)),
    "channel_shuffle": Op(lambda net, x: F.channel_shuffle(x, 2), units=4, owns=(2, 2)),
    "glu": Op(lambda net, x: F.glu(x, 1), 4, 4, (2, 1)),
    "im2col": Op(lambda net, x: F.unfold(x, 3).unsqueeze(-1), 72, 8, (1, 9)),
    "col2im": Op(lambda net, x: F.fold(x.flatten(2)[:, :, :9], (4, 4), 2), 2, 2, (4, 1)),
    "unfold": Op(lambda net, x: x.unfold(2, 3, 2).flatten(3)),
    "grid_sample": Op(sampled),
    "roi_align": Op(regions(ops.roi_align, output_size=3)),
    "roi_pool": Op(regions(ops.roi_pool, output_size=3)),
    "ps_roi_align": Op(regions(ops.ps_roi_align, output_size=2), 2, 2, (4, 1)),
    "ps_roi_pool": Op(regions(ops.ps_roi_pool, output_size=2), 2, 2, (4, 1)),
    "index": Op(picked),
    "index of two dimensions": Op(advanced),
    "index of dimensions apart": Op(apart),
    "index of dimensions apart behind the channels": Op(apart_behind_channels),
    "index_put into other channels": Op(overwritten, units=4, owns=(2, 2)),
    "index_select": Op(lambda net, x: x.index_select(2, torch.tensor([1, 4], device=x.device))),
    "index_put": Op(written),
    "gather": Op(gathered),
    "scatter_add": Op(scattered),
    "index_add": Op(lambda net, x: x.index_add(2, torch.tensor([1, 4], device=x.device), x[:, :, :2])),
    "masked_fill": Op(lambda net, x: x.masked_fill(x > 0.3, 0.5)),
    "where": Op(lambda net, x: torch.where(x > 0, x, 0.1 * x)),
    "flip": Op(lambda net, x: x.flip(1)),
    "cumsum": Op(lambda net, x: x.cumsum(1)),
    "max_unpool": Op(unpooled),
    "adaptive_max_pool": Op(lambda net, x: F.adaptive_max_pool2d(x, 2)),
    "avg_pool": Op(lambda net, x: F.avg_pool2d(x, 2, 1)),
    "avg_pool with padding": Op(lambda net, x: F.avg_pool2d(x, 3, 2, 1)),
    "lp_pool": Op(lambda net, x: F.lp_pool2d(x.abs() + 1, 2, 2)),
    "upsample nearest": Op(resized(scale_factor=2)),
    "upsample bilinear": Op(resized(scale_factor=2, mode="bilinear")),
    "upsample bicubic": Op(resized(size=5, mode="bicubic")),
    "upsample area": Op(resized(size=5, mode="area")),
    "upsample antialiased": Op(resized(size=5, mode="bilinear", antialias=True)),
    "upsample nearest-exact": Op(resized(size=5, mode="nearest-exact")),
    "pad reflect": Op(lambda net, x: F.pad(x, (1, 1, 1, 1), mode="reflect")),
    "pad replicate": Op(lambda net, x: F.pad(x, (1, 1, 1, 1), mode="replicate")),
    "pad circular": Op(lambda net, x: F.pad(x, (1, 1, 1, 1), mode="circular")),
    "rot90": Op(lambda net, x: x.rot90(1, (2, 3))),
    "diagonal": Op(lambda net, x: x.diagonal(dim1=2, dim2=3).unsqueeze(-1)),
    "diag_embed": Op(lambda net, x: x.mean(3).diag_embed()),
    "normalize": Op(lambda net, x: F.normalize(x, dim=1)),
    "sum": Op(lambda net, x: x * x.sum(1, keepdim=True)),
    "sum of squares": Op(lambda net, x: x / (1 + x.relu().square().sum(1, keepdim=True))),
    "sum of gates": Op(lambda net, x: x * x.sigmoid().sum(1, keepdim=True), inexact="sum .* not 0 there"),
    "sum of gated": Op(lambda net, x: x * (x * x.sigmoid()).sum(1, keepdim=True)),
    "sum of shifted": Op(lambda net, x: x * (x + 1).sum(1, keepdim=True), inexact="sum .* not 0 there"),
    "sum of sums": Op(lambda net, x: x * x.cumsum(1).sum(1, keepdim=True), inexact="sum .* not 0 there"),
    "mean": Op(lambda net, x: x - x.mean(1, keepdim=True), inexact="mean over the channels"),
    "var": Op(lambda net, x: x / (1 + x.var(1, keepdim=True)), inexact="var over the channels"),
    "amax": Op(lambda net, x: x * x.amax(1, keepdim=True), inexact="amax over the channels"),
    "max": Op(lambda net, x: x * x.max(1, keepdim=True)[0], inexact="max over the channels"),
    "median": Op(lambda net, x: x * x.median(1, keepdim=True)[0], inexact="median over the channels"),
    "kthvalue": Op(lambda net, x: x * x.kthvalue(2, 1)[0][:, None], inexact="kthvalue over the channels"),
    "topk": Op(lambda net, x: x * x.topk(2, 1)[0].sum(1, keepdim=True), inexact="topk over the channels"),
    "logsumexp": Op(lambda net, x: x * x.logsumexp(1, keepdim=True), inexact="logsumexp over the channels"),
    "softmax": Op(softmax_gate, inexact="softmax over the channels"),
    "local_response_norm": Op(lambda net, x: F.local_response_norm(x, 3), inexact="neighboring channels"),
    "block attention": Op(block_attention, inexact="over the channels"),
    "expand_as": Op(lambda net, x: x * x[:, :, :1].mean((2, 3), keepdim=True).expand_as(x)),
    "zeros": Op(beside(torch.zeros)),
    "ones": Op(beside(torch.ones)),
    "fft": Op(spectrum),
    "complex": Op(lambda net, x: torch.view_as_real(torch.complex(x, x * 2)).sum(-1)),
    "clamp": Op(lambda net, x: x.clamp(-0.5, 0.5)),
    "lerp": Op(lambda net, x: torch.lerp(x, x.tanh(), 0.3)),
    "addcmul": Op(lambda net, x: torch.addcmul(x, x, x, value=0.5)),
    "instance_norm": Op(lambda net, x: F.instance_norm(x)),
    "dropout": Op(lambda net, x: F.dropout2d(x, 0.5, net.training)),
    "unbind and stack": Op(lambda net, x: torch.stack(x.unbind(2)[::-1], 2)),
    "unbind the batch": Op(lambda net, x: torch.stack([y.relu() for y in x.unbind(0)])),
    "repeat_interleave": Op(lambda net, x: x.repeat_interleave(2, 1), 16, 8, (1, 2)),
}


def net_around(op: Op) -> Net:
    """A convolution, the operation, and a convolution that reads its result."""
    net = Net(
        lambda net, x: net.head(pooled(net.b(op.run(net, net.a(x))).tanh())),
        a=conv(3, WIDTH), b=conv(op.read, 5, 1), head=nn.Linear(5, 3),
    )  # fmt: skip
    return net.double()


@pytest.mark.parametrize("name", OPS)
def test_units_are_those_written_down_by_hand(name: str) -> None:
    op = OPS[name]
    coupling = find_coupling(net_around(op), Example.of(image().double()))
    made, read = op.owns
    assert groups_of(coupling) == {
        "a.weight": (op.units, {("a.weight", 0): made, ("a.bias", 0): made, ("b.weight", 1): read}),
        "b.weight": (5, {("b.weight", 0): 1, ("b.bias", 0): 1, ("head.weight", 1): 1}),
    }
    assert coupling.frozen == {"head.weight": "output of the network"}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", [name for name, op in OPS.items() if not op.inexact])
def test_removing_equals_masking(name: str, seed: int) -> None:
    torch.manual_seed(seed)
    net = net_around(OPS[name])
    assert all(group.inexact is None for group in find_coupling(net, Example.of(image().double())).groups.values())
    assert removal_error(net, image().double(), seed) <= 1e-10


@pytest.mark.parametrize("name", [name for name, op in OPS.items() if op.inexact])
def test_operations_that_depend_on_the_number_of_channels_are_reported_as_inexact(name: str) -> None:
    net = net_around(OPS[name])
    found = find_coupling(net, Example.of(image().double())).groups["a.weight"].inexact
    assert re.search(OPS[name].inexact, str(found))
    removal_error(net, image().double())
    assert net.a.out_channels < WIDTH
    assert net(image().double()).shape == (2, 3)
