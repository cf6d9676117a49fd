"""Which networks train mode has to be looked at for."""

from functools import partial
from typing import Any

import pytest
import torch
import torchvision
from coupling_nets import Net, conv, image
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from lightning_prune import prune_once
from lightning_prune.coupling import Example, analyse
from lightning_prune.coupling.modes import depends_on_mode


def helper(module: nn.Module, x: Tensor) -> Tensor:
    return module.a(x) if module.training else x


class Outside(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return helper(self, x)


class Property(nn.Module):
    @property
    def busy(self) -> bool:
        return self.training

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if self.busy else x


class ByName(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if getattr(self, "train" + "ing", getattr(self, "training", None)) else x


class InAList(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * sum(2 if self.training else 1 for _ in range(2))


class Inherited(InAList):
    pass


class Callable:
    def __call__(self, net: Any, x: Tensor) -> Tensor:
        return helper(net, x)


def hooked() -> nn.Module:
    net = nn.Linear(2, 2)
    net.register_forward_hook(lambda module, args, out: out)
    return net


def bound() -> nn.Module:
    net = nn.Linear(2, 2)
    net.forward = lambda x: x  # type: ignore[method-assign]
    return net


DEPEND = {
    "a method": InAList,
    "inherited": Inherited,
    "a function that it calls": Outside,
    "a property": Property,
    "by name": ByName,
    "a function it keeps": lambda: Net(lambda net, x: x if net.training else -x),
    "a function behind a closure": lambda: Net((lambda inner: lambda net, x: inner(net, x))(helper)),
    "a partial function it keeps": lambda: Net(partial(helper)),
    "an object that can be called": lambda: Net(Callable()),
    "a hook": hooked,
    "a forward of its own": bound,
    "a parametrisation": lambda: spectral_norm(nn.Linear(2, 2)),
    "one of many": lambda: nn.Sequential(nn.Linear(2, 2), nn.Sequential(InAList())),
    "googlenet": lambda: torchvision.models.googlenet(init_weights=False),
}
SAME = {
    "layers": lambda: nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Dropout(), nn.MultiheadAttention(2, 1)),
    "a function it keeps": lambda: Net(lambda net, x: torch.relu(net.a(x)), a=nn.Linear(2, 2)),
    "resnet18": torchvision.models.resnet18,
}


@pytest.mark.parametrize("name", DEPEND)
def test_code_that_may_tell_the_modes_apart(name: str) -> None:
    assert depends_on_mode(nn.Sequential(nn.ReLU(), DEPEND[name]()))


@pytest.mark.parametrize("name", SAME)
def test_code_that_cannot(name: str) -> None:
    assert not depends_on_mode(SAME[name]())


def test_layers_of_train_mode_shrink_wherever_the_mode_is_asked_for() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.a(x)
        return net.b(net.aside(x) if torch.is_tensor(x) and net.training else x)

    net = Net(forward, a=conv(3, 8), aside=conv(8, 8), b=conv(8, 2)).train()
    assert analyse(net, Example.of(image())).passes.apart
    report = prune_once(net, image())
    assert set(report.widths) == {"a.weight"}  # `aside` returns what `b` reads, so they share their channels
    assert net(image()).shape[1] == net.eval()(image()).shape[1] == 2
