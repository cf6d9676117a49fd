"""Knowledge distillation losses between the outputs of a student and its teacher, and their gradients."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_prune.network.argument_checks import check_number, check_share


class DistillationLoss(ABC):
    """Loss between an output of the student and the same output of the teacher; base of all distillation losses.

    Attributes:
        module: Qualified name of the module whose output is compared; empty for the output of the whole network.
        weight: Weight of the loss.
    """

    module: str
    weight: float

    @property
    @abstractmethod
    def share(self) -> float:
        """Factor of the gradient of the task's own loss at this output, in [0, 1]."""

    @abstractmethod
    def loss(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The unweighted loss, a scalar.

        Args:
            student: Output of the student, float32.
            teacher: Output of the teacher, float32.

        Raises:
            ValueError: If the shapes of the outputs do not match.
        """

    def gradient(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """The weighted loss, and its gradient with respect to the output of the student."""
        with torch.enable_grad():
            leaf = student.detach().float().requires_grad_()
            loss = self.weight * self.loss(leaf, teacher.detach().float())
            (gradient,) = torch.autograd.grad(loss, leaf)
        return loss.detach(), gradient.to(student.dtype)


@dataclass(frozen=True)
class SoftTargets(DistillationLoss):
    """Loss on the softened class probabilities: weight · T² · KL(softmax(teacher / T) ‖ softmax(student / T)).

    Hinton et al. 2015, 'Distilling the knowledge in a neural network', section 2. Classes are dimension 1; the mean is
    taken over all other dimensions. The gradient of the task's own loss at these outputs is multiplied by 1 − weight.

    Args:
        temperature: T, above 0; usually 2 to 8.
        weight: Weight of the loss, in [0, 1].
        module: Qualified name of the module whose output are the logits; empty for the output of the network.

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
        """Factor of the gradient of the task's own loss: 1 − weight."""
        return 1 - self.weight

    def loss(self, student: Tensor, teacher: Tensor) -> Tensor:
        """T² · KL of the softened probabilities, from logits of shape (N, classes, ...)."""
        _check_same_shape(self, student, teacher)
        student_log, teacher_log = (F.log_softmax(logits / self.temperature, 1) for logits in (student, teacher))
        return self.temperature**2 * F.kl_div(student_log, teacher_log, reduction="none", log_target=True).sum(1).mean()


@dataclass(frozen=True)
class Features(DistillationLoss):
    """Attention transfer loss: weight · mean squared difference of normalized attention maps.

    Zagoruyko & Komodakis 2017, 'Paying more attention to attention: improving the performance of convolutional neural
    networks via attention transfer', eq. 2 with p = 2. The attention map of an example is the mean of its squared
    features over channels, divided by its L2 norm, so that a student may have fewer channels. Features have the shape
    (N, C, positions...), or (N, positions, C) for three dimensions. Features of two dimensions are compared directly
    and need the same size.

    Args:
        module: Qualified name of the module whose output is compared.
        weight: Weight of the loss, at least 0.

    Raises:
        ValueError: If an argument is out of range.
    """

    module: str
    weight: float = 1.0

    def __post_init__(self) -> None:
        check_number(self, "weight", self.weight, minimum=0)

    @property
    def share(self) -> float:
        """Factor of the gradient of the task's own loss: 1."""
        return 1.0

    def loss(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The mean squared difference of the attention maps."""
        if student.dim() > 2:
            student, teacher = attention_map(student), attention_map(teacher)
        _check_same_shape(self, student, teacher)
        return (student - teacher).square().sum(1).mean()


def attention_map(features: Tensor) -> Tensor:
    """Attention maps: (N, C, positions...) or (N, positions, C) -> (N, positions), each row with an L2 norm of 1.

    Example:
        >>> attention_map(torch.tensor([[[[3.0, 0.0], [0.0, 4.0]]]]))  # one channel, 2 x 2 positions
        tensor([[0.4903, 0.0000, 0.0000, 0.8716]])
    """
    channels = 2 if features.dim() == 3 else 1
    return F.normalize(features.square().mean(channels).flatten(1), dim=1)


def _check_same_shape(loss: DistillationLoss, student: Tensor, teacher: Tensor) -> None:
    if student.shape != teacher.shape:
        raise ValueError(
            f"{loss} cannot compare outputs of shape {tuple(student.shape)} with {tuple(teacher.shape)} of the "
            "teacher; name another module"
        )
