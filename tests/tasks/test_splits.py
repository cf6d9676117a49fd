import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import TensorDataset

from lightning_prune.tasks.splits import evaluation_loader, stratified_split, train_loader


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    labels=st.lists(st.integers(0, 4), min_size=4, max_size=60),
    fraction=st.floats(0.2, 0.8),
    seed=st.integers(0, 5),
)
def test_split_is_a_partition_with_the_share_of_each_class(labels: list[int], fraction: float, seed: int) -> None:
    rest, part = stratified_split(labels, fraction, seed)
    assert sorted(rest + part) == list(range(len(labels)))
    assert rest == sorted(rest)
    assert part == sorted(part)
    assert len(part) == round(fraction * len(labels))
    for label in set(labels):
        share = fraction * labels.count(label)
        assert abs(sum(labels[index] == label for index in part) - share) < 1


def test_split_by_hand() -> None:
    # Shares of 0.5 * (3, 1, 4) = (1.5, 0.5, 2): one each of the equal remainders fits, the lower label wins.
    labels = [0, 0, 0, 1, 2, 2, 2, 2]
    _, part = stratified_split(labels, 0.5, seed=0)
    assert [sum(labels[index] == label for index in part) for label in (0, 1, 2)] == [2, 0, 2]


def test_split_depends_on_the_seed_only() -> None:
    labels = torch.arange(100) % 5
    torch.manual_seed(1)
    first = stratified_split(labels, 0.3, seed=0)
    state = torch.get_rng_state()
    torch.manual_seed(2)
    assert stratified_split(labels, 0.3, seed=0) == first
    assert stratified_split(labels, 0.3, seed=1) != first
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, float("nan")])
def test_fractions_outside_are_refused(fraction: float) -> None:
    with pytest.raises(ValueError, match="must be a number in"):
        stratified_split([0, 1], fraction, seed=0)


def test_an_empty_part_is_refused() -> None:
    with pytest.raises(ValueError, match=r"0\.01 of 4 images leaves one part of the split empty"):
        stratified_split([0, 0, 1, 1], 0.01, seed=0)


def test_training_shuffles_by_the_global_seed_and_drops_the_incomplete_batch() -> None:
    loader = train_loader(TensorDataset(torch.arange(21)), batch_size=5, num_workers=0)

    def epoch(seed: int) -> list[int]:
        torch.manual_seed(seed)
        return torch.cat([batch[0] for batch in loader]).tolist()

    assert len(set(epoch(0))) == 20
    assert epoch(0) == epoch(0)
    assert epoch(0) != epoch(1)


def test_training_keeps_a_single_incomplete_batch() -> None:
    loader = train_loader(TensorDataset(torch.arange(3)), batch_size=5, num_workers=0)
    assert [len(batch[0]) for batch in loader] == [3]


def test_evaluation_gives_all_in_order() -> None:
    loader = evaluation_loader(TensorDataset(torch.arange(21)), batch_size=5, num_workers=0)
    assert torch.cat([batch[0] for batch in loader]).tolist() == list(range(21))
