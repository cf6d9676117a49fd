"""Removing whole blocks without a Trainer: what goes, what is left, and what files say of it."""

import copy
import io
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.residual import Block, residual_net
from helpers.training import images, same
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel

from lightning_prune import Blocks, Channels, Plan, Report, Scope, Weights, load_pruned, prune_once
from lightning_prune.budgets import ERK, Budget, BudgetError, Count, MACs, Params, Ratio, Sparsity
from lightning_prune.checkpoint.as_built import as_built_of
from lightning_prune.checkpoint.inspection import inspect_file, show
from lightning_prune.checkpoint.manifest import (
    is_pruned,
    params_as_built,
    removed_modules_in,
    set_removed_modules,
    track_plan,
    track_shapes,
)
from lightning_prune.checkpoint.stored_weights import StoredWeights
from lightning_prune.criteria import BlockInfluence, Magnitude, Random, Sensitivity
from lightning_prune.network.example_input import Example
from lightning_prune.network.size import measure
from lightning_prune.pruners.block_pruner import BlockPruner
from lightning_prune.pruners.pruner import Pruner
from lightning_prune.pruners.weight_pruner import WeightPruner
from lightning_prune.surgery.apply import apply_plan
from lightning_prune.surgery.averaged_copies import with_averages

IMAGE = torch.zeros(2, 2, 3, 4)
INPUTS, LABELS = images(16)[:]
ONE = 6 * 6 * 9 + 6 + 12 + 6 * 6 + 6  # parameters of a block


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return residual_net()


def losses(model: nn.Module) -> Any:
    """Mean losses over two batches."""
    return (F.cross_entropy(model(INPUTS[part]), LABELS[part]) for part in (slice(0, 8), slice(8, 16)))


def prune(model: nn.Module, budget: Budget | None = None, **settings: Any) -> Report:
    settings = {"criterion": Random(), "granularity": Blocks(), **settings}
    return prune_once(model, IMAGE, budget=budget or Count(2), **settings)


def skipping(model: nn.Module, names: Any) -> nn.Module:
    """The whole network, in which the named modules hand on their input."""
    model = copy.deepcopy(model)
    for name in names:
        model.get_submodule(name).register_forward_hook(lambda module, args, output: args[0])
    return model


def saved(content: Any, path: Path) -> Path:
    torch.save(content, path)
    return path


# --- what is left


@pytest.mark.parametrize("training", [True, False])
def test_removed_is_skipped_to_the_bit(training: bool) -> None:
    model = net().train(training)
    dense, whole = copy.deepcopy(model), {name: value.clone() for name, value in model.state_dict().items()}
    report = prune(model)
    assert len(report.plan.removed_modules) == 2
    assert torch.equal(model(INPUTS), skipping(dense, report.plan.removed_modules)(INPUTS))
    left = {name: value for name, value in whole.items() if not name.startswith(report.plan.removed_modules)}
    assert list(left) == list(model.state_dict())
    for name in report.plan.removed_modules:
        assert type(model.get_submodule(name)) is nn.Identity
        assert model.get_submodule(name).training == training
    assert not any(module._forward_hooks for module in model.modules())


def test_the_report_says_what_is_measured() -> None:
    model = net()
    with torch.no_grad():
        model[1].conv1.weight[0] = 0.0
    before = measure(model, Example.of(IMAGE))
    report = prune(model)
    assert report.before == before
    assert report.after == measure(model, Example.of(IMAGE))
    assert report.sparsity == pytest.approx(2 * ONE / before.params)
    assert report.removes
    assert {name: after for name, (_, after) in report.widths.items()} == {
        name: int(name not in report.plan.removed_modules) for name in ("1", "2", "3", "4")
    }
    first, second = report.plan.removed_modules
    assert str(report).endswith(f"sparsity {report.sparsity:.4f}, without {first}, {second}")
    assert f"MACs {before.macs:,} -> " in str(report)


