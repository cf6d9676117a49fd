"""Scalars that depend on a width: the weights that compensate for them, and no inexact group without a reason."""

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_prune import Scope, prune_once
from lightning_prune.budgets import Ratio
from lightning_prune.coupling import find_coupling
from lightning_prune.coupling.symbols.constants import scalar_of
from lightning_prune.coupling.symbols.proportions import Factors, Proportion, Scalar, Scalars
from lightning_prune.network.example_input import Example
from lightning_prune.surgery.apply import zero_removed
from lightning_prune.surgery.removal import compensate_scalars, plan_removal

aten = torch.ops.aten


class Net(nn.Module):
    """Two layers of 12 channels; ``run(net, x)`` is the forward pass."""

    def __init__(self, run: Callable[..., Tensor]) -> None:
        super().__init__()
        self.run = run
        self.first, self.other, self.second = nn.Linear(5, 12), nn.Linear(5, 12), nn.Linear(12, 3)
        self.norm = nn.BatchNorm1d(12)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def data() -> Tensor:
    return torch.randn(6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def made(run: Callable[..., Tensor]) -> Net:
    net, draw = Net(run).double().eval(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in (*net.parameters(), net.norm.running_mean, net.norm.running_var):
            tensor.uniform_(0.5, 1.5, generator=draw)
        for tensor in (net.first.weight, net.other.weight, net.second.weight):
            tensor.uniform_(-1, 1, generator=draw)
    return net


def pruned(net: nn.Module, share: float = 0.5) -> tuple[Any, float]:
    masked = copy.deepcopy(net)
    report = prune_once(net, data(), budget=Ratio(share))
    zero_removed(masked, report.plan)
    with torch.no_grad():
        found, expected = net(data()), masked(data())
    return report, float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize(
    ("func", "args", "scalar"),
    [
        (aten.mul.Tensor, (torch.ones(3), 2), 2.0),
        (aten.mul.Tensor, (torch.ones(3), 0.5), 0.5),
        (aten.mul_.Tensor, (torch.ones(3), 0.5), 0.5),
        (aten.mul.Tensor, (torch.ones(3, device="meta"), torch.tensor(0.25)), 0.25),
        (aten.mul.Tensor, (torch.tensor(0.25), torch.ones(3, device="meta")), 0.25),
        (aten.div.Tensor, (torch.ones(3), 4), 0.25),
        (aten.div.Tensor, (torch.ones(3, device="meta"), torch.tensor(4.0)), 0.25),
        (aten.div.Tensor, (torch.tensor(4.0), torch.ones(3, device="meta")), None),
        (aten.div.Tensor, (torch.ones(3), 0), None),
        (aten.mul.Tensor, (torch.ones(3), torch.ones(3)), None),
        (aten.mul.Tensor, (torch.tensor(2.0), torch.tensor(3.0)), None),
        (aten.mul.Tensor, (torch.ones(3), True), None),
        (aten.add.Tensor, (torch.ones(3), 2), None),
        (aten.relu.default, (torch.ones(3),), None),
    ],
)
def test_which_calls_multiply_by_a_scalar(func, args, scalar) -> None:
    assert scalar_of(func, args) == scalar


def test_the_factor_by_hand() -> None:
    """Scores of one product over 12 channels, times 1/√12, become 1/√6 ones: the left rows take up √(6/12)."""
    net = made(lambda net, x: (net.first(x) @ net.other(x).T * net.first(x).shape[-1] ** -0.5).softmax(-1)[:, :3])
    weight = net.first.weight.detach().clone()
    report, error = pruned(net)
    assert report.widths == {"first.weight": (12, 6)}
    assert report.inexact or error <= 1e-10
    kept = report.plan.keep["first.weight"][0]
    for name, dims in report.plan.scales.items():
        for factors in dims.values():
            assert factors.shape == (6,)
            assert torch.allclose(factors, torch.full((6,), math.sqrt(6 / 12), dtype=torch.float64)), name
    if "first.weight" in report.plan.scales:
        assert torch.allclose(net.first.weight, weight[kept] * math.sqrt(0.5))


@pytest.mark.parametrize("batched", [True, False])
def test_both_operands_of_one_layer_are_scaled_by_the_root(batched: bool) -> None:
    def run(net: Any, x: Tensor) -> Tensor:
        h = net.first(x)
        h = h[None] if batched else h
        scores = (h @ h.transpose(-1, -2) * h.shape[-1] ** -0.5).softmax(-1)
        return net.second(net.other(x)) + (scores[0] if batched else scores).sum(1, keepdim=True).cos() * scores.amax()

    net = made(run)
    report, error = pruned(net)
    assert report.inexact or error <= 1e-10
    for name in report.plan.scales:
        (factors,) = report.plan.scales[name].values()
        assert torch.allclose(factors, torch.full_like(factors, 0.5**0.25)), name
    if batched:
        assert "first.weight" in report.plan.scales
        assert "first.bias" in report.plan.scales


def test_a_bias_and_a_norm_compensate_as_well() -> None:
    net = made(lambda net, x: net.second(net.norm(net.first(x)) / net.first(x).shape[-1] ** 0.5))
    report, error = pruned(net)
    assert report.inexact or error <= 1e-10
    assert set(report.plan.scales) in ({"norm.weight", "norm.bias"}, set())


def test_constant_scalars_change_nothing() -> None:
    net = made(lambda net, x: net.second(net.first(x) * 0.3 / x.shape[0] * x.shape[1]))
    report, error = pruned(net)
    assert (report.plan.scales, report.inexact) == ({}, {})
    assert error <= 1e-10


BRANCHES = {
    "products": lambda net, h: net.second(h @ (h.T @ h) if width(h) > 8 else h),
    "an operation": lambda net, h: net.second(h if width(h) > 8 else h.exp()),
    "another operation": lambda net, h: net.second(h.tanh() if width(h) > 8 else h.sigmoid()),
    "a division": lambda net, h: net.second(h / (width(h) - 6) if width(h) > 6 else h),
}


@pytest.mark.parametrize("name", BRANCHES)
def test_a_width_that_selects_the_code_path_is_frozen(name: str) -> None:
    net = made(lambda net, x: BRANCHES[name](net, net.first(x)))
    with pytest.raises(ValueError, match="'with fewer channels the forward pass follows a different code path'"):
        pruned(net)


GONE = ["first.weight"]


def test_rescaled_by_hand() -> None:
    """An analysis with one scalar, and what other values of it in the smaller network would need."""
    net = made(lambda net, x: net.second(net.first(x) / math.sqrt(net.first(x).shape[-1])))
    coupling = find_coupling(net, Example.of(data()))
    number = next(n for n, s in enumerate(coupling.scalars) if s.value == pytest.approx(12**-0.5))
    gone = torch.zeros(12, dtype=torch.bool)
    gone[:3] = True
    plan = plan_removal({"first.weight": gone}, coupling)
    values = [s.value for s in coupling.scalars]
    assert compensate_scalars(plan, GONE, coupling, values)[0].scales == {}
    assert compensate_scalars(plan, GONE, coupling, ())[0].scales == {}
    values[number] = 2 * values[number]
    found, inexact = compensate_scalars(plan, GONE, coupling, values)
    if coupling.scalars[number].rows:
        assert inexact == {}
        assert set(found.scales) == {"first.weight", "first.bias"}
        assert found.scales["first.weight"][0].tolist() == [0.5] * 9
    else:
        assert set(inexact) == {"first.weight"}


def width(t: Tensor) -> int:
    return t.shape[-1]


def scaled_keys(keys: Tensor, h: Tensor, other: Tensor) -> Tensor:
    """``keys`` scaled by the width for one product, as they are for another."""
    return ((h @ (keys * width(h) ** -0.5).T).softmax(-1) @ (other @ keys.T).softmax(-1))[:, :3]


def beside(tensor: Tensor, h: Tensor, read: Callable[[Tensor], Tensor]) -> Tensor:
    """``tensor`` scaled by the width, and as it is where ``read`` reads it."""
    return (tensor * width(h) ** -0.5).sum() + read(tensor).square().sum()


MEANS: dict[str, Callable[..., Tensor]] = {
    "h / width": lambda net, x, h: net.second(h / width(h)),
    "h * width ** -0.5": lambda net, x, h: net.second(h * width(h) ** -0.5),
    "added to another": lambda net, x, h: net.second(h + net.other(x) * width(h) ** -0.5),
    "relu in between": lambda net, x, h: net.second(h.relu() * width(h) ** -0.5),
    "tanh in between": lambda net, x, h: net.second(h.tanh() * width(h) ** -0.5),
    "used twice": lambda net, x, h: net.second(h * width(h) ** -0.5 + h.tanh()),
    "a residual": lambda net, x, h: net.second(h + h * width(h) ** -0.5),
    "a gate": lambda net, x, h: net.second(h * net.other(x).sigmoid() * width(h) ** -0.5),
    "a square": lambda net, x, h: net.second(h * h * width(h) ** -0.5),
    "a width added": lambda net, x, h: net.second(h * width(h) ** -0.5 + width(h)),
    "sum over the channels": lambda net, x, h: net.second(net.other(x)) * h.sum(-1, keepdim=True) / width(h),
    "a mean by hand": lambda net, x, h: net.second(h - h.sum(-1, keepdim=True) / width(h)),
    "root mean square by hand": lambda net, x, h: net.second(
        h * (h.square().sum(-1, keepdim=True) / width(h) + 1e-5).rsqrt()
    ),
    "a mean": lambda net, x, h: net.second(h - h.mean(-1, keepdim=True)),
    "a norm": lambda net, x, h: net.second(h / h.norm(dim=-1, keepdim=True) * width(h) ** 0.5),
    "logsumexp over the examples, then a sum": lambda net, x, h: net.second(net.other(x)) * h.logsumexp(0).sum(),
    "layer norm over the examples, then a sum": lambda net, x, h: net.second(net.other(x))
    * F.layer_norm(h.T, (6,), bias=torch.ones(6, dtype=x.dtype, device=x.device)).sum(0)[:, None],
    "a product of two sigmoids": lambda net, x, h: net.second(net.other(x)) * (h.sigmoid() @ h.sigmoid().T).mean(),
    "cos @ cos": lambda net, x, h: (h.cos() @ net.other(x).cos().T)[:, :3],
    "torch.tensor(width) on the device": lambda net, x, h: net.second(
        h * torch.tensor(float(width(h)), dtype=x.dtype, device=x.device).rsqrt()
    ),
    "new_tensor(width)": lambda net, x, h: net.second(h / x.new_tensor(float(width(h)))),
    "torch.full_like": lambda net, x, h: net.second(h * torch.full_like(h, 1 / width(h))),
    "torch.tensor([width])": lambda net, x, h: net.second(
        h * torch.tensor([1 / width(h)], dtype=x.dtype, device=x.device)
    ),
    "alpha of an addition": lambda net, x, h: net.second(torch.add(h, h * h, alpha=1 / width(h))),
    "value of addcmul": lambda net, x, h: net.second(torch.addcmul(h, h, h, value=1 / width(h))),
    "alpha of addmm": lambda net, x, h: torch.addmm(
        net.second.bias, h, net.second.weight.T, alpha=1 / width(h)
    ),
    "an exponent": lambda net, x, h: net.second(h.abs().pow(1 / width(h))),
    "a slope": lambda net, x, h: net.second(F.leaky_relu(h, 1 / width(h))),
    "a limit": lambda net, x, h: net.second(h.clamp(-1 / width(h), 1 / width(h))),
    "how far to roll": lambda net, x, h: net.second(h.roll(width(h) // 4, 0)),
    "how many of the largest": lambda net, x, h: net.second(h.topk(width(h) // 4, 0).values.sum(0, keepdim=True)),
    "how many diagonals": lambda net, x, h: net.second((h @ net.other(x).T).tril(width(h) // 6) @ h),
    "an offset": lambda net, x, h: net.second(net.other(x)) + h.sum(-1, keepdim=True) + width(h),
    "an offset from the input": lambda net, x, h: net.second(h) + x[:, :3] * width(h),
    "an exponent of the input": lambda net, x, h: net.second(h) + x[:, :3].abs() ** (1 / width(h)),
    "a count of steps": lambda net, x, h: net.second(h) * torch.linspace(0, 1, width(h), device=x.device).norm(),
    "the trace of an identity": lambda net, x, h: net.second(h) * torch.eye(width(h), device=x.device).sum(),
    "a sum of ones": lambda net, x, h: net.second(h) * torch.ones(h.shape, device=x.device).sum(-1, keepdim=True),
    "as_tensor(shape)": lambda net, x, h: net.second(h) * torch.as_tensor(h.shape, device=x.device).prod(),
    "torch.tensor(width).to(x)": lambda net, x, h: net.second(h) * torch.tensor(1 / width(h)).to(x),
    "torch.tensor([width]) on a real pass": lambda net, x, h: net.second(h) * torch.tensor([1.0, 2.0, width(h)]),
    "torch.tensor(width) on a real pass": lambda net, x, h: net.second(h) * torch.tensor(1 / width(h))
    if float(x.abs().sum()) > 0
    else x,
    "a norm read as a number": lambda net, x, h: net.second(h / float(h.norm())),
    "a norm of other channels read as a number": lambda net, x, h: net.second(net.other(x)) / float(h.norm()),
    "read by a product to which a bias is added": lambda net, x, h: (h @ net.second.weight.T + net.second.bias)
    + net.second((h * width(h) ** -0.5).tanh()),
    "read by an operation without a rule": lambda net, x, h: beside(net.other(x), h, F.pdist) * net.second(h),
    "read by NumPy": lambda net, x, h: net.second(h)
    * beside(net.other(x), h, lambda t: x.new_tensor(t.detach().numpy())),
    "torch.div(width, h)": lambda net, x, h: net.second(torch.tensor(float(width(h))) / (1 + h.square())),
    "a factor that changes its sign": lambda net, x, h: net.second(h.relu() * (8 - width(h))),
    "a factor that becomes 0": lambda net, x, h: net.second(h * (width(h) - 6)),
    "a rounded quotient": lambda net, x, h: net.second(
        torch.div(h * 10, 3.0, rounding_mode="floor") * width(h) ** -0.5
    ),
    "whole numbers": lambda net, x, h: net.second((h * 10).long().to(x) * width(h) ** -0.5),
    "in place": lambda net, x, h: net.second(h.tanh_().mul_(width(h) ** -0.5)),
    "in place on a part": lambda net, x, h: (h[:3].mul_(width(h) ** -0.5), net.second(h.tanh()))[1],
    "returned as it is too": lambda net, x, h: torch.cat([net.second(h), net.second(h) * width(h) ** -0.5], -1),
    "right factor of another product": lambda net, x, h: scaled_keys(net.other(x), h, net.norm(h)),
    "a weight used raw": lambda net, x, h: net.second(h)
    + (net.other(x) * width(h) ** -0.5).softmax(0)[:, :3] * net.other.weight.sum(),
    "a weight used both ways": lambda net, x, h: net.second(h)
    + ((x @ net.other.weight.T * width(h) ** -0.5).tanh() @ net.other.weight).tanh()[:, :3],
    "batch norm over the examples, then a sum": lambda net, x, h: net.second(net.other(x))
    * F.batch_norm(h.T, h.new_ones(6), h.new_ones(6)).sum(0)[:, None],
    "group norm over the channels": lambda net, x, h: net.second(F.group_norm(h[:, None].expand(-1, 2, -1), 2)[:, 0]),
    "a layer over the examples, then a sum": lambda net, x, h: net.second(net.other(x))
    * F.linear(h.T, h.new_ones(4, 6), h.new_ones(4)).sum(),
    "a convolution over the examples, then a sum": lambda net, x, h: net.second(net.other(x))
    * F.conv1d(h.T[:, None], h.new_ones(1, 1, 3), h.new_ones(1)).sum(),
    "ones beside the examples, then a sum": lambda net, x, h: net.second(net.other(x))
    * F.pad(h.T, (0, 2), value=1.0).sum(),
    "index_fill, then a sum": lambda net, x, h: net.second(net.other(x))
    * h.index_fill(0, torch.tensor([0, 1], device=x.device), 1.0).sum(),
    "vdot of sigmoids": lambda net, x, h: net.second(net.other(x)) * torch.vdot(h.sigmoid()[0], h.sigmoid()[1]),
}  # fmt: skip


@pytest.mark.parametrize("name", MEANS)
def test_inexact_groups_are_reported(name: str) -> None:
    net = made(lambda net, x: MEANS[name](net, x, net.first(x)))
    report, error = pruned(net)
    assert report.inexact or error <= 1e-10
    assert report.widths["first.weight"] == (12, 6)


EXACT = ("h / width", "h * width ** -0.5")


@pytest.mark.parametrize("name", EXACT)
def test_linear_images_are_exact(name: str) -> None:
    net = made(lambda net, x: MEANS[name](net, x, net.first(x)))
    report, error = pruned(net)
    assert report.inexact == {}
    assert error <= 1e-10
    (factors,) = report.plan.scales["first.weight"].values()
    assert torch.allclose(factors, torch.full_like(factors, 0.5 if name == "h / width" else math.sqrt(0.5)))


HOMOGENEOUS: dict[str, Callable[..., Tensor]] = {
    "relu": lambda net, x, h: net.second(h.relu() * width(h) ** -0.5),
    "a norm": lambda net, x, h: net.second(net.norm(h) / width(h)),
    "a gate": lambda net, x, h: net.second(h * net.other(x).sigmoid() * width(h) ** -0.5),
    "two rows of one layer": lambda net, x, h: net.second((h + h.flip(0)) * width(h) ** -0.5),
    "a square": lambda net, x, h: net.second(h * h * width(h) ** -0.5),
    "a mean over the examples": lambda net, x, h: net.second(net.other(x)) + net.second(h.mean(0) / width(h)),
    "halves": lambda net, x, h: (lambda a, b: net.second(torch.cat([-b, a], -1) * width(h) ** -0.5))(*h.chunk(2, -1)),
    "a layer without bias in between": lambda net, x, h: (h * width(h) ** -0.5) @ net.second.weight.T,
    "a bias added later": lambda net, x, h: net.second((x @ net.first.weight.T + net.first.bias) * width(h) ** -0.5),
    "a scaled weight": lambda net, x, h: F.linear(h, net.second.weight * width(h) ** -0.5),
    "a sum over the channels": lambda net, x, h: net.second(net.other(x)) * h.sum(-1, keepdim=True) / width(h),
    "read on a real pass": lambda net, x, h: net.second(h / float(x.norm()) * width(h) ** -0.5),
}


@pytest.mark.parametrize("name", HOMOGENEOUS)
def test_homogeneous_images_are_exact(name: str) -> None:
    net = made(lambda net, x: HOMOGENEOUS[name](net, x, net.first(x)))
    report, error = pruned(net)
    assert (error <= 1e-10, report.inexact) == (True, {})
    assert report.plan.scales


def test_noise_keeps_what_a_tensor_is_proportional_to() -> None:
    net = made(lambda net, x: net.second(F.dropout(net.first(x), 0.5, True) * 0.3))
    (scalar,) = find_coupling(net, Example.of(data())).scalars
    assert set(scalar.rows) == {"first.weight", "first.bias"}


def test_a_number_that_depends_on_a_shrinking_width_is_reported() -> None:
    """It multiplies channels that stay; those that it counts are to blame."""

    def run(net: Any, x: Tensor) -> Tensor:
        h = net.first(x)
        return net.second(net.other(x).tanh() * width(h) ** -0.5) * h.square().sum(-1, keepdim=True)

    net = made(run)
    report = prune_once(net, data(), budget=Ratio(0.5), scope=Scope(include=["first"]))
    assert set(report.widths) == {"first.weight"}
    assert report.inexact == {"first.weight": "forward multiplies by a number that depends on the width"}


def test_the_reason_names_the_module() -> None:
    class Inner(nn.Module):
        def forward(self, h: Tensor) -> Tensor:
            return h * torch.tensor([1 / width(h)], dtype=h.dtype, device=h.device)

    net = Net(lambda net, x: net.second(net.inner(net.first(x)))).double()
    net.inner = Inner()
    report, _ = pruned(net)
    assert report.inexact == {"first.weight": "'inner': forward computes with a number that depends on the width"}


def origin(name: str, rows: list[int], power: int = 1, dim: int = 0) -> Proportion:
    return Proportion((name,), dim, np.array(rows) + 100, 100, power)


def test_factors_of_products_and_sums_by_hand() -> None:
    a, b = Factors((origin("a", [0, 1]),), {0: 1}), Factors((origin("b", [0]), origin("a", [1, 0])), {0: 1, 1: 1})
    product = a.times(b)
    assert [(o.tensors, o.power) for o in product.proportions] == [(("a",), 2), (("b",), 1)]
    assert product.scalars == {0: 2, 1: 1}
    quotient = a.times(b, -1)
    assert [(o.tensors, o.power) for o in quotient.proportions] == [(("b",), -1)]
    assert quotient.scalars == {1: -1}
    assert a.merged_with(b) is None
    assert a.merged_with(Factors((origin("a", [0, 1]),))) is None
    both = a.merged_with(Factors((origin("a", [3]),), {0: 1}))
    assert both is not None
    assert both.proportions[0].rows.tolist() == [0, 1, 3]


@pytest.mark.parametrize(
    ("fixed", "power"),
    [
        ([Factors((origin("a", [0, 1]),), {0: 1})], 1),
        ([Factors((origin("a", [0, 1], 2),), {0: 1})], 2),
        ([Factors((origin("a", [0, 1], 2),), {0: 2})], 1),
        ([Factors((origin("a", [0, 1], 2),), {0: 1}), Factors((origin("a", [0, 1]),), {0: 1})], None),
        ([Factors((origin("a", [0]), origin("a", [1])), {0: 1})], 2),
        ([Factors((origin("a", [0]), origin("a", [1])), {0: 1}), Factors((origin("a", [0]),))], 1),
        ([Factors((origin("a", [0, 1]),), {0: 1}), Factors((origin("a", [2]),))], 1),
        ([Factors((origin("a", [0, 1]),), {0: 1}), Factors((origin("a", [1, 2]),), {0: 1})], 1),
        ([Factors((origin("a", [0, 1]),), {0: 1}), Factors((origin("a", [1, 2]),))], None),
        ([Factors((origin("a", [0, 1]),), {0: 1}), Factors((origin("a", [5], dim=1),))], None),
        ([Factors((origin("a", [0, 1]),), {0: 1}), Factors((), {0: 1})], None),
        ([Factors((Proportion((name, "bias"), 0, np.arange(2), 0),), {0: 1}) for name in ("a", "b")], None),
        ([Factors((), {0: 1})], None),
        ([], None),
    ],
)  # fmt: skip
def test_which_rows_compensate_for_a_scalar(fixed: list[Factors], power: int | None) -> None:
    scalars = Scalars(fixed=[(factors, 1) for factors in fixed])
    scalars.found.append(Scalar(0, 0.5, np.empty(0, np.int64), "", 1, scalars))
    found = scalars.found[0].compensating_rows
    assert (None if found is None else found.power) == power


class DecomposedPositions(nn.Module):
    """Attention as in SAM: one layer makes queries, keys and values; queries without 1/√d meet positions as well."""

    def __init__(self, pooled: bool) -> None:
        super().__init__()
        self.pooled, self.heads = pooled, 2
        self.qkv, self.out, self.positions = nn.Linear(6, 24), nn.Linear(8, 3), nn.Parameter(torch.randn(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        count = len(x)
        qkv = self.qkv(x).view(count, 4, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.reshape(3, count * self.heads, 4, -1).unbind(0)
        if self.pooled:
            q = F.max_pool1d(q.transpose(1, 2), 2).transpose(1, 2)
        bias = q @ self.positions.T
        mixed = ((q * q.shape[-1] ** -0.5) @ k.transpose(1, 2) + bias).softmax(-1) @ v
        return self.out(mixed.view(count, self.heads, -1, mixed.shape[-1]).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("pooled", [False, True])
def test_keys_alone_compensate_where_queries_are_used_elsewhere(pooled: bool) -> None:
    torch.manual_seed(0)
    net = DecomposedPositions(pooled).double().eval()
    x = torch.randn(2, 4, 6, dtype=torch.float64)
    masked = copy.deepcopy(net)
    report = prune_once(net, x)
    zero_removed(masked, report.plan)
    assert net.qkv.out_features == 12
    assert report.inexact == {}
    with torch.no_grad():
        torch.testing.assert_close(net(x), masked(x), rtol=1e-10, atol=1e-12)
    for name in ("qkv.weight", "qkv.bias"):  # of two dimensions in each of two heads
        (factors,) = report.plan.scales[name].values()
        assert torch.allclose(factors, torch.tensor([1.0] * 4 + [0.5**0.5] * 4 + [1.0] * 4).double())
