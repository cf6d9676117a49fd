import copy
import io
import re
import weakref

import pytest
import torch
from torch import Tensor, nn

from lightning_prune.budgets import BudgetError, Count, MACs, Ratio, Sparsity
from lightning_prune.criteria import BatchNormScale, Magnitude, Random, Taylor
from lightning_prune.network.example_input import Example
from lightning_prune.pruners.weight_pruner import WeightPruner
from lightning_prune.scope import Scope
from lightning_prune.surgery.apply import apply_plan
from lightning_prune.surgery.plan import Plan


def make() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 10)
    )
    nn.init.uniform_(net[1].weight)
    nn.init.uniform_(net[1].bias)
    return net


WEIGHTS = {"0.weight": 144, "4.weight": 1280}
EXAMPLE = Example.of(torch.zeros(1, 2, 4, 4))


def zeros(net: nn.Module) -> dict[str, int]:
    return {name: int((p == 0).sum()) for name, p in net.named_parameters() if (p == 0).any()}


def event(pruner: WeightPruner, net: nn.Module, fraction: float):
    report = pruner.plan(net, None, fraction)
    pruner.apply(net, report, ())
    return report


def test_shares_never_compound() -> None:
    net = make()
    pruner = WeightPruner(Magnitude(), Sparsity(0.5), Scope())
    pruner.prepare(net, None)
    first = event(pruner, net, 0.5)
    assert (first.sparsity, first.fraction) == (0.25, 0.5)
    for _ in range(4):  # as often as it is asked for
        again = event(pruner, net, 1.0)
        assert again.sparsity == 0.5
    assert sum(zeros(net).values()) == 1424 // 2
    assert (pruner.event, pruner.fraction, pruner.sparsity) == (5, 1.0, 0.5)


@pytest.mark.parametrize("budget", [Sparsity(0.6), Ratio(0.6), Ratio(0.6, per_layer=False)], ids=repr)
def test_two_events_mask_what_one_masks(budget) -> None:
    once, twice = make(), make()
    one, two = WeightPruner(Magnitude(), budget, Scope()), WeightPruner(Magnitude(), budget, Scope())
    event(one, once, 1.0)
    event(two, twice, 0.3)
    event(two, twice, 1.0)
    assert all(torch.equal(one.masks[name], two.masks[name]) for name in WEIGHTS)


def test_the_lowest_weights_of_the_network_go() -> None:
    net = make()
    before = torch.cat([net[0].weight.flatten(), net[4].weight.flatten()]).abs().detach()
    event(WeightPruner(Magnitude(), Sparsity(0.5), Scope()), net, 1.0)
    after = torch.cat([net[0].weight.flatten(), net[4].weight.flatten()]).detach()
    threshold = before.sort().values[712 - 1]
    assert torch.equal(after == 0, before <= threshold)


class Counted(Magnitude):
    """Magnitude that notes which scores are alive when others are asked for."""

    alive: list[weakref.ref] = []  # noqa: RUF012
    most = 0

    def score_weights(self, name, scoring):
        cls = type(self)
        cls.most = max(cls.most, sum(ref() is not None for ref in cls.alive))
        scores = super().score_weights(name, scoring)
        cls.alive.append(weakref.ref(scores))
        return scores


def test_scores_of_one_parameter_at_a_time_are_in_memory() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(*[nn.Linear(6, 6) for _ in range(5)])
    same = copy.deepcopy(net)
    report = event(WeightPruner(Counted(), Sparsity(0.5), Scope()), net, 1.0)
    assert Counted.most == 0
    assert len(Counted.alive) == 3 * 5  # three passes
    assert not any(ref() for ref in Counted.alive)
    plain = event(WeightPruner(Magnitude(), Sparsity(0.5), Scope()), same, 1.0)
    assert all(torch.equal(mask, plain.plan.masks[name]) for name, mask in report.plan.masks.items())


def test_scores_that_are_not_finite_are_named() -> None:
    for poison in (float("nan"), float("inf"), -float("inf")):
        net = make()
        with torch.no_grad():
            net[4].weight[3, 5] = poison
        pruner = WeightPruner(Magnitude(), Sparsity(0.5), Scope())
        with pytest.raises(ValueError, match=r"gives '4\.weight' scores that are not finite"):
            pruner.plan(net, None, 1.0)


