"""What is kept of the beginning."""

import io

import torch
from helpers.gathering import by_hand
from torch import nn

from lightning_prune.criteria.statistics import InitialWeights
from lightning_prune.surgery.plan import Plan

NAMES = ["0.weight", "1.weight"]


def observing(net: nn.Module) -> InitialWeights:
    statistics = InitialWeights()
    statistics.attach(net, parameters=NAMES)
    return statistics


def test_the_first_look_counts() -> None:
    net = by_hand()
    statistics = observing(net)
    with torch.no_grad():
        net[0].weight.zero_()
    statistics.attach(net, parameters=[*NAMES, "0.bias"])
    assert {name: total.tolist() for name, total in statistics.totals.items()} == {
        "0.weight": [[1, 2], [3, -1]], "1.weight": [[2, -1]], "0.bias": [1, 0],
    }  # fmt: skip
    assert statistics.lasting
    assert statistics.unseen() == []
    assert statistics.steps == 1  # so that nobody waits for it
    assert not any(module._forward_hooks or module._backward_hooks for module in net.modules())


def test_half_precision_is_kept_in_float32() -> None:
    statistics = observing(by_hand().bfloat16())
    assert {total.dtype for total in statistics.totals.values()} == {torch.float32}


def test_it_follows_what_is_cut_scaled_and_skipped() -> None:
    statistics = observing(by_hand())
    kept = torch.tensor([1])
    scales = {"0.weight": {0: torch.tensor([10.0], dtype=torch.float64)}, "other": {0: torch.ones(1)}}
    statistics.follow(Plan(keep={"0.weight": {0: kept}, "1.weight": {1: kept}}, scales=scales))
    assert {name: total.tolist() for name, total in statistics.totals.items()} == {
        "0.weight": [[30, -10]], "1.weight": [[-1]],
    }  # fmt: skip
    statistics.follow(Plan(removed_modules=("0",)))
    assert statistics.totals.keys() == {"1.weight"}


def test_a_state_goes_through_a_file_and_counts_from_then_on() -> None:
    buffer = io.BytesIO()
    torch.save(observing(by_hand()).state_dict(), buffer)
    buffer.seek(0)
    net = by_hand()
    with torch.no_grad():
        net[0].weight.zero_()
    resumed = InitialWeights()
    resumed.load_state_dict(torch.load(buffer, weights_only=True))
    resumed.attach(net, parameters=NAMES)
    assert resumed.totals["0.weight"].tolist() == [[1, 2], [3, -1]]
