"""Kernels for the meta device give the dtype, shape and strides of PyTorch's; wrong shapes still raise."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from lightning_prune.coupling.tracing import meta_kernels

aten = torch.ops.aten
UNARY = sorted(meta_kernels._UNARY)


def meta(*shape: int, dtype: torch.dtype = torch.float32, layout: str = "plain") -> Tensor:
    tensor = torch.empty(shape, dtype=dtype, device="meta")
    if layout == "channels_last":
        return tensor.contiguous(memory_format=torch.channels_last)
    if layout == "transposed":
        return torch.empty([*shape[:-2], shape[-1], shape[-2]], dtype=dtype, device="meta").transpose(-1, -2)
    if layout == "expanded":
        return torch.empty([1, *shape[1:]], dtype=dtype, device="meta").expand(shape)
    if layout == "sliced":
        return torch.empty([*shape[:-1], 2 * shape[-1]], dtype=dtype, device="meta")[..., : shape[-1]]
    return tensor


LAYOUTS = ["plain", "channels_last", "transposed", "expanded", "sliced"]


def facts(result: Any) -> list[tuple[Any, ...]]:
    return [(tuple(t.shape), t.stride(), t.dtype, t.device.type) for t in tree_leaves(result) if isinstance(t, Tensor)]


def same(func: Any, *args: Any, strides: bool = True, **kwargs: Any) -> None:
    """Compare on fresh copies, as in-place operations change their argument."""

    def copies() -> Any:
        return tree_map(lambda t: t.as_strided(t.shape, t.stride()) if isinstance(t, Tensor) else t, (args, kwargs))

    (a, b), (c, d) = copies(), copies()
    try:
        expected = facts(func(*c, **d))
    except (RuntimeError, IndexError, TypeError):
        with pytest.raises((RuntimeError, IndexError, TypeError)):
            meta_kernels.run(func, a, b)
        return
    found = meta_kernels.run(func, a, b)
    drop = slice(None) if strides else slice(0, 1)
    assert [f[drop] for f in facts(found)] == [e[drop] for e in expected]
    if func._schema.name.endswith("_"):
        assert found is a[0]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", UNARY)
def test_unary_operations(name: str, layout: str) -> None:
    extra = {"clamp": (0, 1), "clamp_min": (0,)}.get(name, ())
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        same(getattr(aten, name).default, meta(2, 3, 4, 5, dtype=dtype, layout=layout), *extra)
        inplace = getattr(aten, f"{name}_", None)
        if inplace is not None and layout != "expanded":
            same(inplace.default, meta(2, 3, 4, 5, dtype=dtype, layout=layout), *extra)


@pytest.mark.parametrize("name", ["clamp", "clamp_min"])
def test_limits_that_are_tensors_broadcast(name: str) -> None:
    overload = getattr(aten, name).Tensor
    same(overload, meta(3), meta(2, 3))
    same(overload, meta(2, 3), meta(2, 3, dtype=torch.float64))
    if name == "clamp":
        same(overload, meta(2, 3), None, meta(4, 2, 3))
        same(aten.clamp_.Tensor, meta(2, 3), None, meta(4, 2, 3))


@pytest.mark.parametrize("left", LAYOUTS)
@pytest.mark.parametrize("right", LAYOUTS)
@pytest.mark.parametrize("name", sorted(meta_kernels._BINARY))
def test_binary_operations(name: str, left: str, right: str) -> None:
    func, inplace = getattr(aten, name).Tensor, getattr(aten, f"{name}_").Tensor
    same(func, meta(2, 3, 4, 5, layout=left), meta(2, 3, 4, 5, layout=right))
    if left != "expanded":
        same(inplace, meta(2, 3, 4, 5, layout=left), meta(2, 3, 4, 5, layout=right))


@pytest.mark.parametrize("name", sorted(meta_kernels._BINARY))
def test_operands_that_differ(name: str) -> None:
    func, inplace = getattr(aten, name).Tensor, getattr(aten, f"{name}_").Tensor
    others = [
        meta(5), meta(4, 1), meta(), meta(7, 2, 3, 4, 5), meta(2, 3, 4, 5, dtype=torch.float64),
        meta(2, 3, 4, 5, dtype=torch.int64), meta(2, 3, 4, 6), meta(3, 3, 4, 5), torch.tensor(2.0), torch.tensor(2),
    ]  # fmt: skip
    for other in others:
        for dtype in (torch.float32, torch.float16):
            same(func, meta(2, 3, 4, 5, dtype=dtype), other)
            same(inplace, meta(2, 3, 4, 5, dtype=dtype), other)
    same(func, meta(2, 3, dtype=torch.int64), meta(2, 3, dtype=torch.int64))
    same(func, meta(2, 3), meta(2, 3).to(torch.complex64))


NORMS = {
    "train": lambda x, *s: (aten.native_batch_norm.default, x, *s[:4], True, 0.1, 1e-5),
    "eval": lambda x, *s: (aten._native_batch_norm_legit_no_training.default, x, *s[:4], 0.1, 1e-5),
    "legit": lambda x, *s: (aten._native_batch_norm_legit.default, x, *s[:4], True, 0.1, 1e-5),
    "no statistics": lambda x, *s: (aten._native_batch_norm_legit.no_stats, x, *s[:2], True, 0.1, 1e-5),
    "no weights": lambda x, *s: (aten.native_batch_norm.default, x, None, None, *s[2:4], True, 0.1, 1e-5),
}


@pytest.mark.parametrize("layout", ["plain", "channels_last", "transposed"])
@pytest.mark.parametrize("name", NORMS)
def test_batch_norms(name: str, layout: str) -> None:
    func, *args = NORMS[name](meta(2, 3, 4, 5, layout=layout), *(meta(3) for _ in range(4)))
    (out, *_), (expected, *_) = meta_kernels.run(func, tuple(args), {}), func(*args)
    assert facts(out)[0][:1] + facts(out)[0][2:] == facts(expected)[0][:1] + facts(expected)[0][2:]
    if layout != "transposed":
        assert out.stride() == expected.stride()


@pytest.mark.parametrize("shape", [(4, 3), (2, 3, 5), (2, 3, 4, 5), (2, 3, 2, 4, 5)])
def test_batch_norms_of_every_number_of_dimensions(shape: tuple[int, ...]) -> None:
    args = (meta(*shape), *(meta(3) for _ in range(4)), 0.1, 1e-5)
    func = aten._native_batch_norm_legit_no_training.default
    assert facts(meta_kernels.run(func, args, {}))[0] == facts(func(*args))[0]


@pytest.mark.parametrize("place", range(4))
def test_statistics_of_a_wrong_size_fall_back_to_pytorch(place: int) -> None:
    statistics = [meta(3) for _ in range(4)]
    statistics[place] = meta(4)
    args = (meta(2, 3, 4, 5), *statistics, 0.1, 1e-5)
    called = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            called.append(func)
            return func(*args, **(kwargs or {}))

    with Watch():
        try:
            meta_kernels.run(aten._native_batch_norm_legit_no_training.default, args, {})
        except RuntimeError:
            return
    assert aten._native_batch_norm_legit_no_training.default in called


def test_networks_with_wrong_widths_still_fail() -> None:
    def run(net: torch.nn.Module, *shape: int) -> Tensor:
        class Shortcuts(TorchDispatchMode):
            def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                return meta_kernels.run(func, args, kwargs or {})

        with torch.no_grad(), Shortcuts():
            return net.to("meta")(torch.empty(shape, device="meta"))

    assert run(torch.nn.Linear(4, 3), 2, 4).shape == (2, 3)
    assert run(torch.nn.LayerNorm(4), 2, 4).shape == (2, 4)
    assert run(torch.nn.BatchNorm1d(4), 2, 4).shape == (2, 4)
    for net in (torch.nn.Linear(5, 3), torch.nn.LayerNorm(5), torch.nn.BatchNorm1d(5), torch.nn.BatchNorm1d(5).eval()):
        with pytest.raises(RuntimeError):
            run(net, 2, 4)
    bias = torch.nn.Linear(4, 3)
    bias.bias = torch.nn.Parameter(torch.zeros(2))
    with pytest.raises(RuntimeError):
        run(bias, 2, 4)


@pytest.mark.parametrize("layout", ["plain", "transposed", "sliced", "expanded"])
@pytest.mark.parametrize("shape", [(5,), (4, 5), (2, 3, 4, 5)])
def test_layer_norms(shape: tuple[int, ...], layout: str) -> None:
    func = aten.native_layer_norm.default
    source = meta(2, 3, 4, 5, layout=layout)
    same(func, source, list(shape), meta(*shape), meta(*shape), 1e-5)
    same(func, source, list(shape), None, None, 1e-5)
    same(func, source, list(shape), meta(*shape), None, 1e-5)


@pytest.mark.parametrize(
    ("shape", "weight", "bias"),
    [((6,), (6,), (6,)), ((5,), (6,), (5,)), ((5,), (5,), (4,)), ((4, 5), (5,), (5,)), ((1, 5), (1, 5), None)],
)
def test_layer_norms_of_wrong_shapes(shape: Any, weight: Any, bias: Any) -> None:
    args = [None if size is None else meta(*size) for size in (weight, bias)]
    same(aten.native_layer_norm.default, meta(2, 3, 4, 5), list(shape), *args, 1e-5, strides=False)


def test_a_layer_norm_of_mixed_dtypes() -> None:
    func, low = aten.native_layer_norm.default, torch.bfloat16
    same(func, meta(2, 5, dtype=low), [5], meta(5), meta(5), 1e-5)


@pytest.mark.parametrize("left", ["plain", "transposed"])
@pytest.mark.parametrize("right", ["plain", "transposed"])
def test_matrix_products_with_a_bias(left: str, right: str) -> None:
    same(aten.addmm.default, meta(5), meta(2, 3, layout=left), meta(3, 5, layout=right))
    same(aten.addmm.default, meta(5), meta(2, 3, layout=left), meta(3, 5, layout=right), beta=0.5, alpha=2)
    same(aten.addmm.default, meta(2, 5), meta(2, 3, layout=left), meta(3, 5, layout=right))
    same(aten.addmm.default, meta(1), meta(2, 3, layout=left), meta(3, 5, layout=right))
    for wrong in ((5, 2, 4, 3, 5), (4, 2, 3, 3, 5), (5, 2, 3, 4, 5)):
        b, m, k, l, n = wrong  # noqa: E741
        same(aten.addmm.default, meta(b), meta(m, k, layout=left), meta(l, n, layout=right))


@pytest.mark.parametrize("dims", [[1], [-1], [2, 3], [0, -1], [0, 1, 2, 3], [], None])
@pytest.mark.parametrize("keepdim", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_means(layout: str, keepdim: bool, dims: list[int] | None) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        same(aten.mean.dim, meta(2, 3, 4, 5, dtype=dtype, layout=layout), dims, keepdim)
    same(aten.mean.dim, meta(2, 3, 4, 5, layout=layout), dims, keepdim, dtype=torch.float64)


@pytest.mark.parametrize("dims", [[4], [-5], [1, 1], [1, -3]])
def test_means_over_wrong_dimensions_still_raise(dims: list[int]) -> None:
    with pytest.raises((RuntimeError, IndexError)):
        meta_kernels.run(aten.mean.dim, (meta(2, 3, 4, 5), dims), {})


def test_tensors_with_values_fall_back_to_pytorch() -> None:
    left, right = torch.randn(2, 3), torch.randn(2, 3)
    assert torch.equal(meta_kernels.run(aten.add.Tensor, (left, right), {"alpha": 2}), left + 2 * right)
    assert torch.equal(meta_kernels.run(aten.relu.default, (left,), {}), left.relu())
    with pytest.raises(RuntimeError):
        meta_kernels.run(aten.add.Tensor, (left, torch.randn(4)), {})


def test_integers_fall_back_to_pytorch() -> None:
    for name in ("sqrt", "sigmoid", "exp"):
        same(getattr(aten, name).default, meta(2, 3, dtype=torch.int64))
    same(aten.div.Tensor, meta(2, 3, dtype=torch.int64), meta(2, 3, dtype=torch.int64))
