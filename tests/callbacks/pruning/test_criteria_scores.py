"""Scores in a Trainer equal those of the same training in plain PyTorch."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.training import BATCH, STEPS, Events, Lit, fit, images
from helpers.weight_scores import NAMES, Scores, masking
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_prune import IterativePruning
from lightning_prune.budgets import Ratio
from lightning_prune.criteria import SNIP, APoZ, Criterion, Fisher, MeanActivation, Movement, Wanda, WeightTaylor
from lightning_prune.criteria.statistics import COUNT
from lightning_prune.schedules import Constant


def by_itself(steps: int = STEPS, window: int = 1) -> tuple[dict[str, list[tuple[Tensor, Tensor]]], Any]:
    """Weights and gradients of each optimizer step of the same training in plain PyTorch, and the network."""
    torch.manual_seed(0)
    lit = Lit()  # what `fit` draws from the same seed
    net, data = lit.net, images()
    optimizer = torch.optim.SGD(net.parameters(), 0.05, momentum=0.9, weight_decay=1e-3)
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in NAMES}
    for step in range(steps):
        inputs, labels = (part[step * BATCH : (step + 1) * BATCH] for part in data.tensors)
        (F.cross_entropy(net(inputs), labels) / window).backward()
        if (step + 1) % window == 0:
            for name in NAMES:
                parameter = lit.get_parameter(name)
                seen[name].append((parameter.detach().clone(), parameter.grad.clone()))
            optimizer.step()
            optimizer.zero_grad()
    return seen, lit


def expected_of(criterion: Criterion, name: str, steps: list[tuple[Tensor, Tensor]], lit: Any) -> Tensor:
    products = torch.stack([weight * gradient for weight, gradient in steps])
    if isinstance(criterion, Fisher):
        squares = torch.stack([gradient for _, gradient in steps]).square().sum(0)
        return squares * lit.get_parameter(name).detach().square() / 2
    return {
        WeightTaylor: products.square().sum(0), SNIP: products.sum(0).abs(), Movement: -products.sum(0),
    }[type(criterion)]  # fmt: skip


@pytest.mark.parametrize("window", [1, 2])
@pytest.mark.parametrize("criterion", [WeightTaylor(), Fisher(), SNIP(), Movement()], ids=repr)
def test_scores_are_those_of_a_loop_outside(tmp_path: Path, criterion: Criterion, window: int) -> None:
    torch.manual_seed(0)
    lit, scores = Lit(), Scores()
    fit(tmp_path, lit, masking(criterion), scores, max_epochs=2, accumulate_grad_batches=window)
    seen, alone = by_itself(window=window)
    for name in NAMES:
        assert len(seen[name]) == STEPS // window
        torch.testing.assert_close(scores.weights[name], expected_of(criterion, name, seen[name], alone), msg=name)


def test_every_n_steps_and_windows_that_never_meet(tmp_path: Path) -> None:
    """Windows of two batches end with batches of odd number only."""
    torch.manual_seed(0)
    scores = Scores()
    criterion = WeightTaylor(every_n_steps=2)
    fit(tmp_path, Lit(), masking(criterion), scores, max_epochs=2, accumulate_grad_batches=2)
    seen, alone = by_itself(window=2)
    for name in NAMES:
        torch.testing.assert_close(scores.weights[name], expected_of(criterion, name, seen[name][:1], alone))


def test_activations_of_training_batches_alone_are_counted(tmp_path: Path) -> None:
    """Validation runs before, in the middle of and after the epoch."""
    torch.manual_seed(0)
    scores, lit = Scores(), Lit()
    lit.example_input_array = torch.zeros(1, 2, 3, 4)  # so that hooks are there from the start
    pruning = IterativePruning(Constant(1), Ratio(0.5), MeanActivation())
    fit(tmp_path, lit, pruning, scores, max_epochs=2, num_sanity_val_steps=2, val_check_interval=2)
    torch.manual_seed(0)
    net, data = Lit().net, images()
    optimizer = torch.optim.SGD(net.parameters(), 0.05, momentum=0.9, weight_decay=1e-3)
    sums = {"net.1": torch.zeros(8), "net.4": torch.zeros(8)}
    for name, layer in (("net.1", net[1]), ("net.4", net[4])):

        def add(module: nn.Module, inputs: Any, output: Tensor, name: str = name) -> None:
            sums[name] += output.detach().abs().sum((0, 2, 3))

        layer.register_forward_hook(add)
    for step in range(STEPS):
        inputs, labels = (part[step * BATCH : (step + 1) * BATCH] for part in data.tensors)
        F.cross_entropy(net(inputs), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    for name, total in sums.items():
        assert scores.totals[COUNT + name] == STEPS * BATCH * 12
        torch.testing.assert_close(scores.totals[name], total)


@pytest.mark.parametrize("criterion", [APoZ(), Wanda()], ids=repr)
def test_validation_is_not_counted(tmp_path: Path, criterion: Criterion) -> None:
    found = []
    for options in ({"limit_val_batches": 0}, {"num_sanity_val_steps": 2, "val_check_interval": 1}):
        torch.manual_seed(0)
        scores, lit = Scores(), Lit()
        lit.example_input_array = torch.zeros(1, 2, 3, 4)
        pruning = (
            masking(criterion) if criterion.scores_weights else IterativePruning(Constant(1), Ratio(0.5), criterion)
        )
        fit(tmp_path, lit, pruning, scores, max_epochs=2, **options)
        found.append(scores.totals)
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(total, found[1][name]) for name, total in found[0].items())


def test_the_first_batch_decides(tmp_path: Path) -> None:
    torch.manual_seed(0)
    events, scores = Events(), Scores()
    fit(tmp_path, Lit(), masking(SNIP(), Constant(1, unit="step")), events, scores, max_epochs=1)
    assert events.times == [(0, 1)]
    seen, alone = by_itself(1)
    for name in NAMES:
        torch.testing.assert_close(scores.weights[name], expected_of(SNIP(), name, seen[name], alone))
