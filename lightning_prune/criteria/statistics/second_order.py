"""Sums of products with the Hessian of the loss."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from lightning_prune.criteria.statistics.statistics import all_finite
from lightning_prune.criteria.statistics.weight_gradients import ParameterStatistics


class Curvature(ParameterStatistics):
    """Sums over backward passes of products with the Hessian of the loss, computed by double differentiation.

    Pearlmutter 1994, 'Fast exact multiplication by the Hessian'.
    """

    def before_backward(self, loss: Tensor, loss_scale: float = 1.0) -> None:
        """Differentiate ``loss`` twice; the graph is retained for the backward pass of the training.

        The loss scale prevents underflow in half precision; results are divided by it at the end.
        """
        own = {name: p for name, p in self._parameters.items() if p.requires_grad}
        if not self.active or not own or not loss.requires_grad:
            return
        first = torch.autograd.grad(loss, list(own.values()), create_graph=True, allow_unused=True)
        found = {name: gradient for name, gradient in zip(own, first, strict=True) if gradient is not None}
        vectors = {name: self._vector(name, gradient.detach() / loss_scale) for name, gradient in found.items()}
        product = torch.stack([(found[name] * vectors[name]).sum().float() for name in found]).sum()
        if not product.requires_grad:
            second: tuple[Tensor | None, ...] = (None,) * len(found)  # the loss is linear in all parameters
        else:
            second = torch.autograd.grad(product, [own[n] for n in found], retain_graph=True, allow_unused=True)
        values = {n: torch.zeros_like(own[n]) if h is None else h for n, h in zip(found, second, strict=True)}
        values = {n: h.detach().float() / loss_scale for n, h in values.items()}
        if all_finite(values.values()):
            for name, value in values.items():
                self.add(name, self._term(own[name].detach().float(), vectors[name].float(), value))
            self.steps += 1

    @abstractmethod
    def _vector(self, name: str, gradient: Tensor) -> Tensor:
        """The vector that the Hessian is multiplied by, of the shape of the parameter."""

    @abstractmethod
    def _term(self, weight: Tensor, vector: Tensor, product: Tensor) -> Tensor:
        """The summand for one parameter; a new tensor of its shape."""
