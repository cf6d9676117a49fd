"""Enforcement of masks: masked weights stay at zero while optimizers step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lightning_prune.network.sharded import local_tensor, shard_like

_CHUNK = 2**18  # weights per chunk on a CPU: the factors made of their mask fit into its cache

# Element-wise optimizers: they leave a weight unchanged where weight, gradient and state are zero.
_ELEMENTWISE = {
    optim.SGD, optim.Adam, optim.AdamW, optim.NAdam, optim.RAdam, optim.RMSprop, optim.Adagrad, optim.Adadelta,
    optim.ASGD, optim.Adafactor,
}  # fmt: skip


class MaskEnforcer:
    """Keeps masked weights and their optimizer state at zero during training, in place.

    For optimizers that do not change a weight with zero gradient, gradients are masked before each step. This costs
    less than masking weights, momentum and moments after it, and trains the remaining weights as those of a smaller
    network. (The reparametrization w ⊙ m of ``torch.nn.utils.prune`` has the same gradients. In both, the gradient is
    multiplied by 0, so that a gradient that is infinite at a zero weight, such as that of √|w|, becomes NaN.) For all
    other optimizers, weights and state are masked after each step.

    It needs no memory except for the masks on the device of the parameters, and shares masks that are already there.

    Args:
        parameters: Parameter name -> parameter.
        masks: Parameter name -> bool mask of its shape, True where the weight survives.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], masks: Mapping[str, Tensor]) -> None:
        self._names, self._parameters = list(masks), [parameters[name] for name in masks]
        self._masks = [shard_like(mask, p) for p, mask in zip(self._parameters, masks.values(), strict=True)]
        self._handles: list[RemovableHandle] = []

    def hold(self, optimizers: list[Optimizer]) -> None:
        """Apply the masks now, and at every step of ``optimizers``."""
        self.apply(optimizers)
        for optimizer in optimizers if self._parameters else ():
            self._handles.append(optimizer.register_step_pre_hook(self._before_step))
            self._handles.append(optimizer.register_step_post_hook(self._after_step))

    def replace(self, masks: Mapping[str, Tensor]) -> None:
        """Use new masks for some of the parameters from now on, also in a step that has already begun."""
        for index, name in enumerate(self._names):
            if name in masks:
                self._masks[index] = shard_like(masks[name], self._parameters[index])

    def release(self) -> None:
        """Stop enforcing: remove the hooks, and drop references to parameters and masks."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._names, self._parameters, self._masks = [], [], [], []

    @torch.no_grad()
    def apply(self, optimizers: Iterable[Optimizer] = ()) -> None:
        """Zero the masked weights, and the entries of optimizer state (momentum, moments) that belong to them.

        Weights are changed through ``data``, without a new version: a pending backward pass may still need them, and
        the masked ones are zero already.
        """
        for parameter, mask in zip(self._parameters, self._masks, strict=True):
            masked = [local_tensor(parameter.data)]
            for optimizer in optimizers:
                state = optimizer.state.get(parameter, {})
                for key, value in state.items():
                    if isinstance(value, Tensor) and value.is_sparse:
                        state[key] = _masked_rows(value, mask)
                    elif isinstance(value, Tensor) and value.shape == parameter.shape and value.is_floating_point():
                        masked.append(local_tensor(value))
            _multiply(masked, mask)
            masked[0].add_(0.0)  # turns −0.0 into 0.0, which compresses better

    @torch.no_grad()
    def mask_gradients(self, optimizer: Optimizer) -> None:
        """Zero the gradients of masked weights, if this keeps the weights at zero with this optimizer."""
        if not _keeps_zeros(optimizer):
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
        """Mask the present gradients, or those that the closure computes."""
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
        if not _keeps_zeros(optimizer):
            self.apply([optimizer])


def _keeps_zeros(optimizer: Optimizer) -> bool:
    """Whether a zero weight with a zero gradient stays zero; with ``eps=0``, an update would be 0 / 0."""
    return type(optimizer) in _ELEMENTWISE and all(group.get("eps", 1) != 0 for group in optimizer.param_groups)


def _masked_rows(gradient: Tensor, mask: Tensor) -> Tensor:
    """Mask a sparse gradient or momentum, which contains the rows of an embedding that were looked up."""
    gradient = gradient.coalesce()
    gradient.values().mul_(mask[tuple(gradient.indices())])
    return gradient


def _multiply(tensors: list[Tensor], mask: Tensor) -> None:
    """Multiply tensors of one shape by their mask, in place.

    Bytes are converted to factors several times faster than bools. On a CPU the factors of a chunk are converted once
    and stay in its cache; on a GPU tensors are multiplied by bytes directly.
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
