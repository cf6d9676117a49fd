"""Statistics and scores without a Trainer."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from lightning_prune.coupling import Group, find_coupling
from lightning_prune.criteria import Criterion, Scoring
from lightning_prune.criteria.statistics import Statistics
from lightning_prune.network.example_input import Example
from lightning_prune.network.tensors import named_tensors


def by_hand() -> nn.Sequential:
    """h = (6, 1) and y = 11 for x = (1, 2), so w * dy/dw is ((2, 8), (-3, 2)), (2, 0) and (12, -1)."""
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0, 2.0], [3.0, -1.0]]))
        net[0].bias.copy_(torch.tensor([1.0, 0.0]))
        net[1].weight.copy_(torch.tensor([[2.0, -1.0]]))
        net[1].bias.zero_()
    return net


X = torch.tensor([[1.0, 2.0]])


def one_step(statistics: Statistics, net: nn.Module, loss: Tensor, optimizers: Iterable[nn.Module] = ()) -> None:
    """What a Trainer does with one batch, up to where optimizers, each of a module's parameters, would step."""
    statistics.before_backward(loss)
    loss.backward()
    statistics.commit()
    for module in optimizers or [net]:
        statistics.before_optimizer_step({id(parameter) for parameter in module.parameters()})
    net.zero_grad()
    statistics.end_step()


def gather(criterion: Criterion, net: nn.Module, batches: Iterable[Tensor]) -> tuple[Scoring, dict[str, Group]]:
    """What ``criterion`` sees of everything in ``net`` when the sums of outputs are losses, and the groups."""
    batches = list(batches)
    statistics = criterion.statistics()
    groups = dict(find_coupling(net, Example.of(batches[0])).groups)
    if statistics is not None:
        statistics.attach(net, groups.values(), [name for name, _ in net.named_parameters()])
        for number, batch in enumerate(batches):
            statistics.begin_step(number)
            one_step(statistics, net, net(batch).sum())
        statistics.detach()
    totals = {} if statistics is None else statistics.totals
    return Scoring(net, dict(named_tensors(net)), totals), groups
