"""Base class of the statistics that criteria gather during training."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_prune.coupling.groups import Group
from lightning_prune.network.names import is_inside
from lightning_prune.surgery.plan import Plan


class Statistics(ABC):
    """Sums over the training steps since the last pruning event. Detached, in float32, never kept per example.

    The caller of a training step calls ``begin_step``, then for each backward pass ``before_backward`` and ``commit``,
    then ``before_optimizer_step`` for each optimizer that steps, then ``end_step``.

    Args:
        every_n_steps: Observe every n-th step.

    Attributes:
        totals: Name of a module or parameter -> gathered sum.
        steps: Number of times that something was added.
        active: Whether the running training step is observed.
        over_ranks: Reduction of the totals over ranks. It is ``"mean"`` where all ranks gather the same values, from
            gradients that DDP has averaged, or where each gathers means over its own batches.
        looks_at: What is gathered, for messages.
        lasting: Whether totals are kept through pruning events.
    """

    over_ranks: Literal["sum", "mean"] = "sum"
    lasting = False
    looks_at = "gradients"

    def __init__(self, every_n_steps: int = 1) -> None:
        self.every_n_steps = every_n_steps
        self.totals: dict[str, Tensor] = {}
        self.steps = 0
        self.active = False  # validation may run before the first training step

    @abstractmethod
    def attach(self, module: nn.Module, groups: Iterable[Group] = (), parameters: Collection[str] = ()) -> None:
        """Observe the channels of ``groups`` or the weights of ``parameters``, in place of those observed before."""

    @abstractmethod
    def detach(self) -> None:
        """Stop observing; the totals are kept."""

    @abstractmethod
    def unseen(self) -> list[str]:
        """Names of observed modules or parameters without a total since the last event."""

    def begin_step(self, step: int) -> None:
        """Called when a training batch begins; it is observed if ``step`` is a multiple of ``every_n_steps``."""
        self.active = step % self.every_n_steps == 0

    def before_backward(self, loss: Tensor, loss_scale: float = 1.0) -> None:  # noqa: B027  (most do not look at it)
        """Called before a backward pass of ``loss``, which is multiplied by ``loss_scale``."""

    def commit(self, loss_scale: float = 1.0) -> None:  # noqa: B027  (most look at the gradients later)
        """Called after a backward pass: add its values, divided by the loss scale; drop them if they are not finite."""

    def before_optimizer_step(self, parameters: Collection[int], loss_scale: float = 1.0) -> None:  # noqa: B027
        """Called before an optimizer step on the parameters with these ids, whose gradients are complete."""

    def end_step(self) -> None:
        """Called when a training batch ends; forward passes until the next one are not observed."""
        self.active = False

    def calibrating(self) -> AbstractContextManager[Any]:
        """A context in which every backward pass counts as a step, without an optimizer."""
        return nullcontext()

    def follow(self, plan: Plan) -> None:  # noqa: B027  (no other pruner can slice the layers that make these channels)
        """Slice the totals after ``plan`` was applied to the network, by this or another pruner."""

    def discard(self, modules: Collection[str]) -> None:
        """Drop the totals of modules that were removed, by this or another pruner."""
        self.totals = {key: total for key, total in self.totals.items() if not is_inside(key.split(" ")[-1], modules)}

    def reset(self) -> None:
        """Drop all totals."""
        self.totals = {}
        self.steps = 0

    def state_dict(self) -> dict[str, Any]:
        """Totals and number of steps, as plain tensors and numbers."""
        return {"totals": dict(self.totals), "steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that ``state_dict`` returned."""
        self.totals = dict(state["totals"])
        self.steps = state["steps"]


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether no entry is infinite or NaN; synchronizes with a GPU only once."""
    finite = [torch.isfinite(tensor).all() for tensor in tensors]
    return not finite or bool(torch.stack([one.to(finite[0].device) for one in finite]).all())
