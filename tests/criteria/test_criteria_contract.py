"""What every criterion promises. A new criterion adds a row."""

import copy
import pickle
from contextlib import suppress
from dataclasses import FrozenInstanceError, fields, replace

import pytest
import torch
from torch import Tensor, nn

from lightning_prune import criteria
from lightning_prune.coupling import Coupling, find_coupling
from lightning_prune.criteria import (
    LAMP,
    SNIP,
    APoZ,
    BatchNormScale,
    BlockInfluence,
    CannotScoreError,
    Criterion,
    Fisher,
    GateTaylor,
    GeometricMedian,
    GraSP,
    Hessian,
    Magnitude,
    MagnitudeIncrease,
    MeanActivation,
    Movement,
    Random,
    Scoring,
    Sensitivity,
    SynFlow,
    Taylor,
    Wanda,
    WeightTaylor,
)
from lightning_prune.criteria.criterion import combine
from lightning_prune.criteria.statistics import BlockChanges
from lightning_prune.network.example_input import Example
from lightning_prune.network.tensors import named_tensors

ROWS = [
    Magnitude(), Magnitude(p=1), BatchNormScale(), Random(), Random(seed=7), Taylor(), Taylor(every_n_steps=2), APoZ(),
    Fisher(), GateTaylor(), GeometricMedian(), GraSP(), Hessian(), Hessian(seed=3), LAMP(), MeanActivation(),
    MagnitudeIncrease(), MagnitudeIncrease(distance=True), Movement(), Movement(penalty=0.1), SNIP(), SynFlow(),
    SynFlow(rounds=2), Wanda(), Wanda(by_output=False), WeightTaylor(every_n_steps=2), BlockInfluence(), Sensitivity(),
]  # fmt: skip
BLOCKS = ("bn1", "bn2", "bn4")  # of the network below: what they return has the shape of what they receive
CHANNELS = [row for row in ROWS if row.scores_channels]
WEIGHTS = [row for row in ROWS if row.scores_weights]
DRAWN = (Random, Hessian)  # by place
IN_UNITS_OF_THE_LOSS = (Fisher, GateTaylor, Hessian, Movement, WeightTaylor)  # not brought to one scale by group
DATA_FREE = [row for row in ROWS if row.statistics() is None]


