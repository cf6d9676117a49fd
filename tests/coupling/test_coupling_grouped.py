"""Grouped convolutions never shrink to depthwise ones: these could not be told apart by their shapes on loading."""

import copy

import pytest
import torch
from helpers.coupling_nets import image
from torch import Tensor, nn

from lightning_prune import load_pruned, prune_once
from lightning_prune.budgets import Ratio
from lightning_prune.checkpoint.loading import reshape_to
from lightning_prune.checkpoint.manifest import track_shapes
from lightning_prune.coupling import find_coupling
from lightning_prune.network.example_input import Example


def grouped_net(groups: int = 4) -> nn.Sequential:
    """32 channels around a grouped convolution of 8."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 32, 1), nn.ReLU(), nn.Conv2d(32, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=groups), nn.ReLU(),
        nn.Conv2d(8, 32, 1), nn.ReLU(), nn.Conv2d(32, 2, 1),
    )  # fmt: skip


def shapes(state: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in state.items()}


def test_two_channels_per_group_are_kept_for_a_grouped_convolution() -> None:
    groups = find_coupling(grouped_net(), Example.of(image())).groups
    assert {name: (group.size, group.min_units) for name, group in groups.items()} == {
        "0.weight": (32, 1), "2.weight": (2, 2), "4.weight": (2, 1), "6.weight": (32, 1),
    }  # fmt: skip
    depthwise = find_coupling(grouped_net(groups=8), Example.of(image())).groups
    assert {group.min_units for group in depthwise.values()} == {1}


@pytest.mark.parametrize("per_layer", [True, False])
def test_it_stays_loadable_and_grows_back(tmp_path, per_layer: bool) -> None:
    net = grouped_net()
    track_shapes(net)
    states = [copy.deepcopy(net.state_dict())]
    for share in (0.4, 0.9):
        prune_once(net, image(), budget=Ratio(share, per_layer))
        states.append(copy.deepcopy(net.state_dict()))
    assert net[4].weight.shape[1] == 2

    def check(loaded: nn.Module, state: dict[str, Tensor]) -> None:
        assert shapes(loaded.state_dict()) == shapes(state)
        assert (loaded[4].groups, loaded[4].in_channels) == (4, 8)
        assert loaded[4].out_channels == len(state["4.weight"])
        assert loaded(image()).shape == (2, 2, 6, 6)

    tracked = grouped_net()
    track_shapes(tracked)
    for state in (states[2], states[0], states[1], states[2], states[1], states[0]):
        tracked.load_state_dict(state)
        check(tracked, state)
    for state in states[1:]:
        reshaped = grouped_net()
        reshape_to(reshaped, state)
        check(reshaped, state)
        torch.save(state, tmp_path / "state.pt")
        check(load_pruned(grouped_net(), tmp_path / "state.pt"), state)
