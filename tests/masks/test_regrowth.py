import math
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_prune import Regrowth, Weights, prune_once
from lightning_prune.masks.regrowth import exchange


def by_sorting(weight, promise, mask, share):
    """The same on lists: drop the nearest to zero, then take the best of everything that is masked now."""
    alive = [i for i, kept in enumerate(mask) if kept]
    count = min(round(share * len(alive)), len(mask) - len(alive), len(alive) - 1)
    if count < 1:
        return mask, mask
    best = max(alive, key=lambda i: (abs(weight[i]), -i))  # of equal weights the first one stays
    gone = set(sorted((i for i in alive if i != best), key=lambda i: (abs(weight[i]), i))[:count])
    left = [kept and i not in gone for i, kept in enumerate(mask)]
    back = sorted((i for i, kept in enumerate(left) if not kept), key=lambda i: (-promise[i], -i))[:count]
    return left, [kept or i in back for i, kept in enumerate(left)]


@given(st.data())
def test_exchanges_are_what_sorting_finds(data) -> None:
    size = data.draw(st.integers(1, 12))
    lists = [data.draw(st.lists(st.integers(-4, 4).map(float), min_size=size, max_size=size)) for _ in range(2)]
    mask = data.draw(st.lists(st.booleans(), min_size=size, max_size=size))
    share = data.draw(st.floats(0, 0.99))
    weight = [value if kept else 0.0 for value, kept in zip(lists[0], mask, strict=True)]
    promise = [abs(value) for value in lists[1]]
    left, new = exchange(torch.tensor(weight), torch.tensor(promise), torch.tensor(mask), share)
    assert (left.tolist(), new.tolist()) == by_sorting(weight, promise, mask, share)
    assert int(new.sum()) == sum(mask)


def test_a_layer_that_is_dense_or_empty_stays() -> None:
    weight = torch.tensor([1.0, 2, 3, 4])
    for mask in (torch.ones(4, dtype=torch.bool), torch.zeros(4, dtype=torch.bool)):
        left, new = exchange(weight, weight, mask, 0.5)
        assert left.equal(mask)
        assert new.equal(mask)


def test_no_more_than_there_is_room_for() -> None:
    weight, mask = torch.tensor([1.0, 2, 3, 0]), torch.tensor([True, True, True, False])
    _, new = exchange(weight, torch.tensor([0.0, 0, 0, 1]), mask, 0.9)
    assert new.tolist() == [False, True, True, True]


def test_the_share_falls_on_half_a_cosine() -> None:
    regrowth = Regrowth(share=0.4, end=0.5)
    assert regrowth.share_at(0.125) == pytest.approx(0.2 * (1 + math.cos(math.pi / 4)))
    assert [regrowth.share_at(done) for done in (0.5, 0.7, 1.0)] == [0.0] * 3
    constant = Regrowth(share=0.4, end=0.5, anneal=False)
    assert [constant.share_at(done) for done in (0, 0.49, 0.5)] == [0.4, 0.4, 0.0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"by": "momentum"}, "Regrowth by='momentum' is not known; use 'gradient' (RigL) or 'random' (SET)"),
        ({"share": 1.0}, "Regrowth share=1.0 must be a number in (0, 1), such as 0.3"),
        ({"share": 30}, "Regrowth share=30 must be a number in (0, 1), such as 0.3"),
        ({"end": 0}, "Regrowth end=0 must be a number in (0, 1], such as 0.75"),
        ({"every": 0}, "Regrowth every=0 must be an integer of at least 1"),
        ({"anneal": 1}, "Regrowth anneal=1 must be True or False"),
    ],
)
def test_arguments(arguments, message) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Regrowth(**arguments)


def test_only_trainings_regrow() -> None:
    with pytest.raises(ValueError, match="regrows weights during training; use IterativePruning"):
        prune_once(torch.nn.Linear(4, 2), torch.zeros(1, 4), granularity=Weights(regrow=Regrowth()))
    with pytest.raises(ValueError, match=re.escape("Weights regrow='gradient' must be a Regrowth, such as")):
        Weights(regrow="gradient")
