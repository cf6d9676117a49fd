import copy
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel

from lightning_prune import Channels, Scope
from lightning_prune.budgets import Ratio
from lightning_prune.criteria import BatchNormScale, Criterion, Magnitude, Taylor
from lightning_prune.network.averages import frozen_copies
from lightning_prune.network.example_input import Example
from lightning_prune.pruners.channel_pruner import ChannelPruner


class Net(nn.Module):
    """A convolution with a norm behind it and four hidden layers without one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6)
        self.hidden = nn.ModuleList(nn.Linear(6 if number == 0 else 5, 5) for number in range(4))
        self.head = nn.Linear(5, 2)

    def forward(self, images: Tensor) -> Tensor:
        values = self.norm(self.conv(images)).relu().mean((2, 3))
        for layer in self.hidden:
            values = layer(values).relu()
        return self.head(values)


def prepared(criterion: Criterion, scope: Scope, event: int = 0) -> str:
    """What is warned of."""
    pruner = ChannelPruner(Channels(), criterion, Ratio(0.5), scope)
    pruner.event = event
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pruner.prepare(Net(), Example.of(torch.zeros(2, 1, 5, 5)))
    return "\n".join(str(warning.message) for warning in caught if "score" in str(warning.message))


def test_groups_that_stay_are_named() -> None:
    assert prepared(BatchNormScale(), Scope()) == (
        "BatchNormScale() cannot score 4 of the 5 groups of channels in the scope; they are not pruned "
        "('hidden.0.weight', 'hidden.1.weight', 'hidden.2.weight' and 1 more: no batch norm with a scale follows these "
        "channels). Magnitude() scores every group."
    )


@pytest.mark.parametrize("criterion", [Taylor(), Magnitude()])
def test_nothing_is_said_where_all_are_scored(criterion: Criterion) -> None:
    assert prepared(criterion, Scope()) == ""


def test_nothing_is_said_of_others_than_the_scope_has() -> None:
    assert prepared(BatchNormScale(), Scope(include=["conv"])) == ""


def test_nothing_is_said_again_after_an_event() -> None:
    assert prepared(BatchNormScale(), Scope(), event=1) == ""


def test_weights_that_a_function_reads_show_taylor_nothing() -> None:
    class Functional(Net):
        def forward(self, images: Tensor) -> Tensor:
            values = self.norm(self.conv(images)).relu().mean((2, 3))
            for layer in self.hidden:
                assert isinstance(layer, nn.Linear)
                values = F.linear(values, layer.weight, layer.bias).relu()
            return self.head(values)

    pruner = ChannelPruner(Channels(), Taylor(), Ratio(0.5), Scope())
    with pytest.warns(UserWarning, match=r"score 4 of the 5 .*cannot score them; WeightTaylor\(\) can\)\."):
        pruner.prepare(Functional(), Example.of(torch.zeros(2, 1, 5, 5)))


class Student(nn.Module):
    """A network and a copy of it that does not train."""

    def __init__(self, start: str = "equal", average: bool = False) -> None:
        super().__init__()
        self.student = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2))
        self.teacher = AveragedModel(self.student) if average else copy.deepcopy(self.student)
        self.teacher.requires_grad_(start == "trained")
        for number in (0, 2) if start == "other" else ():
            nn.init.normal_(self.teacher[number].weight)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.student(inputs)


@pytest.mark.parametrize(
    ("model", "said"),
    [(Student(), 1), (Student("other"), 0), (Student("trained"), 0), (Student(average=True), 0), (Net(), 0)],
)
def test_a_frozen_copy_is_named(model: nn.Module, said: int) -> None:
    pruner = ChannelPruner(Channels(), Magnitude(), Ratio(0.5), Scope())
    inputs = torch.zeros(2, 1, 5, 5) if isinstance(model, Net) else torch.zeros(2, 3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pruner.prepare(model, Example.of(inputs))
    found = [str(warning.message) for warning in caught if "frozen copy" in str(warning.message)]
    assert len(found) == said
    if said:
        assert found[0].startswith("'teacher' is a frozen copy of 'student' and keeps its size")


def test_frozen_layers_of_a_network_are_no_copies_of_it() -> None:
    torch.manual_seed(0)
    blocks = nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)) for _ in range(3)))
    blocks[0].requires_grad_(False)
    blocks.append(nn.LayerNorm(4))
    blocks.append(nn.LayerNorm(4).requires_grad_(False))
    assert frozen_copies(nn.Sequential(blocks)) == {}
