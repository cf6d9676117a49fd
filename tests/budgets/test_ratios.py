"""A share of its own for every layer."""

import math
import re

import pytest
import torch
from helpers.hand_spaces import bundled, kept, make_space, steps, weights
from torch import nn

from lightning_prune import Weights, prune_once
from lightning_prune.budgets import BudgetError, Ratios


@pytest.mark.parametrize(
    ("budget", "fraction", "expected"),
    [
        (Ratios({"0": 0.5}), 1.0, (2, 6)),
        (Ratios({"0": 0.5}, default=0.5), 1.0, (2, 3)),
        (Ratios({"0.weight": 0.5, "*": 0.2}), 1.0, (2, 5)),  # 6 · 0.8 = 4.8
        (Ratios({"?.bias": 0.75}), 1.0, (1, 2)),  # the bias goes with the weight; 1.5, and halves stay
        (Ratios({"0": 0.5, "2": 0.5}), 0.5, (3, 5)),  # 4.5
        (Ratios({"2": 0.0}, default=0.25), 1.0, (3, 6)),
        (Ratios({"0": 0.5}, default=0.9), 1.0, (2, 1)),
    ],
    ids=repr,
)
def test_widths_by_hand(budget: Ratios, fraction: float, expected: tuple[int, int]) -> None:
    assert kept(budget, fraction) == expected


def test_the_shape_that_is_asked_for_is_rounded() -> None:
    assert kept(Ratios({"0": 0.5, "2": 0.3}), round_to=2) == (2, 4)


def test_a_bundle_has_one_share() -> None:
    assert Ratios({"heads": 0.5}).keep_units(bundled(), 1.0) == steps(2, 4)
    assert Ratios({"heads": 0.5, "stream": 0.5}, default=0.25).keep_units(bundled(), 1.0) == steps(2, 3)
    with pytest.raises(BudgetError) as error:
        Ratios({"h*": 0.5, "stream": 0.25}).keep_units(bundled(), 1.0)
    assert str(error.value) == (
        "Ratios removes 0.5 of 'heads' ('h*') and 0.25 of 'stream' ('stream'), whose channels are coupled; give both "
        "the same share"
    )


