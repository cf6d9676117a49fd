import warnings

import pytest
import torch
from torch import Tensor, nn

from lightning_prune import Channels, Scope
from lightning_prune.budgets import Ratio
from lightning_prune.channel_pruner import ChannelPruner
from lightning_prune.coupling import Example
from lightning_prune.criteria import BatchNormScale, Criterion, Magnitude, Taylor


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
        "BatchNormScale() cannot score 4 of the 5 groups of channels in the scope; these stay as they are "
        "('hidden.0.weight', 'hidden.1.weight', 'hidden.2.weight' and 1 more: no batch norm with a scale stands behind "
        "these channels). Magnitude() scores every group."
    )


@pytest.mark.parametrize("criterion", [Taylor(), Magnitude()])
def test_nothing_is_said_where_all_are_scored(criterion: Criterion) -> None:
    assert prepared(criterion, Scope()) == ""


def test_nothing_is_said_of_others_than_the_scope_has() -> None:
    assert prepared(BatchNormScale(), Scope(include=["conv"])) == ""


def test_nothing_is_said_again_after_an_event() -> None:
    assert prepared(BatchNormScale(), Scope(), event=1) == ""


def test_attention_in_one_call_shows_taylor_no_heads() -> None:
    net = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 12, batch_first=True), 1)
    pruner = ChannelPruner(Channels(), Taylor(), Ratio(0.5), Scope())
    with pytest.warns(UserWarning, match=r"self_attn.*no layer output shows these channels.*Magnitude\(\) scores"):
        pruner.prepare(nn.Sequential(nn.Linear(3, 8), net, nn.Linear(8, 2)), Example.of(torch.zeros(2, 4, 3)))
