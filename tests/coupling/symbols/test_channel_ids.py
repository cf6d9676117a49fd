"""Units as connected components, example inputs, and synchronized attributes of layers."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_prune.coupling.symbols.channel_ids import NO_CHANNEL, ChannelIds
from lightning_prune.network.example_input import Example
from lightning_prune.network.layer_attributes import sync_attributes


def components_by_hand(count: int, pairs: list[tuple[int, int]]) -> list[int]:
    lowest = list(range(count))
    for _ in range(count):
        for a, b in pairs:
            lowest[a] = lowest[b] = min(lowest[a], lowest[b])
    return lowest


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.integers(1, 12).flatmap(lambda n: st.tuples(st.just(n), st.lists(st.tuples(*[st.integers(0, n - 1)] * 2)))))
def test_units_are_the_connected_components_of_the_ties(graph: tuple[int, list[tuple[int, int]]]) -> None:
    count, pairs = graph
    channel_ids = ChannelIds()
    channel_ids.new(count)
    for a, b in pairs:
        channel_ids.tie(np.array([a]), np.array([b]), "")
    assert channel_ids.units().tolist() == components_by_hand(count, pairs)


def test_a_long_chain_of_ties_is_one_unit() -> None:
    channel_ids = ChannelIds()
    first = ids = channel_ids.new(3)
    for _ in range(2000):
        following = channel_ids.new(3)
        channel_ids.tie(following, ids, "")
        ids = following
    assert channel_ids.units().reshape(-1, 3).tolist() == [first.tolist()] * 2001


def test_an_id_tied_to_a_fixed_index_is_frozen_and_the_others_are_not() -> None:
    channel_ids = ChannelIds()
    a, b = channel_ids.new(3), channel_ids.new(2)
    channel_ids.tie(a, np.concatenate([b, [NO_CHANNEL]]), "padded")
    units = channel_ids.units()
    assert units.tolist() == [0, 1, 2, 0, 1]
    reasons = channel_ids.frozen_units(units)
    assert reasons.known(units).tolist() == [False, False, True, False, False]
    assert reasons.of(2) == "padded"


def test_the_first_reason_is_kept() -> None:
    channel_ids = ChannelIds()
    ids = channel_ids.new(2)
    channel_ids.freeze(ids[:1], "first")
    channel_ids.freeze(ids, "second")
    reasons = channel_ids.frozen_units(channel_ids.units())
    assert [reasons.of(0), reasons.of(1)] == ["first", "second"]


@pytest.mark.parametrize(
    ("inputs", "args", "kwargs", "batch"),
    [
        (torch.zeros(5, 3), [(2, 3)], {}, 2),
        (torch.zeros(1, 3), [(2, 3)], {}, 2),
        ((torch.zeros(4, 3), torch.zeros(4, 2, 2)), [(2, 3), (2, 2, 2)], {}, 2),
        ({"x": torch.zeros(1, 3)}, [], {"x": (2, 3)}, 2),
        ((torch.zeros(4, 3), torch.zeros(5, 2)), [(4, 3), (5, 2)], {}, 1),
        (torch.zeros(7), [(7,)], {}, 1),
    ],
)
def test_examples_become_a_batch_of_two(inputs, args, kwargs, batch) -> None:
    example = Example.of(inputs)
    assert [tuple(value.shape) for value in example.args] == args
    assert {name: tuple(value.shape) for name, value in example.kwargs.items()} == kwargs
    assert example.batch == batch


def test_a_list_is_the_one_argument_and_flags_are_left_alone() -> None:
    example = Example.of([torch.zeros(1, 3), True, None])
    assert len(example.args) == 1
    assert example.args[0][1:] == [True, None]
    assert example.args[0][0].shape == (2, 3)


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_examples_are_repeated_to_a_batch(batch: int) -> None:
    rows = torch.tensor([[1.0], [2.0], [3.0]])
    repeated = Example.of((rows, 7)).repeated(batch)
    assert repeated.batch == batch
    assert repeated.args[0].flatten().tolist() == [1, 2, 1, 2, 1][:batch]
    assert repeated.args[1] == 7
    unbatched = Example.of(torch.zeros(7))
    assert unbatched.repeated(batch) is unbatched


@pytest.mark.parametrize(
    ("layer", "slices", "expected"),
    [
        (nn.Conv2d(6, 8, 3), {"weight": (slice(5), slice(4))}, {"in_channels": 4, "out_channels": 5}),
        (nn.Conv2d(6, 8, 3, groups=2), {"weight": (slice(6), slice(2))}, {"in_channels": 4, "out_channels": 6}),
        (
            nn.Conv2d(6, 12, 3, groups=6),
            {"weight": (slice(8),)},
            {"in_channels": 4, "out_channels": 8, "groups": 4},
        ),
        (
            nn.Conv2d(8, 8, 3, groups=4),
            {"weight": (slice(4), slice(1))},
            {"in_channels": 4, "out_channels": 4, "groups": 4},
        ),
        (nn.ConvTranspose2d(6, 8, 3), {"weight": (slice(4), slice(5))}, {"in_channels": 4, "out_channels": 5}),
        (
            nn.ConvTranspose2d(6, 8, 3, groups=2),
            {"weight": (slice(4), slice(3))},
            {"in_channels": 4, "out_channels": 6, "groups": 2},
        ),
        (
            nn.ConvTranspose2d(6, 6, 3, groups=6),
            {"weight": (slice(4),)},
            {"in_channels": 4, "out_channels": 4, "groups": 4},
        ),
        (nn.Linear(6, 8), {"weight": (slice(5), slice(4))}, {"in_features": 4, "out_features": 5}),
        (nn.BatchNorm2d(8), {"weight": (slice(5),), "running_mean": (slice(5),)}, {"num_features": 5}),
        (nn.BatchNorm2d(8, affine=False), {"running_mean": (slice(5),)}, {"num_features": 5}),
        (nn.LayerNorm(8), {"weight": (slice(5),)}, {"normalized_shape": (5,)}),
        (nn.GroupNorm(2, 8), {"weight": (slice(6),)}, {"num_channels": 6, "num_groups": 2}),
        (nn.PReLU(8), {"weight": (slice(5),)}, {"num_parameters": 5}),
        (nn.Embedding(9, 8), {"weight": (slice(9), slice(5))}, {"num_embeddings": 9, "embedding_dim": 5}),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_layers_have_their_new_sizes(layer, slices, expected) -> None:
    for name, index in slices.items():
        getattr(layer, name).data = getattr(layer, name).data[index]
    sync_attributes(layer)
    assert {name: getattr(layer, name) for name in expected} == expected


def test_a_convolution_with_one_channel_a_group_grows_back() -> None:
    layer = nn.Conv2d(4, 4, 3, groups=4)
    layer.weight.data, layer.bias.data = torch.zeros(8, 2, 3, 3), torch.zeros(8)
    sync_attributes(layer)
    assert (layer.in_channels, layer.out_channels, layer.groups) == (8, 8, 4)
    assert layer(torch.zeros(1, 8, 5, 5)).shape == (1, 8, 3, 3)
