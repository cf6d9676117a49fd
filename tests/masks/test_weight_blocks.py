import itertools
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lightning_prune import Scope, Weights, prune_once
from lightning_prune.budgets import ERK, BudgetError, Count, FileSize, Ratio, Sparsity
from lightning_prune.criteria import Magnitude, Random, SynFlow
from lightning_prune.file_size import compressed_size
from lightning_prune.masks.n_of_m import WeightLayout, weight_layouts
from lightning_prune.masks.regrowth import Regrowth
from lightning_prune.masks.weight_blocks import block_means, expand_blocks, lowest_weight_blocks, why_indivisible
from lightning_prune.pruners.weight_pruner import WeightPruner
from lightning_prune.surgery.plan import Plan


def by_loops(values, rows, columns):
    """Means of blocks, entry by entry."""
    down, across = values.shape[0] // rows, values.shape[1] // columns
    found = torch.zeros(down, across)
    for i, j in itertools.product(range(down), range(across)):
        found[i, j] = values[i * rows : (i + 1) * rows, j * columns : (j + 1) * columns].mean()
    return found


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(0, 2))
def test_blocks_and_back(rows, columns, down, across, more) -> None:
    values = torch.randn(down * rows, across * columns, *[2] * more, generator=torch.Generator().manual_seed(0))
    found = block_means(values, (rows, columns))
    assert torch.allclose(found, by_loops(values, rows, columns), atol=1e-6)
    wide = expand_blocks(found, values.shape, (rows, columns))
    assert wide.shape == values.shape
    assert torch.allclose(block_means(wide, (rows, columns)), found, atol=1e-6)
    assert all(wide[i, j].flatten()[0] == found[i // rows, j // columns] for i in range(down * rows) for j in [0])


def test_all_of_a_side() -> None:
    values = torch.arange(12.0).reshape(3, 4)
    assert block_means(values, (None, 1)).tolist() == [[4, 5, 6, 7]]
    assert block_means(values, (1, None)).flatten().tolist() == [1.5, 5.5, 9.5]
    mask = expand_blocks(torch.tensor([[True, False, True, False]]), values.shape, (None, 1))
    assert mask.tolist() == [[True, False, True, False]] * 3


@given(st.data())
def test_the_lowest_blocks_go(data) -> None:
    sizes = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))
    names = [str(number) for number in range(len(sizes))]
    scores = {
        n: torch.tensor([data.draw(st.lists(st.integers(-2, 2).map(float), min_size=size, max_size=size))])
        for n, size in zip(names, sizes, strict=True)
    }
    alive = {
        n: torch.tensor([data.draw(st.lists(st.booleans(), min_size=size, max_size=size))])
        for n, size in zip(names, sizes, strict=True)
    }
    weights = {n: data.draw(st.integers(1, 4)) for n in names}
    count = data.draw(st.integers(0, 40))
    kept = lowest_weight_blocks(scores, alive, weights, count)
    hidden = sum(int((~kept[n]).sum()) * weights[n] for n in names)
    before = sum(int((~alive[n]).sum()) * weights[n] for n in names)
    assert before <= hidden <= max(before, count)
    for name in names:
        assert not (kept[name] & ~alive[name]).any()
        assert kept[name].any() == alive[name].any()
    gone = [(n, i) for n in names for i in range(scores[n].numel()) if alive[n][0, i] and not kept[n][0, i]]
    left = [
        (n, i)
        for n in names
        for i in range(scores[n].numel())
        if kept[n][0, i] and i != int(scores[n].masked_fill(~alive[n], -torch.inf).argmax())
    ]
    worst = max((float(scores[n][0, i]) for n, i in gone), default=-torch.inf)
    assert all(float(scores[n][0, i]) >= worst for n, i in left)
    if left:  # the next one would have been too much
        n, _ = min(left, key=lambda item: (float(scores[item[0]][0, item[1]]), names.index(item[0]), item[1]))
        assert hidden + weights[n] > count


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 10))


EXAMPLE = torch.zeros(1, 4, 4, 4)


