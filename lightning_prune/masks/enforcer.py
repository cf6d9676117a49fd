"""Keeping masked weights at zero while optimizers step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lightning_prune.network.sharded import local_tensor, shard_like

_CHUNK = 2**18  # weights looked at together on a CPU: the factors made of their mask stay in its cache

# What these do to a weight follows from this weight alone, and is nothing where weight, gradient and state are zero.
_ELEMENTWISE = {
    optim.SGD, optim.Adam, optim.AdamW, optim.NAdam, optim.RAdam, optim.RMSprop, optim.Adagrad, optim.Adadelta,
    optim.ASGD, optim.Adafactor,
}  # fmt: skip


class MaskEnforcer:
    """Keeps masked weights, and what optimizers remember of them, at zero; all in place.

    Where an optimizer leaves a weight alone whose gradient is zero, the gradients are masked just before its step,
    which is less work than to mask weights, momentum and moments after it, and trains what is left as a network of its
    own would be (the reparametrisation w ⊙ m of ``torch.nn.utils.prune`` has these gradients; it is 0 times the
    gradient here as there, so a gradient that is infinite where a weight is zero, such as that of √|w|, is NaN). What
    any other optimizer has done is masked after its step.

    It needs no memory besides masks on the parameters' device, and shares those that are there.

    Args:
        parameters: Parameter name -> parameter.
        masks: Parameter name -> bool mask, True where the weight survives.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], masks: Mapping[str, Tensor]) -> None:
        self._names, self._parameters = list(masks), [parameters[name] for name in masks]
        self._masks = [shard_like(mask, p) for p, mask in zip(self._parameters, masks.values(), strict=True)]
        self._handles: list[RemovableHandle] = []

    def hold(self, optimizers: list[Optimizer]) -> None:
        """Apply the masks now, and at every step of one of ``optimizers``."""
        self.apply(optimizers)
        for optimizer in optimizers if self._parameters else ():
            self._handles.append(optimizer.register_step_pre_hook(self._before_step))
            self._handles.append(optimizer.register_step_post_hook(self._after_step))

    def replace(self, masks: Mapping[str, Tensor]) -> None:
        """Keep other masks from here on, also in a step that has begun."""
        for index, name in enumerate(self._names):
            if name in masks:
                self._masks[index] = shard_like(masks[name], self._parameters[index])

    def release(self) -> None:
        """Let go of network and optimizers; what is zero stays zero until the next step."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._names, self._parameters, self._masks = [], [], [], []

    @torch.no_grad()
    def apply(self, optimizers: Iterable[Optimizer] = ()) -> None:
        """Zero the masked weights, and the entries of optimizer state (momentum, moments) that belong to them.

        It goes by way of ``data``: a backward pass may be waiting for these weights, which are zero already.
        """
        for parameter, mask in zip(self._parameters, self._masks, strict=True):
            held = [local_tensor(parameter.data)]
            for optimizer in optimizers:
                state = optimizer.state.get(parameter, {})
                for key, value in state.items():
                    if isinstance(value, Tensor) and value.is_sparse:
                        state[key] = _masked_rows(value, mask)
                    elif isinstance(value, Tensor) and value.shape == parameter.shape and value.is_floating_point():
                        held.append(local_tensor(value))
            _multiply(held, mask)
            held[0].add_(0.0)  # no −0.0, whose bits a compressed file would have to keep

    @torch.no_grad()
    def mask_gradients(self, optimizer: Optimizer) -> None:
        """Zero the gradients of masked weights, where that keeps the weights at zero."""
        if not _leaves_zeros(optimizer):
            return
        own = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        for parameter, mask in zip(self._parameters, self._masks, strict=True):
            if parameter.grad is None or id(parameter) not in own:
                continue
            if parameter.grad.is_sparse:
                parameter.grad = _masked_rows(parameter.grad, mask)
            else:
                _multiply([local_tensor(parameter.grad)], mask)

    def _before_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Mask the gradients that are there, or those that the closure is going to make."""
        _, *given = args
        closure = given.pop(0) if given else kwargs.get("closure")
        if closure is None:
            self.mask_gradients(optimizer)
            return None

        def masking() -> Any:
            loss = closure()
            self.mask_gradients(optimizer)
            return loss

        return (optimizer, *given), {**kwargs, "closure": masking}

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if not _leaves_zeros(optimizer):
            self.apply([optimizer])


def _leaves_zeros(optimizer: Optimizer) -> bool:
    """Whether a weight stays zero if its gradient is; with an ``eps`` of 0, zero would be divided by zero."""
    return type(optimizer) in _ELEMENTWISE and all(group.get("eps", 1) != 0 for group in optimizer.param_groups)


def _masked_rows(gradient: Tensor, mask: Tensor) -> Tensor:
    """A sparse gradient or momentum, which holds the rows of an embedding that were looked up."""
    gradient = gradient.coalesce()
    gradient.values().mul_(mask[tuple(gradient.indices())])
    return gradient


def _multiply(tensors: list[Tensor], mask: Tensor) -> None:
    """Multiply tensors of one shape by their mask, in place.

    Bytes become factors several times faster than bools do. A CPU makes the factors of a chunk once, in its cache; a
    GPU needs none.
    """
    factors = torch.atleast_1d(mask.view(torch.uint8))
    if factors.device.type != "cpu":
        for tensor in tensors:
            tensor.mul_(factors.view_as(tensor))
        return
    rows = max(1, _CHUNK * len(factors) // max(1, factors.numel()))
    views = [torch.atleast_1d(tensor).split(rows) for tensor in tensors]
    for factor, *parts in zip(factors.split(rows), *views, strict=True):
        converted = factor.to(tensors[0].dtype)
        for part in parts:
            part.mul_(converted)