class Residual(nn.Module):
    """Two layers that make one stream, and a hidden layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.up, self.down, self.head = nn.Linear(3, 8), nn.Linear(8, 12), nn.Linear(12, 8), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        return self.head(x + self.down(torch.relu(self.up(x))))


def test_a_narrow_pattern_is_an_exception_from_a_wide_one() -> None:
    """The biases go with the weights, although only the second pattern matches them."""
    net = Residual()
    prune_once(net, torch.zeros(1, 3), budget=Ratios({"up.weight": 0.75, "*": 0.5}))
    assert (net.stem.out_features, net.up.out_features) == (4, 3)


def test_patterns_pick_the_layers_that_make_the_channels() -> None:
    net = Residual()
    prune_once(net, torch.zeros(1, 3), budget=Ratios({"down": 0.25, "up": 0.5}))
    assert (net.stem.out_features, net.up.out_features, net.down.out_features) == (6, 6, 6)
    assert (net.up.in_features, net.down.in_features, net.head.in_features) == (6, 6, 6)


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        (
            {"stem": 0.5, "down": 0.25},
            r"Ratios removes 0.5 of 'stem' \('stem'\) and 0.25 of 'down' \('down'\), whose channels are",
        ),
        (
            {"head": 0.5},
            r"Ratios shares\['head'\] matches no layer whose channels can be removed, such as stem, down, \.\.\.$",
        ),
        ({"up*": 0.5, "layer9": 0.5}, r"Ratios shares\['layer9'\] matches no layer whose channels can be removed"),
        (
            {"*": 0.5, "up": 0.25},
            r"Ratios shares\['up'\] has no effect: '\*' comes first and matches the same names; put the",
        ),
        ({"up.weight": 0.5, "up": 0.25}, r"Ratios shares\['up'\] has no effect: 'up.weight' comes first"),
        ({"up": 0.01}, r"Ratios\(shares=\{'up': 0.01\}, default=0.0\) removes nothing here"),
        ({"up": 0.99}, r"keeps no channel in up.weight; use at most 0.9167 there"),
    ],
)
def test_what_cannot_be_is_said_before_anything_happens(shares: dict[str, float], message: str) -> None:
    net = Residual()
    with pytest.raises(ValueError, match=message):
        prune_once(net, torch.zeros(1, 3), budget=Ratios(shares))
    assert net.up.out_features == 12


def test_a_default_of_everything_leaves_nothing() -> None:
    with pytest.raises(BudgetError, match=r"keeps no channel in 0.weight; use at most 0.7500 there$"):
        kept(Ratios({"2": 0.5}, default=1.0))


def test_the_last_unit_that_rounding_leaves_may_be_asked_for() -> None:
    assert kept(Ratios({"0": 0.875})) == (1, 6)  # half a unit: halves stay
    with pytest.raises(BudgetError, match=r"keeps no channel in 0.weight; use at most 0.7500 there$"):
        kept(Ratios({"0": 0.9}))


def test_a_group_that_is_exhausted_needs_no_pattern_any_more() -> None:
    """Patterns are checked against the dense network alone."""
    budget = Ratios({"0": 0.75, "2": 0.5})
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    for _ in range(2):
        prune_once(net, torch.zeros(1, 3), budget=Ratios({"2": 0.5}))
    assert net[2].out_features == 2  # 6, 3, and of 3 the nearest to 1.5
    budget.check_units(make_space(), None)


# ---- weights


def test_masks_by_hand() -> None:
    assert Ratios({"a": 0.5}, default=0.25).mask_weights(weights(), 1.0) == {"a": 5, "b": 1}
    assert Ratios({"a": 0.5}, default=0.25).mask_weights(weights(), 0.5) == {"a": 2, "b": 0}  # halves to even
    assert Ratios({"[ab]": 0.75}).mask_weights(weights(), 1.0) == {"a": 8, "b": 3}


def test_masks_of_a_network() -> None:
    net = Residual()
    prune_once(net, torch.zeros(1, 3), granularity=Weights(), budget=Ratios({"up": 0.5, "*.weight": 0.25}))
    zeros = {name: int((p == 0).sum()) for name, p in net.named_parameters() if p.dim() > 1}
    assert zeros == {"stem.weight": 6, "up.weight": 48, "down.weight": 24, "head.weight": 4}


def test_a_pattern_on_what_a_block_does_not_fit_is_told_why() -> None:
    net = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 6), nn.Linear(6, 4))
    message = (
        "Ratios shares['[12]'] matches only parameters that stay dense: {'1.weight': 'its 6 outputs are "
        "not a multiple of 4', "
        "'2.weight': 'its 6 inputs are not a multiple of 4'}; remove it, or change the block"
    )
    blocks = Weights(block=(4, 4))
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        prune_once(net, torch.zeros(1, 8), granularity=blocks, budget=Ratios({"[12]": 0.5, "0": 0.5}))
    with pytest.raises(ValueError, match=r"shares\['9'\] matches no parameter in the scope, such as 0$"):
        prune_once(net, torch.zeros(1, 8), granularity=blocks, budget=Ratios({"9": 0.5, "0": 0.5}))
    with pytest.warns(UserWarning, match="stay dense"):
        report = prune_once(net, torch.zeros(1, 8), granularity=blocks, budget=Ratios({"*": 0.5}))
    assert report.widths == {"0.weight": (64, 32)}


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (Ratios({"c": 0.5}), r"^Ratios shares\['c'\] matches no parameter in the scope, such as a, b$"),
        (Ratios({"*": 0.5, "a": 0.2}), r"^Ratios shares\['a'\] has no effect: '\*' comes first"),
        (Ratios({"b": 1}), r"keeps no weight in 'b'; use at most 0.750000 there$"),
        (Ratios({"b": 0.5}, default=1), r"keeps no weight in 'a'; use at most 0.900000 there$"),
    ],
    ids=repr,
)
def test_masks_that_cannot_be(budget: Ratios, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        budget.check_weights(weights(), None)


# ---- the value


def test_order_counts_and_the_value_is_frozen() -> None:
    first, second = Ratios({"a": 0.1, "b": 0.2}), Ratios({"b": 0.2, "a": 0.1})
    assert first != second
    assert first == eval(repr(first)) == Ratios((("a", 0.1), ("b", 0.2)))
    assert hash(first) == hash(eval(repr(first)))
    assert repr(first) == "Ratios(shares={'a': 0.1, 'b': 0.2}, default=0.0)"
    given = {"a": 0.1}
    budget = Ratios(given)
    given["a"] = 0.9
    assert budget == Ratios({"a": 0.1})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (({},), r"^Ratios shares=\{\} selects nothing; for the same share everywhere use Ratio\(0.0\)$"),
        ((0.5,), r"^Ratios shares=0.5 must be a dict of shares by pattern"),
        ((["a"],), r"^Ratios shares=\['a'\] must be a dict of shares by pattern"),
        (({"a": 2},), r"^Ratios shares\['a'\]=2 must be a number in \[0, 1\], such as 0.5 for one half$"),
        (({"a": True},), r"^Ratios shares\['a'\]=True must be a number in \[0, 1\]"),
        (({1: 0.5},), r"^Ratios shares has the pattern 1; a pattern is a string such as"),
        (({"a": 0.5}, math.nan), r"^Ratios default=nan must be a number in \[0, 1\]"),
    ],
    ids=repr,
)
def test_arguments(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Ratios(*arguments)