def test_masked_weights_stay_masked_whatever_a_criterion_says_later() -> None:
    net = make()
    pruner = WeightPruner(Random(), Sparsity(0.8), Scope())  # draws anew in every event
    event(pruner, net, 0.5)
    before = dict(pruner.masks)
    event(pruner, net, 1.0)
    assert all(not (pruner.masks[name] & ~before[name]).any() for name in WEIGHTS)
    assert sum(zeros(net).values()) == round(0.8 * 1424)


def test_biases_and_norms_stay_by_default() -> None:
    net = make()
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    event(WeightPruner(Magnitude(), Sparsity(0.9), Scope()), net, 1.0)
    assert zeros(net).keys() == WEIGHTS.keys()
    for name in ("0.bias", "1.weight", "1.bias", "4.bias"):
        assert torch.equal(dict(net.named_parameters())[name], before[name])


def test_biases_and_norms_go_on_request() -> None:
    net = make()
    report = event(WeightPruner(Magnitude(), Ratio(0.5), Scope(biases_and_norms=True)), net, 1.0)
    assert report.plan.masks.keys() == dict(net.named_parameters()).keys()
    assert zeros(net)["1.weight"] == 4


def test_plan_only_decides() -> None:
    net = make()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    pruner = WeightPruner(Magnitude(), Sparsity(0.5), Scope())
    pruner.plan(net, EXAMPLE, 1.0)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert (pruner.masks, pruner.event, pruner.sparsity) == ({}, 0, 0.0)


def test_the_report_counts() -> None:
    net = make()
    pruner = WeightPruner(Magnitude(), Ratio(0.25), Scope(include=["4"]))
    report = event(pruner, net, 1.0)
    assert report.widths == {"4.weight": (1280, 960)}
    assert report.sparsity == 0.25
    total = sum(p.numel() for p in net.parameters())
    assert report.before.params == report.after.params == total
    assert report.before.nonzero - report.after.nonzero == 320
    assert report.after.nonzero == sum(int((p != 0).sum()) for p in net.parameters())
    assert report.before.macs is None
    assert (report.frozen, report.inexact, report.scores, report.plan.keep) == ({}, {}, {}, {})
    second = pruner.plan(net, EXAMPLE, 1.0)
    assert second.widths == {"4.weight": (960, 960)}
    assert second.before.macs == second.after.macs == 144 * 16 + 1280


def test_optimizer_memory_goes_with_the_weights() -> None:
    net = make()
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.randn(4, 2, 4, 4)).sum().backward()
    optimizer.step()
    pruner = WeightPruner(Magnitude(), Sparsity(0.5), Scope())
    pruner.apply(net, pruner.plan(net, None, 1.0), [optimizer])
    for name, mask in pruner.masks.items():
        state = optimizer.state[dict(net.named_parameters())[name]]
        assert not state["exp_avg"][~mask].any()
        assert not state["exp_avg_sq"][~mask].any()
        assert state["exp_avg"][mask].any()


def test_the_state_survives_a_checkpoint() -> None:
    net = make()
    pruner = WeightPruner(Magnitude(), Sparsity(0.5), Scope())
    event(pruner, net, 0.5)
    buffer = io.BytesIO()
    torch.save(pruner.state_dict(), buffer)
    buffer.seek(0)
    resumed = WeightPruner(Magnitude(), Sparsity(0.5), Scope())
    resumed.load_state_dict(torch.load(buffer, weights_only=True))
    assert (resumed.event, resumed.fraction, resumed.sparsity) == (1, 0.5, 0.25)
    assert resumed.masks.keys() == pruner.masks.keys()
    assert all(torch.equal(resumed.masks[name], mask) for name, mask in pruner.masks.items())
    one, other = pruner.plan(net, None, 1.0), resumed.plan(net, None, 1.0)
    assert all(torch.equal(one.plan.masks[name], other.plan.masks[name]) for name in WEIGHTS)


def test_the_enforcer_holds_the_masks_of_a_resumed_pruner() -> None:
    net = make()
    pruner = WeightPruner(Magnitude(), Sparsity(0.5), Scope())
    event(pruner, net, 1.0)
    resumed = WeightPruner(Magnitude(), Sparsity(0.5), Scope())
    resumed.load_state_dict(pruner.state_dict())
    for name in WEIGHTS:
        nn.init.ones_(dict(net.named_parameters())[name])
    resumed.enforcer(net).apply([])
    assert sum(zeros(net).values()) == 712


