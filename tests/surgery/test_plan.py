import copy
import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_prune.coupling import find_coupling
from lightning_prune.network.example_input import Example
from lightning_prune.surgery.apply import apply_plan
from lightning_prune.surgery.plan import Plan, select
from lightning_prune.surgery.removal import plan_removal


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.Flatten(), nn.Linear(5 * 4, 2)
    )


def removal(model: nn.Module, removed: dict[str, list[int]]) -> Plan:
    coupling = find_coupling(model, Example.of(torch.zeros(2, 3, 6, 6)))
    units = {
        name: torch.zeros(coupling.groups[name].size, dtype=torch.bool).index_fill_(0, torch.tensor(gone), True)
        for name, gone in removed.items()
    }
    return plan_removal(units, coupling)


def plain(plan: Plan) -> dict[str, dict[int, list[int]]]:
    return {name: {dim: index.tolist() for dim, index in dims.items()} for name, dims in plan.keep.items()}


def test_plan_of_a_removal_written_down_by_hand() -> None:
    plan = removal(network(), {"0.weight": [1, 4], "3.weight": [0]})
    kept, rest = [0, 2, 3, 5], [1, 2, 3, 4]
    assert plain(plan) == {
        "0.weight": {0: kept},
        "0.bias": {0: kept},
        **{f"1.{name}": {0: kept} for name in ("weight", "bias", "running_mean", "running_var")},
        "3.weight": {0: rest, 1: kept},
        "3.bias": {0: rest},
        "5.weight": {1: list(range(4, 20))},  # four positions a channel
    }
    assert all(index.dtype == torch.int64 for dims in plan.keep.values() for index in dims.values())


def test_a_plan_that_removes_nothing_is_empty_and_false() -> None:
    coupling = find_coupling(network(), Example.of(torch.zeros(2, 3, 6, 6)))
    nothing = {name: torch.zeros(group.size, dtype=torch.bool) for name, group in coupling.groups.items()}
    assert plan_removal(nothing, coupling) == Plan({}, {})
    assert not Plan()
    assert Plan(keep={"a": {0: torch.tensor([0])}})
    assert Plan(masks={"a": torch.tensor([True])})


REMOVALS = st.fixed_dictionaries(
    {},
    optional={
        "0.weight": st.sets(st.integers(0, 2), min_size=1, max_size=2),
        "3.weight": st.sets(st.integers(0, 1), min_size=1),
    },
)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.tuples(REMOVALS, REMOVALS))
def test_one_plan_after_the_other_is_their_composition(removals) -> None:
    twice = network()
    once = copy.deepcopy(twice)
    first = removal(twice, {name: sorted(gone) for name, gone in removals[0].items()})
    apply_plan(twice, first)
    second = removal(twice, {name: sorted(gone) for name, gone in removals[1].items()})
    apply_plan(twice, second)
    apply_plan(once, first.then(second))
    for (name, value), other in zip(twice.state_dict().items(), once.state_dict().values(), strict=True):
        assert torch.equal(value, other), name
    assert repr(twice) == repr(once)


def test_composition_is_associative_and_neutral_to_the_empty_plan() -> None:
    a = Plan({"w": {0: torch.tensor([0, 2, 3, 5, 6])}, "v": {1: torch.tensor([1, 2])}})
    b = Plan({"w": {0: torch.tensor([0, 1, 4]), 1: torch.tensor([0, 3])}})
    c = Plan({"w": {0: torch.tensor([1, 2])}})
    expected = {"w": {0: [2, 6], 1: [0, 3]}, "v": {1: [1, 2]}}
    assert plain(a.then(b).then(c)) == plain(a.then(b.then(c))) == expected
    assert plain(a.then(Plan())) == plain(Plan().then(a)) == plain(a)


def test_composition_leaves_its_parts_alone() -> None:
    a = Plan({"w": {0: torch.tensor([0, 2, 3])}})
    a.then(Plan({"w": {0: torch.tensor([1]), 1: torch.tensor([0])}}))
    assert plain(a) == {"w": {0: [0, 2, 3]}}


def test_masks_follow_the_shapes_that_a_later_removal_leaves() -> None:
    masked = Plan(masks={"w": torch.tensor([[True, False, True], [False, True, True]])})
    removed = Plan({"w": {0: torch.tensor([1]), 1: torch.tensor([0, 2])}})
    both = masked.then(removed)
    assert both.masks["w"].tolist() == [[False, True]]
    assert plain(both) == {"w": {0: [1], 1: [0, 2]}}
    newer = both.then(Plan(masks={"w": torch.tensor([[False, False]])}))
    assert newer.masks["w"].tolist() == [[False, False]]


def test_plans_survive_a_checkpoint_that_loads_weights_only() -> None:
    plan = removal(network(), {"0.weight": [1, 4], "3.weight": [0]})
    plan = Plan(plan.keep, {"3.weight": torch.rand(5, 6, 3, 3) > 0.5})
    file = io.BytesIO()
    torch.save(plan.to_dict(), file)
    file.seek(0)
    loaded = Plan.from_dict(torch.load(file, weights_only=True))
    assert plain(loaded) == plain(plan)
    assert torch.equal(loaded.masks["3.weight"], plan.masks["3.weight"])
    pruned, other = network(), network()
    apply_plan(pruned, plan)
    apply_plan(other, loaded)
    assert all(
        torch.equal(a, b) for a, b in zip(pruned.state_dict().values(), other.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ({"9.weight": {0: [0]}}, r"^the plan keeps parts of '9.weight', which the module does not have; was it made"),
        (
            {"0.bias": {0: [0, 9]}},
            r"^the plan keeps 2 indices up to 9 of dimension 0 of '0.bias', which has 6; was it already applied\?$",
        ),
        ({"0.bias": {0: []}}, r"^the plan keeps 0 indices up to 0 of dimension 0 of '0.bias', which has 6"),
        ({"0.bias": {1: [0]}}, r"^the plan keeps 1 indices up to 0 of dimension 1 of '0.bias', which has 0; was it"),
    ],
)
def test_wrong_plans_are_refused_before_anything_changes(keep, message) -> None:
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    good = {"0.weight": {0: torch.tensor([0, 1])}}
    bad = {name: {dim: torch.tensor(index, dtype=torch.int64) for dim, index in d.items()} for name, d in keep.items()}
    with pytest.raises(ValueError, match=message):
        apply_plan(model, Plan({**good, **bad}))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_plan_applied_twice_is_refused() -> None:
    model = network()
    plan = removal(model, {"0.weight": [1, 4]})
    apply_plan(model, plan)
    with pytest.raises(ValueError, match="which has 4; was it already applied"):
        apply_plan(model, plan)


