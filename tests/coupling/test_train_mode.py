"""Which networks must be traced in train mode."""

from functools import partial
from typing import Any

import pytest
import torch
import torchvision
from helpers.coupling_nets import Net, conv, image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from lightning_prune import prune_once
from lightning_prune.coupling import find_coupling
from lightning_prune.coupling.train_mode import TrainingFlagWatch, overrides_mode_switch
from lightning_prune.network.example_input import Example, run_on_copy


def asked(net: nn.Module, inputs: Any) -> bool:
    def use(copy: nn.Module, example: Example) -> bool:
        with TrainingFlagWatch() as mode:
            example.run(copy.eval())
        return mode.was_read or overrides_mode_switch(copy)

    found: bool = run_on_copy(net, Example.of(inputs), use)
    return found


class Base(nn.Module):
    """Two outputs in train mode."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.o, self.aux = nn.Linear(4, 16), nn.Linear(16, 3), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Any:
        h = self.a(x).relu()
        return (self.o(h), self.aux(h)) if self.trains() else self.o(h)

    def trains(self) -> bool:
        return self.training


def helper(module: Any) -> bool:
    return bool(module.training)


class Outside(Base):
    def trains(self) -> bool:
        return helper(self)


class ByName(Base):
    def trains(self) -> bool:
        return bool(getattr(self, "train" + "ing"))


class Inherited(Outside):
    pass


class Flag(Base):
    flag = True

    def train(self, mode: bool = True) -> Any:
        self.flag = mode
        return super().train(mode)

    def trains(self) -> bool:
        return self.flag


class Router:
    def __init__(self, owner: Any) -> None:
        self.owner = [owner]

    def __call__(self) -> bool:
        return self.owner[0].training


class Kept(Base):
    def __init__(self) -> None:
        super().__init__()
        self.router = Router(self)

    def trains(self) -> bool:
        return self.router()


class OfAChild(Base):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Sequential(self.a)

    def trains(self) -> bool:
        return self.a.training


class OfALayer(Base):
    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout()

    def trains(self) -> bool:
        return self.drop.training


class Hooked(Base):
    def __init__(self) -> None:
        super().__init__()
        self.a.register_forward_hook(lambda module, args, out: out * 2 if module.training else out)

    def trains(self) -> bool:
        return False


class Parametrised(Hooked):
    def __init__(self) -> None:
        super().__init__()
        self.a = spectral_norm(nn.Linear(4, 16))


DEPEND = {
    "asked in forward": Base,
    "inherited": Inherited,
    "a function that it calls": Outside,
    "by name": ByName,
    "a flag that train() sets": Flag,
    "an object that it keeps": Kept,
    "a child is asked": OfAChild,
    "a layer of PyTorch's is asked": OfALayer,
    "a hook on a layer": Hooked,
    "a parametrisation": Parametrised,
    "a partial function": lambda: Net(lambda net, x: partial(lambda m: -x if m.training else x, net)()),
    "inside another network": lambda: nn.Sequential(nn.Linear(4, 4), nn.Sequential(Base())),
}
SAME = {
    "layers": (lambda: nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2), nn.Dropout()), (2, 3, 4, 4)),
    "a function it keeps": (lambda: Net(lambda net, x: torch.relu(net.a(x)), a=nn.Linear(4, 2)), (2, 4)),
    "resnet18": (torchvision.models.resnet18, (2, 3, 64, 64)),
    "mnasnet0_5": (torchvision.models.mnasnet0_5, (2, 3, 64, 64)),
}


@pytest.mark.parametrize("name", DEPEND)
def test_code_that_may_distinguish_the_modes(name: str) -> None:
    assert asked(DEPEND[name](), torch.randn(2, 4))


@pytest.mark.parametrize("name", SAME)
def test_code_that_does_not_distinguish_the_modes(name: str) -> None:
    make, shape = SAME[name]
    assert not asked(make(), torch.randn(shape))


@pytest.mark.parametrize("make", [Base, Outside, ByName, Flag, Kept, OfAChild, OfALayer])
def test_layers_that_only_train_mode_uses_shrink_as_well(make: Any) -> None:
    net = make().train()
    report = prune_once(net, torch.randn(2, 4))
    assert report.widths == {"a.0.weight" if make is OfAChild else "a.weight": (16, 8)}
    assert [out.shape for out in net.train()(torch.randn(2, 4))] == [(2, 3), (2, 3)]
    assert net.eval()(torch.randn(2, 4)).shape == (2, 3)
    assert type(net) is make


class Counting(Base):
    """Reads a value in train mode only, which the meta device does not have."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.zeros(()))

    def trains(self) -> bool:
        return self.training and self.steps.item() >= 0


class WantingTargets(Base):
    def trains(self) -> bool:
        if self.training:
            raise ValueError("no targets")
        return False


def test_train_mode_that_reads_values_is_traced_on_a_copy_with_values() -> None:
    net = Counting()
    coupling = find_coupling(net, Example.of(torch.randn(2, 4)))
    assert (coupling.on_meta, coupling.passes.train_differs) == (False, True)
    prune_once(net, torch.randn(2, 4))
    assert [out.shape for out in net.train()(torch.randn(2, 4))] == [(2, 3), (2, 3)]


def test_train_mode_that_needs_targets_does_not_leave_the_meta_device() -> None:
    coupling = find_coupling(WantingTargets(), Example.of(torch.randn(2, 4)))
    assert (coupling.on_meta, coupling.passes.train_differs, coupling.passes.train_fails) == (True, False, True)
    said = "the forward pass never uses it; it may in train mode, which does not run on the example input alone"
    assert coupling.frozen["aux.weight"] == said


class OtherBuffer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.o = nn.Linear(4, 16), nn.Linear(16, 3)
        self.register_buffer("now", torch.randn(5, 16))
        self.register_buffer("mean", torch.randn(5, 16))

    def forward(self, x: Tensor) -> Any:
        h = self.a(x).relu()
        return self.o(h), F.linear(h, self.now if self.training else self.mean)


class OtherHalf(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.o = nn.Linear(4, 32), nn.BatchNorm1d(32), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        both = self.norm(self.a(x)).relu()
        half = both.shape[1] // 2
        return self.o(both[:, :half] if self.training else both[:, half:])


@pytest.mark.parametrize("make", [OtherBuffer, OtherHalf])
def test_the_same_operations_on_other_tensors_are_no_noise(make: Any) -> None:
    net = make()
    assert find_coupling(net, Example.of(torch.randn(2, 4))).passes.train_differs
    prune_once(net, torch.randn(2, 4))
    net.train()(torch.randn(2, 4))
    net.eval()(torch.randn(2, 4))


def test_layers_of_train_mode_shrink_wherever_the_mode_is_read() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.a(x)
        return net.b(net.aside(x) if torch.is_tensor(x) and net.training else x)

    net = Net(forward, a=conv(3, 8), aside=conv(8, 8), b=conv(8, 2)).train()
    assert find_coupling(net, Example.of(image())).passes.train_differs
    report = prune_once(net, image())
    assert set(report.widths) == {"a.weight"}  # `aside` returns what `b` reads, so they share their channels
    assert net(image()).shape[1] == net.eval()(image()).shape[1] == 2


def test_modules_are_as_before() -> None:
    scripted = torch.jit.script(nn.Linear(4, 4))
    net = nn.Sequential(nn.Linear(4, 4), scripted)
    with TrainingFlagWatch():
        assert net.train().training
        assert not net.eval().training
        assert scripted.training is False
        assert nn.Linear(2, 2).training
    assert "training" not in vars(nn.Module)
    assert not net[0].training
    assert vars(net[0])["training"] is False