def test_a_dry_run_leaves_the_network() -> None:
    model = net()
    report = prune(model, dry_run=True)
    assert len(report.plan.removed_modules) == 2
    assert isinstance(model.get_submodule(report.plan.removed_modules[0]), Block)
    assert not is_pruned(model)


def test_optimizers_forget() -> None:
    """Momentum and moments of what goes, a group that becomes empty, and names of parameters."""
    model = net()
    named = [(f"{n}.{key}", p) for n in range(5) for key, p in model[n].named_parameters()]
    adam = torch.optim.Adam([{"params": named[:2]}, {"params": named[2:8]}, {"params": named[8:]}])
    sgd = torch.optim.SGD(model[8].parameters(), 0.1, momentum=0.9)
    sum(losses(model)).backward()
    adam.step()
    sgd.step()
    states = {id(p): adam.state[p] for _, p in named}
    apply_plan(model, Plan(removed_modules=("1", "3")), [adam, sgd])
    left = [list(model[0].parameters()), [], [*model[2].parameters(), *model[4].parameters()]]
    assert [[id(p) for p in group["params"]] for group in adam.param_groups] == [[id(p) for p in own] for own in left]
    assert [len(group["param_names"]) for group in adam.param_groups] == [2, 0, 12]
    assert adam.param_groups[2]["param_names"][0] == "2.conv1.weight"
    assert adam.state.keys() == {p for own in left for p in own}
    assert all(adam.state[p] is states[id(p)] for own in left for p in own)
    assert len(sgd.state) == 2
    sum(losses(model)).backward()
    adam.step()


@pytest.mark.parametrize(("name", "message"), [("9", "made for another"), ("", "another"), ("6", "already applied")])
def test_a_plan_that_does_not_fit(name: str, message: str) -> None:
    model = net()
    model[6] = nn.Identity()
    with pytest.raises(ValueError, match=message):
        apply_plan(model, Plan(removed_modules=(name,)))


# --- plans


def test_plans_compose() -> None:
    half = torch.tensor([0, 2, 4])
    first = Plan(
        keep={"a.b.weight": {0: half}, "c.weight": {1: half}},
        masks={"a.b.weight": torch.ones(3, 3, dtype=torch.bool), "c.weight": torch.ones(2, 3, dtype=torch.bool)},
        attributes={"a.b": {"out_features": 3}, "ab": {"n": 1}},
        scales={"a.b.weight": {0: torch.ones(3)}},
        removed_modules=("a.c", "d"),
    )
    both = first.then(Plan(removed_modules=("a",)))
    assert both.removed_modules == ("d", "a")
    assert both.keep.keys() == both.masks.keys() == {"c.weight"}
    assert dict(both.attributes) == {"ab": {"n": 1}}
    assert both.scales == {}
    assert first.slice_masks(Plan(removed_modules=("a.b",))).keys() == {"c.weight"}


def test_plans_as_dicts() -> None:
    plan = Plan(removed_modules=("a", "b.c"))
    assert bool(plan)
    assert plan.shrinks
    assert Plan.from_dict(plan.to_dict()) == plan
    assert Plan.from_dict({"keep": {}, "masks": {}}) == Plan()  # from before there were blocks
    assert not Plan()
    assert not Plan(masks={"a": torch.ones(1)}).shrinks


def test_masks_and_statistics_go_with_their_block() -> None:
    model = net()
    pruner = WeightPruner(Magnitude(), Sparsity(0.5), Scope())
    pruner.prepare(model, None)
    pruner.apply(model, pruner.plan(model, None, 1.0), ())
    assert any(name.startswith("2.") for name in pruner.masks)
    pruner.follow(Plan(removed_modules=("2",)))
    assert {name.partition(".")[0] for name in pruner.masks} == {"0", "1", "3", "4", "8"}
    zeros = sum(int((~mask).sum()) for mask in pruner.masks.values())
    assert pruner.sparsity == pytest.approx(zeros / sum(mask.numel() for mask in pruner.masks.values()))

    statistics = BlockInfluence().statistics()
    statistics.totals = {"1": torch.ones(()), "examples of 1": torch.ones(()), "10": torch.ones(())}
    statistics.discard(["1"])
    assert statistics.totals.keys() == {"10"}


