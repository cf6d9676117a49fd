"""Knowledge distillation: what a student loses against its teacher, and the gradients of that."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_prune.network.argument_checks import check_number, check_share


class DistillationLoss(ABC):
    """Base of all losses between an output of the student and the same output of the teacher.

    Attributes:
        module: Qualified name of the module whose output is compared; empty for that of the whole network.
        weight: Weight of the loss.
    """

    module: str
    weight: float

    @property
    @abstractmethod
    def share(self) -> float:
        """What is left of the task's own gradient."""

    @abstractmethod
    def loss(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss, unweighted; a scalar.

        Raises:
            ValueError: If the outputs do not compare.
        """

    def gradient(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """The weighted loss, and its gradient by the student's output."""
        with torch.enable_grad():
            own = student.detach().float().requires_grad_()
            loss = self.weight * self.loss(own, teacher.detach().float())
            (gradient,) = torch.autograd.grad(loss, own)
        return loss.detach(), gradient.to(student.dtype)


@dataclass(frozen=True)
class SoftTargets(DistillationLoss):
    """The softened classes of the teacher: weight · T² · KL(softmax(teacher / T) ‖ softmax(student / T)).

    Hinton et al. 2015, 'Distilling the knowledge in a neural network', section 2. Classes are dimension 1; the mean is
    taken over everything else. The task's own loss keeps 1 − weight of its gradient at these outputs.

    Args:
        temperature: T, above 0; 2 to 8 as a rule.
        weight: In [0, 1].
        module: Qualified name of the module that puts out the logits; by default the network's output.

    Raises:
        ValueError: If an argument is out of range.
    """

    temperature: float = 4.0
    weight: float = 0.9
    module: str = ""

    def __post_init__(self) -> None:
        check_number(self, "temperature", self.temperature, above=0)
        check_share(self, "weight", self.weight)

    @property
    def share(self) -> float:
        """1 − weight."""
        return 1 - self.weight

    def loss(self, student: Tensor, teacher: Tensor) -> Tensor:
        """T² · KL."""
        _check_same_shape(self, student, teacher)
        own, wanted = (F.log_softmax(logits / self.temperature, 1) for logits in (student, teacher))
        return self.temperature**2 * F.kl_div(own, wanted, reduction="none", log_target=True).sum(1).mean()


@dataclass(frozen=True)
class Features(DistillationLoss):
    """Where the teacher looks: weight · mean squared difference of normalised attention maps.

    Zagoruyko & Komodakis 2017, 'Paying more attention to attention', eq. 2 with p = 2: the mean of the squared features
    over channels, as one vector of length 1 for each example, so that a student may have fewer channels. Features are
    (N, C, positions...), or (N, positions, C) where there are three dimensions; those of two dimensions are compared as
    they are and need the same size.

    Args:
        module: Qualified name of the module whose output is compared.
        weight: 0 or more.

    Raises:
        ValueError: If an argument is out of range.
    """

    module: str
    weight: float = 1.0

    def __post_init__(self) -> None:
        check_number(self, "weight", self.weight, minimum=0)

    @property
    def share(self) -> float:
        """All: the task's loss stays as it is."""
        return 1.0

    def loss(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The mean squared difference."""
        if student.dim() > 2:
            student, teacher = attention_map(student), attention_map(teacher)
        _check_same_shape(self, student, teacher)
        return (student - teacher).square().sum(1).mean()


def attention_map(features: Tensor) -> Tensor:
    """(N, C, positions...) or (N, positions, C) -> (N, positions), each row of length 1.

    Example:
        >>> attention_map(torch.tensor([[[[3.0, 0.0], [0.0, 4.0]]]]))  # one channel, 2 x 2 positions
        tensor([[0.4903, 0.0000, 0.0000, 0.8716]])
    """
    channels = 2 if features.dim() == 3 else 1
    return F.normalize(features.square().mean(channels).flatten(1), dim=1)


def _check_same_shape(loss: DistillationLoss, student: Tensor, teacher: Tensor) -> None:
    if student.shape != teacher.shape:
        raise ValueError(
            f"{loss} compares outputs of shape {tuple(student.shape)} with {tuple(teacher.shape)} of the teacher; "
            "name another module"
        )