class Net(nn.Module):
    """A residual stream of 6 channels, an inner layer of 4, and a layer of 5 behind a flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 6, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(6)
        self.inner = nn.Conv2d(6, 4, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(4)
        self.outer = nn.Conv2d(4, 6, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(6)
        self.last = nn.Conv2d(6, 5, 3)
        self.bn4 = nn.BatchNorm2d(5)
        self.head = nn.Linear(5 * 2 * 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.stem(x)).relu()
        x = x + self.bn3(self.outer(self.bn2(self.inner(x)).relu()))
        return self.head(self.bn4(self.last(x.relu())).relu().flatten(1))


def make(dtype: torch.dtype = torch.float32) -> tuple[Net, Coupling, Tensor]:
    torch.manual_seed(0)
    net = Net()
    for norm in (net.bn1, net.bn2, net.bn3, net.bn4):
        nn.init.uniform_(norm.weight, -1, 1)
    batch = torch.randn(4, 2, 4, 4).to(dtype)
    net = net.to(dtype)
    return net, find_coupling(net, Example.of(batch)), batch


def scoring_of(criterion: Criterion, net: nn.Module, coupling: Coupling, batch: Tensor, event: int = 0) -> Scoring:
    statistics, example = criterion.statistics(), Example.of(batch)
    if statistics is None:
        losses = {name: torch.tensor(1.5**n) for n, name in enumerate(["", *BLOCKS])}
        return Scoring(net, dict(named_tensors(net)), losses, event, example)
    if isinstance(statistics, BlockChanges):
        statistics.attach(net, blocks=BLOCKS)
    else:
        statistics.attach(net, coupling.groups.values(), [name for name, _ in net.named_parameters()])
    statistics.begin_step(0)
    loss = net(batch).square().sum()
    statistics.before_backward(loss)
    loss.backward()
    statistics.commit()
    statistics.before_optimizer_step({id(parameter) for parameter in net.parameters()})
    statistics.end_step()
    statistics.detach()
    if isinstance(criterion, MagnitudeIncrease):  # which has nothing to say of a network that was never trained
        torch.optim.SGD(net.parameters(), 1e-3).step()
    net.zero_grad(set_to_none=True)
    return Scoring(net, dict(named_tensors(net)), statistics.totals, event, example)


def all_scores(criterion: Criterion, net: nn.Module, coupling: Coupling, scoring: Scoring) -> dict[str, Tensor]:
    scores: dict[str, Tensor] = {}
    if criterion.scores_channels:
        for name, group in coupling.groups.items():
            criterion.check(group, scoring)
            scores[f"units of {name}"] = criterion.score_units(group, scoring)
    if criterion.scores_weights:
        for name, _ in net.named_parameters():
            with suppress(CannotScoreError):
                criterion.check_weights(name, scoring)
                scores[f"weights of {name}"] = criterion.score_weights(name, scoring)
    if criterion.scores_blocks:
        scores["blocks of the network"] = criterion.score_blocks(BLOCKS, scoring)
    return scores


def test_every_exported_criterion_has_a_row() -> None:
    exported = {
        cls
        for name in criteria.__all__
        if isinstance(cls := getattr(criteria, name), type) and issubclass(cls, Criterion) and cls is not Criterion
    }
    assert {type(row) for row in ROWS} == exported


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("criterion", ROWS, ids=repr)
def test_scores_are_finite_float32_of_the_right_shape(criterion: Criterion, dtype: torch.dtype) -> None:
    net, coupling, batch = make(dtype)
    scores = all_scores(criterion, net, coupling, scoring_of(criterion, net, coupling, batch))
    parameters = dict(net.named_parameters())
    assert [len(s) for n, s in scores.items() if n.startswith("units")] in ([], [6, 4, 5])
    for name, values in scores.items():
        assert values.dtype == torch.float32, name
        assert values.isfinite().all(), name
        assert not values.requires_grad, name
        assert values.unique().numel() > 1 or name.endswith("bias") or "bn" in name, name  # says something
        kind, _, tensor = name.partition(" of ")
        if kind == "blocks":
            size = (len(BLOCKS),)
        else:
            size = (coupling.groups[tensor].size,) if kind == "units" else tuple(parameters[tensor].shape)
        assert tuple(values.shape) == size, name


@pytest.mark.parametrize("criterion", ROWS, ids=repr)
def test_flags_say_what_can_be_scored(criterion: Criterion) -> None:
    net, coupling, batch = make()
    scoring = scoring_of(criterion, net, coupling, batch)
    assert criterion.scores_channels or criterion.scores_weights or criterion.scores_blocks
    if not criterion.scores_channels:
        with pytest.raises(TypeError, match=f"^{type(criterion).__name__} does not score channels$"):
            criterion.score_units(coupling.groups["stem.weight"], scoring)
    if not criterion.scores_weights:
        with pytest.raises(TypeError, match=f"^{type(criterion).__name__} does not score weights$"):
            criterion.score_weights("stem.weight", scoring)
    if not criterion.scores_blocks:
        with pytest.raises(TypeError, match=f"^{type(criterion).__name__} does not score blocks$"):
            criterion.score_blocks(BLOCKS, scoring)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("criterion", ROWS, ids=repr)
def test_the_network_is_not_touched(criterion: Criterion, training: bool) -> None:
    net, coupling, batch = make()
    net.train(training)
    scoring = scoring_of(criterion, net, coupling, batch)
    before = copy.deepcopy(net.state_dict())
    sums = {name: value.clone() for name, value in scoring.statistics.items()}
    random = torch.get_rng_state()
    all_scores(criterion, net, coupling, scoring)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(torch.equal(value, sums[name]) for name, value in scoring.statistics.items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in net.parameters())
    assert all(module.training is training and not module._forward_hooks for module in net.modules())
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize("criterion", ROWS, ids=repr)
def test_scores_are_deterministic(criterion: Criterion) -> None:
    first, second = (
        all_scores(criterion, net, coupling, scoring_of(criterion, net, coupling, batch))
        for net, coupling, batch in (make(), make())
    )
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("criterion", [row for row in CHANNELS if not isinstance(row, (*DRAWN, LAMP))], ids=repr)
def test_equal_units_score_equal(criterion: Criterion) -> None:
    net, coupling, batch = make()
    tensors = dict(named_tensors(net))
    group = coupling.groups["stem.weight"]
    with torch.no_grad():
        for member in group.members:
            source, target = member.index[1], member.index[4]
            tensors[member.tensor].index_copy_(
                member.dim, target, tensors[member.tensor].index_select(member.dim, source)
            )
    scores = criterion.score_units(group, scoring_of(criterion, net, coupling, batch))
    torch.testing.assert_close(scores[1], scores[4], rtol=1e-5, atol=1e-7)
    assert not torch.isclose(scores[1], scores[0])


@pytest.mark.parametrize("criterion", [row for row in WEIGHTS if isinstance(row, Magnitude)], ids=repr)
def test_equal_weights_score_equal(criterion: Criterion) -> None:
    net, coupling, batch = make()
    nn.init.constant_(net.head.weight, 0.3)
    scores = criterion.score_weights("head.weight", scoring_of(criterion, net, coupling, batch))
    assert scores.unique().numel() == 1


@pytest.mark.parametrize("criterion", CHANNELS, ids=repr)
def test_scores_follow_a_permutation_of_the_units(criterion: Criterion) -> None:
    if isinstance(criterion, DRAWN):
        return
    net, coupling, batch = make()
    group = coupling.groups["inner.weight"]
    before = criterion.score_units(group, scoring_of(criterion, net, coupling, batch))
    order = torch.tensor([2, 0, 3, 1])
    net, coupling, batch = make()
    tensors = dict(named_tensors(net))
    with torch.no_grad():
        for member in group.members:
            moved = tensors[member.tensor].index_select(member.dim, member.index[order].flatten())
            tensors[member.tensor].index_copy_(member.dim, member.index.flatten(), moved)
    after = criterion.score_units(group, scoring_of(criterion, net, coupling, batch))
    torch.testing.assert_close(after, before[order], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("criterion", ROWS, ids=repr)
def test_criteria_are_frozen_values(criterion: Criterion) -> None:
    twin = eval(repr(criterion))
    assert twin == criterion
    assert hash(twin) == hash(criterion)
    assert pickle.loads(pickle.dumps(criterion)) == criterion
    assert type(criterion)() == type(criterion)()  # every argument has a default
    for name in [field.name for field in fields(criterion)] + ["anything"]:
        with pytest.raises((FrozenInstanceError, TypeError)):
            setattr(criterion, name, 1)


@pytest.mark.parametrize("criterion", ROWS, ids=repr)
def test_every_pruner_gets_a_collector_of_its_own(criterion: Criterion) -> None:
    first, second = criterion.statistics(), criterion.statistics()
    assert (first is None) is (second is None)
    assert first is None or first is not second


# ---- how the scores in several coupled tensors become one


@pytest.mark.parametrize("how", ["sum", "mean", "max", "first"])
@pytest.mark.parametrize("criterion", CHANNELS, ids=repr)
def test_scores_of_every_aggregate_are_finite_and_on_the_same_scale(criterion: Criterion, how: str) -> None:
    net, coupling, batch = make()
    plain = scoring_of(criterion, net, coupling, batch)
    for name, group in coupling.groups.items():
        by_sum = criterion.score_units(group, plain)
        scores = criterion.score_units(group, replace(plain, aggregate=how))
        assert scores.dtype == torch.float32
        assert scores.shape == (group.size,)
        assert scores.isfinite().all()
        if isinstance(criterion, Magnitude):
            assert scores.mean().item() == pytest.approx(1), name
        if isinstance(criterion, Taylor):
            assert scores.norm().item() == pytest.approx(1), name
        if how == "sum" or (how == "mean" and not isinstance(criterion, IN_UNITS_OF_THE_LOSS)):
            torch.testing.assert_close(scores, by_sum)


@pytest.mark.parametrize("criterion", [row for row in CHANNELS if not isinstance(row, DRAWN)], ids=repr)
def test_aggregates_differ_where_several_tensors_are_coupled(criterion: Criterion) -> None:
    net, coupling, batch = make()
    plain, group = scoring_of(criterion, net, coupling, batch), coupling.groups["stem.weight"]
    found = [criterion.score_units(group, replace(plain, aggregate=how)) for how in ("sum", "max", "first")]
    assert not any(torch.allclose(found[a], found[b]) for a, b in ((0, 1), (0, 2), (1, 2)))


def test_combine_by_hand() -> None:
    scores = [torch.tensor([1.0, 4.0, 0.0]), torch.tensor([3.0, 0.0, 0.0]), torch.tensor([2.0, 2.0, 0.0])]
    assert combine(scores, "sum").tolist() == [6, 6, 0]
    assert combine(scores, "mean").tolist() == [2, 2, 0]
    assert combine(scores, "max").tolist() == [3, 4, 0]
    assert combine(scores, "first").tolist() == [1, 4, 0]
    for how in ("sum", "mean", "max", "first"):
        assert torch.equal(combine(scores[:1], how), scores[0])
