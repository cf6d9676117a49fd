"""What a criterion needs gathered during training."""

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
    """Sums over the training steps since the last event. Detached, in float32, never kept per example.

    A training step calls ``begin_step``, then for each backward pass ``before_backward`` and ``commit``, then for each
    optimizer that steps ``before_optimizer_step``, then ``end_step``.

    Attributes:
        totals: What was gathered, by the name of a module or a parameter.
        steps: How often something was added.
        active: Whether this training step is observed.
        over_ranks: How the totals of several ranks become one. The ``"mean"`` where all ranks have gathered the same,
            from gradients that DDP has averaged, or where each has gathered means over its part of the batches.
        looks_at: What is gathered, for messages.
        lasting: Whether events leave the totals standing.
    """

    over_ranks: Literal["sum", "mean"] = "sum"
    lasting = False
    looks_at = "gradients"

    def __init__(self, every_n_steps: int = 1) -> None:
        self.every_n_steps = every_n_steps
        self.totals: dict[str, Tensor] = {}
        self.steps = 0
        self.active = False  # validation may come before the first training step

    @abstractmethod
    def attach(self, module: nn.Module, groups: Iterable[Group] = (), parameters: Collection[str] = ()) -> None:
        """Begin to observe, for channels of ``groups`` or weights of ``parameters``; attaching again replaces that."""

    @abstractmethod
    def detach(self) -> None:
        """Stop observing; the totals stay."""

    @abstractmethod
    def unseen(self) -> list[str]:
        """What is observed and has brought nothing since the last event."""

    def begin_step(self, step: int) -> None:
        """A training batch begins; its passes are observed where ``step`` is a multiple of ``every_n_steps``."""
        self.active = step % self.every_n_steps == 0

    def before_backward(self, loss: Tensor, loss_scale: float = 1.0) -> None:  # noqa: B027  (most do not look at it)
        """A backward pass of ``loss``, which is scaled, is about to begin."""

    def commit(self, loss_scale: float = 1.0) -> None:  # noqa: B027  (most look at the gradients later)
        """A backward pass has ended: add what it brought, divided by the loss scale; drop it if not finite."""

    def before_optimizer_step(self, parameters: Collection[int], loss_scale: float = 1.0) -> None:  # noqa: B027
        """An optimizer is about to step on the parameters with these ids, whose gradients are complete."""

    def end_step(self) -> None:
        """A training batch has ended; what the network is run for until the next one is not observed."""
        self.active = False

    def calibrating(self) -> AbstractContextManager[Any]:
        """A context in which every backward pass counts as a step, without any optimizer."""
        return nullcontext()

    def follow(self, plan: Plan) -> None:  # noqa: B027  (no other pruner can cut what makes the channels of this one)
        """The network has been pruned, by whomever."""

    def forget(self, modules: Collection[str]) -> None:
        """These modules were removed as a whole, by whomever."""
        self.totals = {key: total for key, total in self.totals.items() if not is_inside(key.split(" ")[-1], modules)}

    def reset(self) -> None:
        """Forget everything gathered so far."""
        self.totals = {}
        self.steps = 0

    def state_dict(self) -> dict[str, Any]:
        """Totals and number of steps, as plain tensors and numbers."""
        return {"totals": dict(self.totals), "steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what ``state_dict`` returned."""
        self.totals = dict(state["totals"])
        self.steps = state["steps"]


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether no entry is infinite or NaN; waits for a GPU only once."""
    finite = [torch.isfinite(tensor).all() for tensor in tensors]
    return not finite or bool(torch.stack([one.to(finite[0].device) for one in finite]).all())
