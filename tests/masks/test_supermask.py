"""Learned masks without a Trainer."""

import io
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_prune.masks.supermask import LearnedMasks


class TopK(torch.autograd.Function):
    """1 for the ``keep`` highest scores; its gradient is passed straight through."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, keep: int) -> Tensor:
        mask = torch.zeros_like(scores)
        mask.view(-1)[scores.flatten().topk(keep).indices] = 1
        return mask

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return gradient, None


def weights() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {"a": torch.randn(6, 5, generator=generator), "b": torch.randn(4, 6, generator=generator)}


def loss_of(a: Tensor, b: Tensor, batch: Tensor) -> Tensor:
    return (batch @ a.T).relu().matmul(b.T).square().mean()


@pytest.mark.parametrize("scores", ["random", "magnitude"])
def test_steps_are_those_of_autograd(scores: Any) -> None:
    """Against scores that autograd differentiates, with other learning rates for each parameter."""
    masks = LearnedMasks(weights(), 0.6, 0.9, scores)
    theirs = {name: score.clone().requires_grad_() for name, score in masks.scores.items()}
    rates = {"a": 0.5, "b": 0.2}
    groups = [{"params": [score], "lr": rates[name]} for name, score in theirs.items()]
    descent = torch.optim.SGD(groups, momentum=0.9)
    kept = {"a": 12, "b": 10}  # 40 % of 30, and of 24 with 14.4 masked
    changed = 0
    for seed in range(8):
        batch = torch.randn(7, 5, generator=torch.Generator().manual_seed(seed))
        used = {name: w * TopK.apply(theirs[name], kept[name]) for name, w in weights().items()}
        for name, own in masks.weights_now().items():
            assert torch.equal(own, used[name]), (seed, name)
        own = {name: weight.requires_grad_() for name, weight in masks.weights_now().items()}
        before = masks.masks()
        loss_of(**own, batch=batch).backward()
        masks.step({name: weight.grad for name, weight in own.items()}, rates)
        loss_of(**used, batch=batch).backward()
        descent.step()
        descent.zero_grad()
        for name, score in theirs.items():
            torch.testing.assert_close(masks.scores[name], score.detach())
        changed += sum(int((mask != before[name]).sum()) for name, mask in masks.masks().items())
    assert changed > 10


def test_masks_by_hand() -> None:
    masks = LearnedMasks(
        {"w": torch.tensor([[3.0, -1.0], [1.0, -2.0]]), "v": torch.tensor([5.0, 6.0])}, 0.7, 0, "magnitude"
    )
    assert {name: mask.tolist() for name, mask in masks.masks().items()} == {
        "w": [[True, False], [False, False]], "v": [False, True],
    }  # fmt: skip
    assert str(masks.weights_now()["w"].tolist()) == "[[3.0, 0.0], [0.0, 0.0]]"  # no −0.0
    assert LearnedMasks({"w": torch.ones(3)}, 0.99, 0, "magnitude").masks()["w"].sum() == 1


def test_what_has_no_gradient_stays() -> None:
    masks = LearnedMasks(weights(), 0.5, 0.9, "random")
    before = {name: score.clone() for name, score in masks.scores.items()}
    masks.step({"a": torch.ones(6, 5)}, {"a": 0.1})
    torch.testing.assert_close(masks.scores["a"], before["a"] - 0.1 * weights()["a"])
    assert torch.equal(masks.scores["b"], before["b"])


def test_random_scores_depend_on_names_alone() -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = LearnedMasks(weights(), 0.5, 0.9, "random").scores
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    second = LearnedMasks({name: 2 * weight for name, weight in weights().items()}, 0.9, 0, "random").scores
    assert all(torch.equal(score, second[name]) for name, score in first.items())
    alike = LearnedMasks({"a": torch.zeros(4, 6), "b": torch.zeros(4, 6)}, 0.5, 0.9, "random").scores
    assert not torch.equal(alike["a"], alike["b"])
    assert first["a"].abs().max() <= 5**-0.5
    assert first["a"].abs().max() > 0.8 * 5**-0.5
    assert (first["a"] < 0).any()


def test_half_precision_keeps_its_weights_and_has_precise_scores() -> None:
    halves = {name: weight.bfloat16() for name, weight in weights().items()}
    masks = LearnedMasks(halves, 0.5, 0.9, "magnitude")
    masks.step({name: torch.ones_like(weight) for name, weight in halves.items()}, dict.fromkeys(halves, 1e-5))
    torch.testing.assert_close(
        masks.scores["a"], halves["a"].float().abs() - 1e-5 * halves["a"].float(), rtol=0, atol=1e-7
    )
    assert masks.weights_now()["a"].dtype == torch.bfloat16


def test_a_state_goes_through_a_file_and_does_not_change() -> None:
    gradients = {name: weight.sin() for name, weight in weights().items()}
    rates = dict.fromkeys(gradients, 0.1)
    masks = LearnedMasks(weights(), 0.5, 0.9, "random")
    masks.step(gradients, rates)
    buffer = io.BytesIO()
    state = masks.state_dict()
    masks.step(gradients, rates)
    torch.save(state, buffer)
    buffer.seek(0)
    resumed = LearnedMasks({name: torch.zeros_like(weight) for name, weight in weights().items()}, 0.5, 0.9, "random")
    resumed.load_state_dict(torch.load(buffer, weights_only=True))
    resumed.step(gradients, rates)
    for name in gradients:
        assert torch.equal(resumed.scores[name], masks.scores[name])
        assert torch.equal(resumed.weights_now()[name], masks.weights_now()[name])