@pytest.mark.parametrize("shape", [(4, 6, 3, 3), (4, 6, 3, 3, 3)])
def test_slices_keep_the_memory_format(shape) -> None:
    layout = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
    tensor = torch.randn(shape).contiguous(memory_format=layout)
    kept = select(tensor, {0: torch.tensor([0, 2]), 1: torch.tensor([1, 3, 5])})
    assert torch.equal(kept, tensor[[0, 2]][:, [1, 3, 5]])
    assert kept.is_contiguous(memory_format=layout)
    assert not kept.is_contiguous()
    assert select(tensor.contiguous(), {0: torch.tensor([0, 2])}).is_contiguous()


def same_plans(a: Plan, b: Plan) -> bool:
    def listed(dims):
        return {name: {dim: values.tolist() for dim, values in own.items()} for name, own in dims.items()}

    return (listed(a.keep), listed(a.scales), a.attributes) == (listed(b.keep), listed(b.scales), b.attributes)


def factors(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_scales_of_two_plans_multiply_on_what_is_kept() -> None:
    first = Plan({"w": {0: torch.tensor([0, 2, 3])}}, scales={"w": {0: factors(2, 3, 5)}, "b": {0: factors(7, 1)}})
    later = Plan({"w": {0: torch.tensor([0, 2])}}, scales={"w": {0: factors(11, 13)}, "v": {1: factors(17)}})
    both = first.then(later)
    assert {name: {dim: f.tolist() for dim, f in dims.items()} for name, dims in both.scales.items()} == {
        "w": {0: [22, 65]},
        "b": {0: [7, 1]},
        "v": {1: [17]},
    }
    assert first.scales["w"][0].tolist() == [2, 3, 5]
    tensor = torch.arange(1.0, 5)
    once, twice = torch.nn.Module(), torch.nn.Module()
    for module in (once, twice):
        module.w = torch.nn.Parameter(tensor.clone())
        module.b = torch.nn.Parameter(torch.ones(2))
        module.v = torch.nn.Parameter(torch.ones(2, 1))
    apply_plan(once, both)
    apply_plan(twice, first)
    apply_plan(twice, later)
    assert torch.equal(once.w, twice.w)
    assert once.w.tolist() == [22, 4 * 65]
    assert torch.equal(once.b, twice.b)
    assert torch.equal(once.v, twice.v)


def test_attributes_of_two_plans() -> None:
    first = Plan(attributes={"a": {"dim": 8, "heads": 4}, "b": {"dim": 6}})
    later = Plan(attributes={"a": {"dim": 4}, "c": {"dim": 2}})
    assert first.then(later).attributes == {"a": {"dim": 4, "heads": 4}, "b": {"dim": 6}, "c": {"dim": 2}}
    assert first.attributes == {"a": {"dim": 8, "heads": 4}, "b": {"dim": 6}}
    assert later.then(first).attributes["a"] == {"dim": 8, "heads": 4}


def test_entries_of_tuples_that_only_one_of_two_plans_changes() -> None:
    first, later = Plan(attributes={"": {"sizes": {0: 3}}}), Plan(attributes={"": {"sizes": {1: 5}}})
    once, twice = torch.nn.Module(), torch.nn.Module()
    once.sizes = twice.sizes = (4, 8)
    apply_plan(once, first.then(later))
    apply_plan(twice, first)
    apply_plan(twice, later)
    assert once.sizes == twice.sizes == (3, 5)


def test_attributes_and_scales_survive_a_checkpoint() -> None:
    plan = Plan(
        {"w": {0: torch.tensor([0, 2])}},
        attributes={"": {"dim": 2, "sizes": {0: 1, 2: 4}}, "blocks.0": {"heads": 3}},
        scales={"w": {0: factors(0.5, 0.25)}},
    )
    file = io.BytesIO()
    torch.save(plan.to_dict(), file)
    file.seek(0)
    assert same_plans(Plan.from_dict(torch.load(file, weights_only=True)), plan)
    old = {"keep": {"w": {0: torch.tensor([0])}}, "masks": {}}  # of a version without them
    assert (Plan.from_dict(old).attributes, Plan.from_dict(old).scales) == ({}, {})


def test_scales_are_applied_to_what_is_left_in_its_own_dtype() -> None:
    net = torch.nn.Linear(3, 4).to(torch.bfloat16)
    before = net.weight.detach().clone()
    plan = Plan(
        {"weight": {0: torch.tensor([1, 3])}, "bias": {0: torch.tensor([1, 3])}}, scales={"weight": {0: factors(2, 4)}}
    )
    apply_plan(net, plan)
    assert net.weight.dtype == torch.bfloat16
    assert torch.equal(net.weight, before[[1, 3]] * torch.tensor([[2], [4]], dtype=torch.bfloat16))
