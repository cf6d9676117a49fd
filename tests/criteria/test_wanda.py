import re

import pytest
import torch
from helpers.gathering import gather
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_prune import Scope, Weights, prune_once
from lightning_prune.budgets import Sparsity
from lightning_prune.criteria import CannotScoreError, Scoring, Wanda

BY_VALUE = Wanda(by_output=False)


def test_linear_by_hand() -> None:
    # the inputs have the squares 9 + 16 + 2 and 0 + 4 + 8 and 1 + 0 + 2: means 9, 4, 1 over three examples
    layer = nn.Linear(3, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, -2.0, 5.0], [0.1, 0.2, -0.2]]))
    batches = [torch.tensor([[3.0, 0.0, -1.0], [-4.0, 2.0, 0.0]]), torch.tensor([[2.0**0.5, 8.0**0.5, 2.0**0.5]])]
    scoring, _ = gather(BY_VALUE, layer, batches)
    torch.testing.assert_close(
        BY_VALUE.score_weights("weight", scoring), torch.tensor([[3.0, 4.0, 5.0], [0.3, 0.4, 0.2]])
    )
    middles = torch.tensor([[1.0, 3.0, 5.0], [3.0, 5.0, 1.0]]) / 6
    torch.testing.assert_close(Wanda().score_weights("weight", scoring), middles)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_convolutions_weight_by_weight(groups: int) -> None:
    torch.manual_seed(0)
    layer, batch = nn.Conv2d(4, 8, (3, 2), groups=groups), torch.randn(5, 4, 6, 6)
    scoring, _ = gather(BY_VALUE, nn.Sequential(layer), [batch])
    found = BY_VALUE.score_weights("0.weight", scoring)
    for out in range(8):
        first = out // (8 // groups) * (4 // groups)  # the input that the group of this output begins with
        for number in range(4 // groups):
            norm = batch[:, first + number].double().square().mean().sqrt()
            torch.testing.assert_close(found[out, number], (layer.weight[out, number].abs() * norm).float())


def test_sequences_and_one_dimensional_convolutions() -> None:
    torch.manual_seed(0)
    batch = torch.randn(3, 7, 4)
    scoring, _ = gather(BY_VALUE, nn.Sequential(nn.Linear(4, 2)), [batch])
    torch.testing.assert_close(scoring.statistics["0"], batch.square().sum((0, 1)))
    assert scoring.statistics["examples of 0"] == 21
    scoring, _ = gather(BY_VALUE, nn.Sequential(nn.Conv1d(7, 2, 1)), [batch])
    torch.testing.assert_close(scoring.statistics["0"], batch.square().sum((0, 2)))


@pytest.mark.parametrize("sparsity", [0.25, 0.5, 0.75])
def test_every_output_loses_the_same_share(sparsity: float) -> None:
    """Of short rows as of long ones; and of every row those of which the products are the lowest."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 8))
    before, batch = [p.detach().clone() for p in (net[0].weight, net[2].weight)], torch.randn(9, 4)
    calls = {"granularity": Weights(), "criterion": Wanda(), "budget": Sparsity(sparsity, per_layer=False)}
    prune_once(net, torch.zeros(1, 4), calibrate=lambda model: model(batch), scope=Scope(exclude=["*bias"]), **calls)
    inputs = batch
    for weight, layer in zip(before, (net[0], net[2]), strict=True):
        products = weight.abs() * inputs.norm(dim=0)
        for row, left in zip(products, layer.weight != 0, strict=True):
            gone = round(sparsity * len(row))
            assert set(row.argsort()[:gone].tolist()) == set((~left).nonzero().flatten().tolist())
        inputs = F.relu(F.linear(batch, before[0], net[0].bias)).detach()


@pytest.mark.parametrize("name", ["0.bias", "1.weight", "2.weight"])
def test_only_weights_of_linear_layers_and_convolutions(name: str) -> None:
    net = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.ConvTranspose1d(3, 2, 1))
    scoring = Scoring(net, dict(net.named_parameters()))
    Wanda().check_weights("0.weight", scoring)
    with pytest.raises(
        CannotScoreError, match=r"^it is not the weight of a linear layer or convolution, so its inputs"
    ):
        Wanda().check_weights(name, scoring)


def test_layers_that_read_nothing_are_named() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(3, 2), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    scoring, _ = gather(Wanda(), Net(), [torch.ones(2, 3)])
    with pytest.raises(
        ValueError, match="^" + re.escape("Wanda needs inputs of 'unused', but none were gathered since the ")
    ):
        Wanda().score_weights("unused.weight", scoring)
