"""Weights and their gradients."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import register_multi_grad_hook
from torch.nn.modules.batchnorm import _NormBase

from lightning_prune.coupling.groups import Group
from lightning_prune.criteria.statistics.statistics import Statistics, all_finite
from lightning_prune.network.names import is_inside
from lightning_prune.network.sharded import is_sharded
from lightning_prune.surgery.plan import Plan, select


class OfParameters(Statistics):
    """Totals of the shapes of parameters, by their names."""

    over_ranks = "mean"

    def __init__(self, every_n_steps: int = 1) -> None:
        super().__init__(every_n_steps)
        self._parameters: dict[str, nn.Parameter] = {}

    def attach(self, module: nn.Module, groups: Iterable[Group] = (), parameters: Collection[str] = ()) -> None:
        """Observe the parameters named, and those in which units of ``groups`` live.

        Raises:
            ValueError: If ranks hold only parts of the parameters.
        """
        if is_sharded(module):
            raise ValueError(
                "a criterion that gathers for every weight needs whole parameters, of which every rank has a part; use "
                "Magnitude() or Random(), or strategy='ddp'"
            )
        names = {*parameters, *(member.tensor for group in groups for member in group.members)}
        self._parameters = {name: p for name, p in module.named_parameters() if name in names}

    def detach(self) -> None:
        """Let go of the parameters."""
        self._parameters = {}

    def unseen(self) -> list[str]:
        """Matrices without a total; a bias in front of a norm may never get a gradient."""
        return [name for name, p in self._parameters.items() if p.dim() > 1 and name not in self.totals]

    def follow(self, plan: Plan) -> None:
        """Cut the totals as the parameters were cut; what was removed as a whole has none any more."""
        left = {name: total for name, total in self.totals.items() if not is_inside(name, plan.removed_modules)}
        self.totals = {name: select(total, plan.keep.get(name, {})) for name, total in left.items()}

    def add(self, name: str, values: Tensor) -> None:
        """Add ``values`` to the total of a parameter."""
        total = self.totals.get(name)
        self.totals[name] = values if total is None else total.to(values.device).add_(values)

    def state_dict(self) -> dict[str, object]:  # type: ignore[override]
        """Copies: the totals go on growing in place."""
        return {"totals": {name: total.clone() for name, total in self.totals.items()}, "steps": self.steps}


class StepGradients(OfParameters):
    """Sums over optimizer steps of what is made of weights and their gradients.

    A step's gradient is the mean over everything that was accumulated for it, on all ranks. Steps whose gradients are
    not finite do not count.

    Args:
        every_n_steps: Take in every n-th optimizer step of each parameter, which few batches may end with.
    """

    def __init__(self, every_n_steps: int = 1) -> None:
        super().__init__(every_n_steps)
        self._met: dict[str, int] = {}  # optimizer steps of each parameter since the last event

    @torch.no_grad()
    def before_optimizer_step(self, parameters: Collection[int], loss_scale: float = 1.0) -> None:
        """Take in the gradients of the observed parameters that have one."""
        own = {n: p.grad for n, p in self._parameters.items() if id(p) in parameters and p.grad is not None}
        due = {name: gradient for name, gradient in own.items() if self._met.get(name, 0) % self.every_n_steps == 0}
        self._met.update({name: self._met.get(name, 0) + 1 for name in own})
        self._take_in({name: gradient / loss_scale if loss_scale != 1 else gradient for name, gradient in due.items()})

    @contextmanager
    def calibrating(self) -> Iterator[None]:
        """Take in the gradients of every backward pass by themselves."""
        own = {name: p for name, p in self._parameters.items() if p.requires_grad}

        @torch.no_grad()
        def take_in(gradients: Sequence[Tensor | None]) -> None:
            self._take_in({name: g for name, g in zip(own, gradients, strict=True) if g is not None})

        handle = register_multi_grad_hook(list(own.values()), take_in) if own else None
        try:
            yield
        finally:
            if handle is not None:
                handle.remove()

    def _take_in(self, gradients: Mapping[str, Tensor]) -> None:
        dense = {name: gradient.to_dense() if gradient.is_sparse else gradient for name, gradient in gradients.items()}
        if dense and all_finite(dense.values()):
            self._add_terms({name: gradient.float() for name, gradient in dense.items()})
            self.steps += 1

    def reset(self) -> None:
        """Forget everything gathered so far; the next step is observed."""
        super().reset()
        self._met = {}

    def state_dict(self) -> dict[str, object]:  # type: ignore[override]
        """Also the steps that were met."""
        return {**super().state_dict(), "met": dict(self._met)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what ``state_dict`` returned."""
        super().load_state_dict(state)
        self._met = dict(state.get("met", {}))

    @abstractmethod
    def _add_terms(self, gradients: Mapping[str, Tensor]) -> None:
        """Add what one step brings."""


class WeightGradients(StepGradients):
    """Sums of what ``term`` makes of a weight and its gradient.

    Args:
        term: (weights, gradients) -> values, float32 and of one shape; returns a new tensor.
        every_n_steps: Take in every n-th optimizer step of each parameter.
    """

    def __init__(self, term: Callable[[Tensor, Tensor], Tensor], every_n_steps: int = 1) -> None:
        super().__init__(every_n_steps)
        self._term = term

    def _add_terms(self, gradients: Mapping[str, Tensor]) -> None:
        for name, gradient in gradients.items():
            self.add(name, self._term(self._parameters[name].detach().float(), gradient))


class MovementScores(StepGradients):
    """Scores that each step moves by −w · g − penalty · σ(score) · (1 − σ(score)), from 0 on and through all events.

    Args:
        penalty: Weight of Σ σ(score) in the loss.
    """

    lasting = True

    def __init__(self, penalty: float = 0.0) -> None:
        super().__init__()
        self.penalty = penalty

    def _add_terms(self, gradients: Mapping[str, Tensor]) -> None:
        for name, gradient in gradients.items():
            change = (self._parameters[name].detach().float() * gradient).neg_()
            if self.penalty:
                share = self.totals.get(name, torch.zeros(())).to(change.device).sigmoid()
                change -= self.penalty * share * (1 - share)
            self.add(name, change)


class GateGradients(StepGradients):
    """Sums of (γ · ∂L/∂γ + β · ∂L/∂β)² for every channel of the observed batch norms, by the names of their γ."""

    def attach(self, module: nn.Module, groups: Iterable[Group] = (), parameters: Collection[str] = ()) -> None:
        """Observe the batch norms behind ``groups``."""
        super().attach(module, groups, parameters)
        norms = {name for name, child in module.named_modules() if isinstance(child, _NormBase)}
        self._parameters = {n: p for n, p in self._parameters.items() if n.rpartition(".")[0] in norms}

    def unseen(self) -> list[str]:
        """Scales without a total."""
        return [name for name in self._parameters if _is_scale(name) and name not in self.totals]

    def _add_terms(self, gradients: Mapping[str, Tensor]) -> None:
        products = {name: self._parameters[name].detach().float() * gradient for name, gradient in gradients.items()}
        for name, product in products.items():
            if _is_scale(name):
                self.add(name, (product + products.get(name.removesuffix("weight") + "bias", 0)).square_())


def _is_scale(name: str) -> bool:
    return name.rpartition(".")[2] == "weight"
