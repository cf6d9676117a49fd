"""What cannot be removed stays, with a reason; what cannot be known is never wrong."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from coupling_nets import Net, conv, error_between, image, pooled, randomise, removal_error
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_prune.budgets import Ratio
from lightning_prune.coupling import Example, analyse
from lightning_prune.functional import prune_once


def head_net(run: Callable[[Any, Tensor], Tensor], width: int = 8, read: int = 8, **layers: nn.Module) -> Net:
    return Net(lambda net, x: net.head(run(net, net.a(x))), a=conv(3, width), head=nn.Linear(read, 3), **layers)


def merged(net: Any, x: Tensor) -> Tensor:
    x = pooled(x)
    return (x.unsqueeze(1) * x.unsqueeze(2)).flatten(1)


def overwritten(net: Any, x: Tensor) -> Tensor:
    x[:, 0] = 0.0
    return pooled(x)


def filled(net: Any, x: Tensor) -> Tensor:
    y = torch.zeros(len(x), 8, 8, 8, device=x.device)
    y[:, :8] = x
    return pooled(y)


FROZEN = {
    "softmax": (head_net(lambda net, x: pooled(x.softmax(1))), "softmax over the channels"),
    "log_softmax": (head_net(lambda net, x: F.log_softmax(pooled(x), 1)), "log_softmax over the channels"),
    "mean": (head_net(lambda net, x: x.mean(1).flatten(1), read=64), "mean over the channels"),
    "norm": (head_net(lambda net, x: F.normalize(pooled(x), dim=1)), "linalg_vector_norm over the channels"),
    "max": (head_net(lambda net, x: x.max(1).values.flatten(1), read=64), "max over the channels"),
    "cumsum": (head_net(lambda net, x: pooled(x).cumsum(1)), "cumsum over the channels"),
    "flip": (head_net(lambda net, x: pooled(x).flip(1)), "flip over the channels"),
    "roll": (head_net(lambda net, x: pooled(x.roll(1, 1))), "roll over the channels"),
    "roll of the flattened tensor": (head_net(lambda net, x: pooled(x.roll(1))), "roll over the channels"),
    "sort": (head_net(lambda net, x: pooled(x).sort(1).values), "sort over the channels"),
    "topk": (head_net(lambda net, x: pooled(x).topk(2, 1).values, read=2), "topk over the channels"),
    "pixel shuffle": (head_net(lambda net, x: pooled(F.pixel_shuffle(x, 2)), read=2), "no rule for aten.pixel_shuffle"),
    "unfold": (head_net(lambda net, x: F.unfold(x, 3).mean(2), read=72), "no rule for aten.im2col"),
    "gated linear unit": (head_net(lambda net, x: pooled(F.glu(x, 1)), width=16), "no rule for aten.glu"),
    "index": (head_net(lambda net, x: pooled(x[:, [1, 0, 2, 3, 4, 5, 6, 7]])), "no rule for aten.index"),
    "slice": (head_net(lambda net, x: pooled(x[:, 2:6]), read=4), "indexed or sliced by a number"),
    "select": (head_net(lambda net, x: x[:, 3].flatten(1), read=64), "indexed or sliced by a number"),
    "unbind": (head_net(lambda net, x: x.unbind(1)[0].flatten(1), read=64), "indexed or sliced by a number"),
    "assignment": (head_net(overwritten), "indexed or sliced by a number"),
    "buffer of a written size": (head_net(filled), "meets a tensor whose size is fixed"),
    "uneven split": (head_net(lambda net, x: pooled(x.split((2, 6), 1)[1]), read=6), r"split into \(2, 6\)"),
    "crop": (head_net(lambda net, x: pooled(F.pad(x, (0, 0, 0, 0, -1, 0))), read=7), "cropped along the channels"),
    "local response norm": (head_net(lambda net, x: pooled(F.local_response_norm(x, 3))), "along the channels"),
    "outer product": (head_net(merged, read=64), "a reshape merges it with other channels"),
    "group of one": (
        head_net(lambda net, x: pooled(net.g(x)), g=conv(8, 8, groups=8), width=8, read=8),
        None,  # a depthwise layer: removable
    ),
    "one channel a group": (
        head_net(lambda net, x: pooled(net.g(x)), g=conv(8, 4, groups=4, bias=False), read=4),
        "the only channel of its group",
    ),
    "fixed tensor": (
        head_net(lambda net, x: pooled(x + torch.ones(8, 1, 1, device=x.device))),
        "meets a tensor whose size is fixed",
    ),
    "other strides": (head_net(lambda net, x: x.as_strided((2, 4, 8, 8), x.stride()).mean((2, 3)), read=4), "strides"),
    "triangular weight": (
        head_net(lambda net, x: F.linear(pooled(x), net.t.weight.tril()), t=nn.Linear(8, 8, bias=False)),
        "tril over the channels",
    ),
}


@pytest.mark.parametrize("name", FROZEN)
def test_what_must_stay_is_frozen_with_its_reason(name: str) -> None:
    net, reason = FROZEN[name]
    coupling = analyse(net, Example.of(image()))
    if reason is None:
        assert "a.weight" in coupling.groups
        return
    assert "a.weight" not in coupling.groups
    with pytest.raises(AssertionError):  # no other group hides the channels of `a`
        assert any(m.tensor == "a.weight" and m.dim == 0 for g in coupling.groups.values() for m in g.members)
    assert torch.tensor([bool(__import__("re").search(reason, why)) for why in coupling.frozen.values()]).any()


def test_input_and_output_are_frozen_without_being_named() -> None:
    coupling = analyse(nn.Sequential(conv(3, 6), conv(6, 5)), Example.of(image()))
    assert list(coupling.groups) == ["0.weight"]
    assert coupling.frozen == {"1.weight": "output of the network"}