@pytest.mark.parametrize("budget", [Sparsity(0.5), Sparsity(0.5, per_layer=True), Ratio(0.5), ERK(0.5), Count(784)])
@pytest.mark.parametrize("block", [(2, 2), (None, 1), (1, None), (1, 1)])
def test_networks(budget, block) -> None:
    model = net()
    report = prune_once(model, EXAMPLE, granularity=Weights(block=block), budget=budget)
    rows, columns = block
    largest = 0
    for name, mask in report.plan.masks.items():
        parts = block_means(mask.float(), block)
        assert ((parts == 0) | (parts == 1)).all()
        assert torch.equal(dict(model.named_parameters())[name] != 0, mask)
        largest = max(largest, mask.numel() // parts.numel())
    total = 4 * 8 * 9 + 1280
    hidden = sum(int((~mask).sum()) for mask in report.plan.masks.values())
    wanted = 784 if isinstance(budget, Count) else total / 2
    assert wanted - 2 * largest < hidden <= wanted
    assert report.sparsity == hidden / total
    assert (rows, columns) == block


def test_columns_of_a_linear_layer_by_hand() -> None:
    model = nn.Linear(4, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, -9, 3, 4], [8, 1, -3, 0]]))  # columns: 9, 10, 6, 4
    prune_once(model, torch.zeros(1, 4), granularity=Weights(block=(None, 1)), budget=Sparsity(0.5),
               criterion=Magnitude(p=1))  # fmt: skip
    assert model.weight.tolist() == [[1, -9, 0, 0], [8, 1, 0, 0]]


def test_events_add_up() -> None:
    once, twice = net(), net()
    one, two = (WeightPruner(Magnitude(), Sparsity(0.6), Scope(), (2, 2)) for _ in range(2))
    one.apply(once, one.plan(once, None, 1.0), ())
    for fraction in (0.4, 1.0):
        two.apply(twice, two.plan(twice, None, fraction), ())
    assert all(torch.equal(mask, two.masks[name]) for name, mask in one.masks.items())


def test_criteria_in_rounds() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    report = prune_once(
        model, torch.ones(1, 8), granularity=Weights(block=(2, 2)), criterion=SynFlow(), budget=Sparsity(0.75)
    )
    assert report.sparsity == 0.75


def test_layers_without_whole_blocks_stay() -> None:
    assert why_indivisible(WeightLayout(inputs=4, outputs=6), (4, 4)) == "its 6 outputs are not a multiple of 4"
    assert why_indivisible(WeightLayout(inputs=6, outputs=4), (4, 4)) == "its 6 inputs are not a multiple of 4"
    assert why_indivisible(None, (1, 1)) == "a vector cannot be divided into blocks"
    assert why_indivisible(WeightLayout(inputs=6, outputs=4), (None, 3)) is None
    with pytest.warns(UserWarning, match=re.escape("stay dense, with ")) as said:
        report = prune_once(net(), EXAMPLE, granularity=Weights(block=(4, 4)), budget=Ratio(0.5))
    assert len(said) == 1
    assert "'3.weight' (its 10 outputs are not a multiple of 4). Sparsities refer" in str(said[0].message)
    assert report.frozen == {"3.weight": "its 10 outputs are not a multiple of 4"}
    assert report.sparsity == 0.5
    with pytest.raises(ValueError, match=re.escape("block=(64, 64) fits no layer: {'0.weight': 'its 8 outputs")):
        prune_once(net(), EXAMPLE, granularity=Weights(block=(64, 64)))


@pytest.mark.parametrize("block", [(0, 1), (4,), (None, None), 4, "44", (1.5, 1), (True, 1)])
def test_arguments(block) -> None:
    with pytest.raises(ValueError, match=re.escape(f"Weights block={block!r} must be a pair (outputs, inputs)")):
        Weights(block=block)