def test_stored_weights_follow() -> None:
    model = net()
    stored = StoredWeights.of(model)
    stored.follow(Plan(removed_modules=("1",)))
    assert stored.tensors.keys() == {name for name in model.state_dict() if not name.startswith("1.")}


def test_averages_inside_the_network() -> None:
    model = nn.Module()
    model.online = net()
    model.ema = AveragedModel(model.online)
    plan = with_averages(Plan(removed_modules=("online.2",)), model)
    assert plan.removed_modules == ("online.2", "ema.module.2")
    apply_plan(model, plan)
    assert type(model.ema.module[2]) is nn.Identity
    model.ema.update_parameters(model.online)


# --- budgets


BUDGETS: list[tuple[Budget, int]] = [
    (Count(1), 1),
    (Count(3), 3),
    (Ratio(0.5), 2),
    (Ratio(0.75, per_layer=False), 3),
    (Ratio(0.0), 0),
    (Params(keep=1 - 0.9 * ONE / 1575), 1),
    (Params(keep=0.9), 1),
    (Sparsity(1.5 * ONE / 1575), 2),
    (Params(keep=1.0), 0),
    (MACs(keep=0.5), 3),
]


@pytest.mark.parametrize(("budget", "gone"), BUDGETS, ids=repr)
def test_how_many_go(budget: Budget, gone: int) -> None:
    model = net()
    whole = sum(p.numel() for p in model.parameters())
    assert whole == 18 + 4 * ONE + 21 == 1575
    report = prune(model, budget)
    lowest = sorted(report.scores, key=lambda name: float(report.scores[name]))[:gone]
    assert sorted(report.plan.removed_modules) == sorted(lowest)
    assert sum(p.numel() for p in model.parameters()) == whole - gone * ONE


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (Count(5), "5 more blocks have to be removed, but only 4 can be"),
        (Params(keep=0.01), "cannot be met: without all 4 blocks that can be removed, 0.0248 of the parameters remain"),
        (MACs(keep=0.0), "of the MACs remain"),
        (Ratio(0.1), "removes nothing here: its share of 4 blocks rounds to none. Use share=0.2500 or more"),
    ],
)
def test_budgets_that_cannot_be_met(budget: Budget, message: str) -> None:
    model = net()
    with pytest.raises(BudgetError, match=re.escape(message)):
        prune(model, budget)
    assert isinstance(model[1], Block)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"criterion": Magnitude()}, "does not score blocks; with Blocks() use Sensitivity, BlockInfluence or Random"),
        ({"budget": ERK(0.5)}, "with Blocks() use Count, Ratio, Sparsity, Params or MACs"),
        ({"budget": Params(0.5, per_layer=True)}, "use per_layer=False"),
        ({"scope": Scope(include=["8"])}, "leaves no block in Sequential that can be removed: {'0': 'it turns"),
        ({"scope": Scope(include=["nose"])}, "include='nose' matches nothing"),
        ({"criterion": BlockInfluence()}, "needs activations: pass calibrate="),
        ({"criterion": Sensitivity()}, "compares losses: pass calibrate="),
        ({"criterion": Sensitivity(), "calibrate": lambda model: None}, "calibrate= returned none"),
        ({"granularity": Channels(), "criterion": BlockInfluence()}, "does not score channels"),
        ({"granularity": Weights(), "criterion": Sensitivity()}, "does not score weights"),
    ],
)
def test_what_does_not_go_together(settings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        prune(net(), **settings)


def test_blocks_that_break_the_network_together_stay() -> None:
    class Either(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c, self.head = (nn.Linear(4, n) for n in (4, 4, 4, 2))

        def forward(self, x: Tensor) -> Tensor:
            if isinstance(self.a, nn.Identity) and isinstance(self.b, nn.Identity):
                raise RuntimeError("one of them has to stay")
            return self.head(self.c(self.b(self.a(x))))

    pruner = BlockPruner(Random(), Count(2), Scope(include=["a", "b"]))
    model, example = Either(), Example.of(torch.zeros(2, 4))
    pruner.prepare(model, example)
    with pytest.raises(BudgetError, match="2 more blocks have to be removed, but only 1 can be"):
        pruner.plan(model, example, 1.0)
    assert [why.startswith("together with others") for why in pruner.blocked.values()] == [True]
    pruner.budget = Count(1)
    report = pruner.plan(model, example, 1.0)
    assert {*report.plan.removed_modules, *pruner.blocked} == {"a", "b"}
    assert report.frozen.items() > pruner.blocked.items()


def test_an_event_with_another_budget_and_given_losses() -> None:
    pruner, model, example = BlockPruner(Sensitivity(), Count(4), Scope()), net(), Example.of(IMAGE)
    pruner.prepare(model, example)
    names, _ = pruner.candidates(model, example)
    with pytest.raises(BudgetError, match="have to be removed"):
        pruner.is_due(model, example, 1.0, Count(len(names) + 1))
    losses = {"": torch.tensor(1.0), **{name: torch.tensor(3.0) for name in names}, names[-1]: torch.tensor(2.0)}
    report = pruner.plan(model, example, 1.0, budget=Count(1), statistics=losses)
    assert report.plan.removed_modules == (names[-1],)
    assert pruner.budget == Count(4)


def steps(pruner: Pruner, model: nn.Module, fractions: list[float]) -> list[tuple[str, ...]]:
    example, gone = Example.of(IMAGE), []
    for fraction in fractions:
        pruner.prepare(model, example)
        report = pruner.plan(model, example, fraction)
        pruner.apply(model, report, ())
        gone.append(report.plan.removed_modules)
    return gone


def test_events_go_on_from_each_other_and_from_a_state() -> None:
    model, other = net(), net()
    gone = steps(BlockPruner(Random(), Ratio(1.0), Scope(include=["1", "2", "3"])), model, [0.1, 1 / 3, 2 / 3, 1.0])
    assert [len(names) for names in gone] == [0, 1, 1, 1]
    assert sorted(name for names in gone for name in names) == ["1", "2", "3"]
    pruner = BlockPruner(Random(), Ratio(1.0), Scope(include=["1", "2", "3"]))
    first = steps(pruner, other, [0.1, 1 / 3])
    resumed = BlockPruner(Random(), Ratio(1.0), Scope(include=["1", "2", "3"]))
    resumed.load_state_dict(copy.deepcopy(pruner.state_dict()))
    assert first + steps(resumed, other, [2 / 3, 1.0]) == gone
    assert resumed.sparsity == pytest.approx(3 * ONE / 1575)


def test_channels_and_blocks_after_each_other() -> None:
    model = net()
    prune_once(model, IMAGE, granularity=Channels(), budget=Ratio(0.5))
    dense = copy.deepcopy(model)
    report = prune(model, Count(1))
    assert torch.equal(model.eval()(INPUTS), skipping(dense.eval(), report.plan.removed_modules)(INPUTS))
    before = sum(p.numel() for p in model.parameters())
    prune_once(model, IMAGE, granularity=Channels(), budget=Ratio(0.4))
    assert sum(p.numel() for p in model.parameters()) < before
    assert model(INPUTS).shape == (16, 3)


# --- criteria


def test_sensitivity_is_what_is_lost() -> None:
    model = net().train()
    expected = {}
    with torch.no_grad():
        whole = torch.stack(list(losses(copy.deepcopy(model).eval()))).double().mean()
        for name in ("1", "2", "3", "4"):
            lost = torch.stack(list(losses(skipping(model, [name]).eval()))).double().mean()
            expected[name] = float(lost - whole)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    report = prune(model, Count(1), criterion=Sensitivity(), calibrate=losses, dry_run=True)
    assert {name: float(score) for name, score in report.scores.items()} == pytest.approx(expected, rel=1e-6)
    assert report.plan.removed_modules == (min(expected, key=expected.get),)
    assert same(dict(model.state_dict()), state)
    assert model.training


def test_sensitivity_draws_the_same_every_time() -> None:
    """Data augmented at random say nothing about a block that does nothing."""
    model = net()
    with torch.no_grad():
        model[3].conv2.weight.zero_()
        model[3].conv2.bias.zero_()
    torch.manual_seed(1)
    state = torch.get_rng_state()
    noisy = lambda model: [F.cross_entropy(model(INPUTS + torch.randn(INPUTS.shape)), LABELS)]  # noqa: E731
    report = prune(model, Count(1), criterion=Sensitivity(), calibrate=noisy)
    assert float(report.scores["3"]) == 0.0
    assert all(float(report.scores[name]) != 0.0 for name in "124")
    assert torch.equal(torch.get_rng_state(), state)


def test_a_block_without_which_nothing_is_finite_goes_last() -> None:
    broken = lambda model: torch.tensor(1.0 if isinstance(model[2], Block) else float("nan"))  # noqa: E731
    report = prune(net(), Count(3), criterion=Sensitivity(), calibrate=broken)
    assert report.plan.removed_modules == ("1", "3", "4")
    assert float(report.scores["2"]) == torch.finfo(torch.float32).max


def test_block_influence_is_one_minus_the_cosine() -> None:
    model = net().eval()
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in "1234"}
    handles = [
        model.get_submodule(name).register_forward_hook(
            lambda m, args, out, name=name: seen[name].append((args[0], out))
        )
        for name in seen
    ]
    list(losses(model))
    for handle in handles:
        handle.remove()
    expected = {}
    for name, passes in seen.items():
        pairs = [(a.double(), b.double()) for x, y in passes for a, b in zip(x.flatten(1), y.flatten(1), strict=True)]
        cosines = [(a @ b / (a.norm() * b.norm())).item() for a, b in pairs]
        assert len(cosines) == 16
        expected[name] = 1 - sum(cosines) / 16
    report = prune(model, Count(1), criterion=BlockInfluence(), calibrate=losses)
    assert {name: float(score) for name, score in report.scores.items()} == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert report.plan.removed_modules == ("4",)  # which changes least


def test_block_influence_of_sequences_looks_at_tokens() -> None:
    turn = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        turn.weight.copy_(torch.tensor([[0.0, -1.0], [1.0, 0.0]]))
    statistics = BlockInfluence().statistics()
    statistics.attach(nn.Sequential(turn), blocks=["0"])
    statistics.begin_step(0)
    turn(torch.tensor([[[1.0, 0.0], [0.0, 5.0], [2.0, 2.0]]]))  # each at right angles to what it was
    assert statistics.totals == {"0": torch.tensor(3.0), "examples of 0": torch.tensor(3.0)}
    statistics.end_step()
    turn(torch.zeros(1, 3, 2))
    assert float(statistics.totals["examples of 0"]) == 3.0


@pytest.mark.parametrize("change", [lambda x: x.relu_(), lambda x: x.add_(x.flip(1)), nn.ReLU(inplace=True)])
def test_block_influence_of_blocks_that_change_their_input(change: Any) -> None:
    """Compared with what it was before."""

    class Changing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.change = change

        def forward(self, x: Tensor) -> Tensor:
            return self.change(x)

    inputs = INPUTS.flatten(1)
    x, y = inputs.double(), change(inputs.double())
    expected = sum(1 - float(a @ b / (a.norm() * b.norm())) for a, b in zip(x, y, strict=True))
    block, statistics = Changing(), BlockInfluence().statistics()
    statistics.attach(nn.Sequential(block), blocks=["0"])
    statistics.begin_step(0)
    copy.deepcopy(block)(inputs.clone())  # a copy of the network, which is not observed
    assert not statistics._received
    block(inputs.clone())
    statistics.receive("0", (inputs,))  # a pass that is broken off
    statistics.end_step()
    assert not statistics._received
    assert expected > 0.1
    assert float(statistics.totals["0"]) == pytest.approx(expected, rel=1e-4)
    statistics.detach()
    assert not block._forward_pre_hooks


def test_random_has_a_draw_for_each() -> None:
    scores = prune(net(), dry_run=True).scores
    assert len({float(score) for score in scores.values()}) == 4
    assert same(dict(scores), dict(prune(net(), dry_run=True).scores))
    assert not same(dict(scores), dict(prune(net(), dry_run=True, criterion=Random(seed=1)).scores))


@pytest.mark.parametrize(
    "settings", [{"monitor": 3}, {"monitor": ""}, {"mode": "up"}, {"batches": 0}, {"batches": True}]
)
def test_arguments_out_of_range(settings: Any) -> None:
    with pytest.raises(ValueError, match=f"Sensitivity {next(iter(settings))}="):
        Sensitivity(**settings)


# --- files


def test_load_pruned(tmp_path: Path) -> None:
    model = net()
    report = prune(model)
    assert is_pruned(model)
    assert params_as_built(model) == 1575
    loaded = load_pruned(residual_net(), saved(model.state_dict(), tmp_path / "net.pt"))
    assert same(dict(loaded.state_dict()), dict(model.state_dict()))
    assert [type(loaded.get_submodule(name)) for name in report.plan.removed_modules] == [nn.Identity, nn.Identity]
    assert torch.equal(loaded.eval()(INPUTS), model.eval()(INPUTS))
    again = load_pruned(residual_net(), saved(loaded.state_dict(), tmp_path / "again.pt"))
    assert same(dict(again.state_dict()), dict(model.state_dict()))


def test_load_pruned_into_the_network_inside_what_was_saved(tmp_path: Path) -> None:
    """Even if the first of its modules are gone."""
    outer = nn.Module()
    outer.first, outer.net = nn.Linear(2, 2), nn.Sequential(Block(2), Block(2), nn.Conv2d(2, 3, 1))
    outer.forward = lambda x: outer.net(x)
    track_shapes(outer)
    plan = Plan(removed_modules=("net.0", "net.1"))
    track_plan(outer, plan)
    apply_plan(outer, plan)
    inner = load_pruned(
        nn.Sequential(Block(2), Block(2), nn.Conv2d(2, 3, 1)), saved(outer.state_dict(), tmp_path / "o")
    )
    assert torch.equal(inner(IMAGE + 1), outer.net(IMAGE + 1))


def test_a_file_of_another_network(tmp_path: Path) -> None:
    model = net()
    prune(model, Count(1), scope=Scope(include=["4"]))
    with pytest.raises(ValueError, match=r"'4' was removed from the network in the file, but Sequential has no such"):
        load_pruned(nn.Sequential(nn.Conv2d(2, 6, 1)), saved(model.state_dict(), tmp_path / "net.pt"))


def test_what_was_removed_comes_back() -> None:
    """A state dict from before: shapes, buffers that are in no state dict, and what autograd is to do, as they were."""
    model = net()
    model[2].register_buffer("table", torch.arange(3.0), persistent=False)
    model[2].conv1.weight.requires_grad_(False)
    track_shapes(model)
    dense = copy.deepcopy(model.state_dict())
    trained = copy.deepcopy(model)
    pruned = prune(model, Count(1), scope=Scope(include=["2"]))
    assert removed_modules_in(model) == ["2"] == list(pruned.plan.removed_modules)
    smaller = copy.deepcopy(model.state_dict())
    model.load_state_dict(dense)
    assert isinstance(model[2], Block)
    assert torch.equal(model.eval()(INPUTS), trained.eval()(INPUTS))
    assert torch.equal(model[2].table, torch.arange(3.0))
    assert [p.requires_grad for p in model[2].parameters()] == [False, *[True] * 5]
    assert not is_pruned(model)
    model.load_state_dict(smaller)
    assert type(model[2]) is nn.Identity


def test_what_was_removed_takes_no_memory() -> None:
    model = net()
    track_shapes(model)
    prune(model, Count(4))
    assert sum(p.numel() for p in model.parameters()) == 39
    as_built = as_built_of(model)
    assert as_built is not None
    held = [tensor for template in as_built.modules.values() for tensor in template.state_dict().values()]
    assert len(held) == 4 * 9
    assert all(tensor.is_meta for tensor in held)


def test_inner_parts_go_before_outer_ones_and_come_back_by_themselves() -> None:
    model = net()
    track_shapes(model)
    states = [copy.deepcopy(model.state_dict())]
    for name in ("2.conv2", "2"):
        plan = Plan(removed_modules=(name,))
        track_plan(model, plan)
        apply_plan(model, plan)
        states.append(copy.deepcopy(model.state_dict()))
    assert states[1]._metadata["lightning_prune"]["skipped"].keys() == {"2.conv2"}
    assert states[2]._metadata["lightning_prune"]["skipped"].keys() == {"2"}
    assert params_as_built(model) == 1575
    for number in (1, 0, 2, 0, 1, 2):
        model.load_state_dict(states[number])
        assert same(dict(model.state_dict()), dict(states[number])), number
    fresh = net()
    track_shapes(fresh)
    for number in (2, 1, 0):
        fresh.load_state_dict(states[number])
        assert same(dict(fresh.state_dict()), dict(states[number])), number


def test_channels_that_went_before_their_block_come_back(tmp_path: Path) -> None:
    model = net()
    track_shapes(model)
    states = [copy.deepcopy(model.state_dict())]
    prune_once(model, IMAGE, budget=Ratio(0.5))
    states.append(copy.deepcopy(model.state_dict()))
    prune(model, Count(2))
    states.append(copy.deepcopy(model.state_dict()))
    outputs = model.eval()(INPUTS)
    for number in (0, 2, 1, 2):
        model.load_state_dict(states[number])
        assert same(dict(model.state_dict()), dict(states[number])), number
        assert model(INPUTS).shape == (16, 3)
    assert torch.equal(model(INPUTS), outputs)
    loaded = load_pruned(residual_net(), saved(model.state_dict(), tmp_path / "net.pt"))
    assert torch.equal(loaded.eval()(INPUTS), outputs)
    set_removed_modules(model, [])
    assert model[1].conv1.out_channels == 3  # as when it went; its tensors are as large as a file says


def test_patterns_may_name_what_is_gone() -> None:
    model = net()
    prune(model, Count(1), scope=Scope(include=["2"]))
    assert "2.conv1.weight" not in Scope(exclude=["2"]).parameters(model)
    with pytest.raises(ValueError, match="exclude='nose' matches nothing"):
        Scope(exclude=["nose"]).parameters(model)


def test_inspect(tmp_path: Path) -> None:
    model = net()
    report = prune(model, Count(1))
    (name,) = report.plan.removed_modules
    path = saved(model.state_dict(), tmp_path / "net.pt")
    found = inspect_file(path)
    numbers = ONE + 13  # with the statistics of the norm
    assert found.removed == {name: numbers}
    assert found.values[:2] == (1575 + 4 * 13, 1575 + 4 * 13 - numbers)
    stream = io.StringIO()
    show(found, path, Console(file=stream, width=100))
    assert "Removed modules" in stream.getvalue()
    assert re.search(rf"^ *{name} +{numbers} *$", stream.getvalue(), re.MULTILINE)
    assert "Nothing in it" not in stream.getvalue()