def test_masks_follow_removed_channels() -> None:
    net = make()
    pruner = WeightPruner(Magnitude(), Sparsity(0.5), Scope())
    event(pruner, net, 1.0)
    before = dict(pruner.masks)
    filters = torch.tensor([0, 3, 4, 7])
    columns = (filters[:, None] * 16 + torch.arange(16)).flatten()
    plan = Plan(
        keep={
            **{name: {0: filters} for name in ("0.weight", "0.bias")},
            **{name: {0: filters} for name in ("1.weight", "1.bias", "1.running_mean", "1.running_var")},
            "4.weight": {1: columns},
        }
    )
    apply_plan(net, plan)
    pruner.follow(plan)
    assert torch.equal(pruner.masks["0.weight"], before["0.weight"][filters])
    assert torch.equal(pruner.masks["4.weight"], before["4.weight"][:, columns])
    assert torch.equal(net[0].weight == 0, ~pruner.masks["0.weight"])
    pruner.enforcer(net).apply([])
    event(pruner, net, 1.0)  # and the next event goes on from there, bringing nothing back
    assert not (pruner.masks["0.weight"] & ~before["0.weight"][filters]).any()
    assert not (pruner.masks["4.weight"] & ~before["4.weight"][:, columns]).any()


def test_nothing_comes_back_where_the_masked_weights_are_what_is_left() -> None:
    net = nn.Sequential(nn.Linear(4, 4, bias=False))
    with torch.no_grad():
        net[0].weight.copy_(torch.arange(1.0, 17).reshape(4, 4))
    pruner = WeightPruner(Magnitude(), Sparsity(0.5), Scope())
    event(pruner, net, 1.0)  # the first two rows
    plan = Plan(keep={"0.weight": {0: torch.tensor([0, 1, 2])}})
    apply_plan(net, plan)
    pruner.follow(plan)
    report = event(pruner, net, 1.0)
    assert report.widths == {"0.weight": (4, 4)}
    assert net[0].weight.tolist() == [[0] * 4, [0] * 4, [9, 10, 11, 12]]


def test_everything_is_checked_before_the_first_event() -> None:
    net = make()
    with pytest.raises(BudgetError, match="keeps no weight in a parameter"):
        WeightPruner(Magnitude(), Sparsity(1), Scope()).prepare(net, None)
    with pytest.raises(BudgetError, match="in 3 events requires 1500 weights, but only 1422 can be removed"):
        WeightPruner(Magnitude(), Count(500), Scope()).prepare(net, None, events=3)
    WeightPruner(Magnitude(), Count(500), Scope()).prepare(net, None, events=2)
    with pytest.raises(ValueError, match="matches nothing in Sequential"):
        WeightPruner(Magnitude(), Sparsity(0.5), Scope(include=["fc"])).prepare(net, None)


def test_counts_add_up() -> None:
    net = make()
    pruner = WeightPruner(Magnitude(), Count(100), Scope())
    for expected in (100, 200, 300):
        event(pruner, net, 0.1)
        assert sum(zeros(net).values()) == expected


@pytest.mark.parametrize("criterion", [Taylor(), BatchNormScale()], ids=repr)
def test_the_criterion_must_score_weights(criterion) -> None:
    with pytest.raises(
        ValueError,
        match="^"
        + re.escape(f"criterion {criterion!r} does not score weights; use Channels(), or another criterion")
        + "$",
    ):
        WeightPruner(criterion, Sparsity(0.5), Scope())


def test_the_budget_must_count_weights() -> None:
    with pytest.raises(
        ValueError,
        match="^"
        + re.escape(
            "budget MACs(keep=0.5, per_layer=False) counts what is physically removed; "
            "with Weights() use Sparsity or Count"
        )
        + "$",
    ):
        WeightPruner(Magnitude(), MACs(0.5), Scope())


def test_shared_weights_are_masked_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(6, 6)
            self.two = nn.Linear(6, 6)
            self.two.weight = self.one.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.two(self.one(x))

    net = Tied()
    report = event(WeightPruner(Magnitude(), Sparsity(0.5), Scope()), net, 1.0)
    assert list(report.plan.masks) == ["one.weight"]
    assert int((net.two.weight == 0).sum()) == 18