def test_blocks_do_not_regrow() -> None:
    with pytest.raises(ValueError, match="cannot be combined with regrow"):
        Weights(Regrowth(), (2, 2))
    assert Weights(block=[4, 4]) == Weights(block=(4, 4))


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.grouped = nn.Conv2d(8, 8, 3, groups=4)
        self.up = nn.ConvTranspose2d(8, 6, 3, groups=2)

    def forward(self, x):
        return self.up(self.grouped(x))


def test_layouts_of_grouped_and_transposed_convolutions() -> None:
    assert weight_layouts(Convolutions()) == {"grouped.weight": WeightLayout(2, 2), "up.weight": WeightLayout(4, 3, 0)}
    model = Convolutions()
    report = prune_once(model, torch.zeros(1, 8, 5, 5), granularity=Weights(block=(3, 4)), budget=Ratio(0.5))
    assert report.frozen == {"grouped.weight": "its 2 outputs are not a multiple of 3"}
    mask = report.plan.masks["up.weight"]  # (inputs, outputs of a group, ...): one block a group
    assert {bool(mask[:4].all()), bool(mask[4:].all())} == {True, False}
    assert not mask[:4].any() or not mask[4:].any()


def test_nothing_comes_back_where_blocks_have_moved() -> None:
    torch.manual_seed(0)
    model = nn.Linear(16, 8, bias=False)
    pruner = WeightPruner(Random(), Sparsity(0.6), Scope(), (4, 4))
    pruner.prepare(model, None)
    pruner.apply(model, pruner.plan(model, None, 0.5), ())
    kept = torch.tensor([0, 2, 3, 4, 5, 7, 8, 9, 11, 12, 14, 15])
    plan = Plan(keep={"weight": {1: kept}})
    model.weight = nn.Parameter(model.weight.detach()[:, kept])
    pruner.follow(plan)
    before = pruner.masks["weight"]
    pruner.apply(model, pruner.plan(model, None, 1.0), ())
    assert not (pruner.masks["weight"] & ~before).any()
    assert pruner.sparsity == 0.5  # 0.6 but for a part of a block


def test_masks_stay_where_blocks_fit_no_longer() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False))
    pruner = WeightPruner(Magnitude(), Ratio(0.5), Scope(), (4, 4))
    pruner.apply(model, pruner.plan(model, None, 0.5), ())
    kept = torch.tensor([0, 1, 2, 3, 4, 5])
    model[1].weight = nn.Parameter(model[1].weight.detach()[:, kept])
    pruner.follow(Plan(keep={"1.weight": {1: kept}}))
    before = pruner.masks["1.weight"]
    assert not before.all()
    report = pruner.plan(model, None, 1.0)
    pruner.apply(model, report, ())
    assert report.frozen == {"1.weight": "its 6 inputs are not a multiple of 4"}
    assert pruner.masks["1.weight"].equal(before)
    hidden = int((~before).sum()) + int((~pruner.masks["0.weight"]).sum())
    assert report.sparsity == hidden / (8 * 8 + 8 * 6)


@pytest.mark.parametrize("block", [None, (None, 1), (1, None), (8, 8)])
def test_files_are_as_small_as_asked(block) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 256))
    prune_once(model, torch.zeros(1, 256), granularity=Weights(block=block), budget=FileSize(mb=0.3))
    size = compressed_size(model.state_dict())
    assert 0.28e6 < size < 0.303e6


@pytest.mark.parametrize(
    ("budget", "block", "message"),
    [
        (Sparsity(0.97), (4, 4), "one block is kept in every layer, so that at most 0.7500 can be removed"),
        (Ratio(0.9), (8, None), "at most 0.0000 of '0.weight' can be removed"),
        (Count(5), (4, 4), "Count(count=5, per_layer=False) masks nothing: a block has up to 16 weights"),
    ],
)
def test_budgets_that_blocks_cannot_meet(budget, block, message) -> None:
    model = nn.Sequential(*[nn.Linear(8, 8) for _ in range(5)])
    with pytest.raises(BudgetError, match=re.escape(message)):
        prune_once(model, torch.zeros(1, 8), granularity=Weights(block=block), budget=budget)
