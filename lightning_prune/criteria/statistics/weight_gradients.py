"""Sums over optimizer steps of functions of weights and their gradients."""

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


class ParameterStatistics(Statistics):
    """Base of statistics of parameters: parameter name -> total of its shape."""

    over_ranks = "mean"

    def __init__(self, every_n_steps: int = 1) -> None:
        super().__init__(every_n_steps)
        self._parameters: dict[str, nn.Parameter] = {}

    def attach(self, module: nn.Module, groups: Iterable[Group] = (), parameters: Collection[str] = ()) -> None:
        """Observe ``parameters``, and the parameters that contain units of ``groups``.

        Raises:
            ValueError: If ranks hold only parts of the parameters.
        """
        if is_sharded(module):
            raise ValueError(
                "a criterion that gathers statistics of every weight needs whole parameters, but ranks have shards; "
                "use Magnitude() or Random(), or strategy='ddp'"
            )
        names = {*parameters, *(member.tensor for group in groups for member in group.members)}
        self._parameters = {name: p for name, p in module.named_parameters() if name in names}

    def detach(self) -> None:
        """Stop observing; the totals are kept."""
        self._parameters = {}

    def unseen(self) -> list[str]:
        """Weight matrices without a total; a bias before a norm layer may never get a gradient."""
        return [name for name, p in self._parameters.items() if p.dim() > 1 and name not in self.totals]

    def follow(self, plan: Plan) -> None:
        """Slice the totals as the parameters were sliced, and drop those of removed modules."""
        left = {name: total for name, total in self.totals.items() if not is_inside(name, plan.removed_modules)}
        self.totals = {name: select(total, plan.keep.get(name, {})) for name, total in left.items()}

    def add(self, name: str, values: Tensor) -> None:
        """Add ``values`` to the total of a parameter."""
        total = self.totals.get(name)
        self.totals[name] = values if total is None else total.to(values.device).add_(values)

    def state_dict(self) -> dict[str, object]:  # type: ignore[override]
        """Copies of the totals, which are changed in place, and the number of steps."""
        return {"totals": {name: total.clone() for name, total in self.totals.items()}, "steps": self.steps}


class StepGradients(ParameterStatistics):
    """Base of statistics of the gradients at optimizer steps.

    The gradient of a step is the mean over all accumulated batches and ranks. Steps whose gradients are not finite are
    left out.

    Args:
        every_n_steps: Observe every n-th optimizer step of each parameter; with gradient accumulation there are fewer
            of these than batches.
    """

    def __init__(self, every_n_steps: int = 1) -> None:
        super().__init__(every_n_steps)
        self._seen: dict[str, int] = {}  # optimizer steps of each parameter since the last event

    @torch.no_grad()
    def before_optimizer_step(self, parameters: Collection[int], loss_scale: float = 1.0) -> None:
        """Add the gradients of the observed parameters that have one."""
        gradients = {n: p.grad for n, p in self._parameters.items() if id(p) in parameters and p.grad is not None}
        observed = {n: g for n, g in gradients.items() if self._seen.get(n, 0) % self.every_n_steps == 0}
        self._seen.update({name: self._seen.get(name, 0) + 1 for name in gradients})
        self._add_gradients({n: g / loss_scale if loss_scale != 1 else g for n, g in observed.items()})

    @contextmanager
    def calibrating(self) -> Iterator[None]:
        """A context in which the gradients of every backward pass are added, without an optimizer."""
        own = {name: p for name, p in self._parameters.items() if p.requires_grad}

        @torch.no_grad()
        def add_gradients(gradients: Sequence[Tensor | None]) -> None:
            self._add_gradients({name: g for name, g in zip(own, gradients, strict=True) if g is not None})

        handle = register_multi_grad_hook(list(own.values()), add_gradients) if own else None
        try:
            yield
        finally:
            if handle is not None:
                handle.remove()

    def _add_gradients(self, gradients: Mapping[str, Tensor]) -> None:
        dense = {name: gradient.to_dense() if gradient.is_sparse else gradient for name, gradient in gradients.items()}
        if dense and all_finite(dense.values()):
            self._add_terms({name: gradient.float() for name, gradient in dense.items()})
            self.steps += 1

    def reset(self) -> None:
        """Drop all totals; the next step is observed."""
        super().reset()
        self._seen = {}

    def state_dict(self) -> dict[str, object]:  # type: ignore[override]
        """Totals, number of steps, and the optimizer steps of each parameter (``met``)."""
        return {**super().state_dict(), "met": dict(self._seen)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that ``state_dict`` returned."""
        super().load_state_dict(state)
        self._seen = dict(state.get("met", {}))

    @abstractmethod
    def _add_terms(self, gradients: Mapping[str, Tensor]) -> None:
        """Add the values of one step; gradients are float32 and dense."""


class WeightGradients(StepGradients):
    """Sums of a function of weights and gradients.

    Args:
        term: (weights, gradients) -> values, all float32 and of one shape; returns a new tensor.
        every_n_steps: Observe every n-th optimizer step of each parameter.
    """

    def __init__(self, term: Callable[[Tensor, Tensor], Tensor], every_n_steps: int = 1) -> None:
        super().__init__(every_n_steps)
        self._term = term

    def _add_terms(self, gradients: Mapping[str, Tensor]) -> None:
        for name, gradient in gradients.items():
            self.add(name, self._term(self._parameters[name].detach().float(), gradient))


class MovementScores(StepGradients):
    """Movement scores: each step adds −w · g − penalty · σ(score) · (1 − σ(score)); kept through events.

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
        """Observe the batch norms that follow the channels of ``groups``."""
        super().attach(module, groups, parameters)
        norms = {name for name, child in module.named_modules() if isinstance(child, _NormBase)}
        self._parameters = {n: p for n, p in self._parameters.items() if n.rpartition(".")[0] in norms}

    def unseen(self) -> list[str]:
        """Scales γ without a total."""
        return [name for name in self._parameters if _is_scale(name) and name not in self.totals]

    def _add_terms(self, gradients: Mapping[str, Tensor]) -> None:
        products = {name: self._parameters[name].detach().float() * gradient for name, gradient in gradients.items()}
        for name, product in products.items():
            if _is_scale(name):
                self.add(name, (product + products.get(name.removesuffix("weight") + "bias", 0)).square_())


def _is_scale(name: str) -> bool:
    return name.rpartition(".")[2] == "weight"
