"""Unstructured masks: which weights go, and how to keep them gone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle


def lowest_masks(
    scores: Mapping[str, Tensor], masks: Mapping[str, Tensor], counts: Mapping[str, int] | int
) -> dict[str, Tensor]:
    """Masks that hide the lowest-scored weights; what is masked already stays masked.

    Ties go to the first parameter, then to the first weight. One weight always survives in every parameter.

    Args:
        scores: Parameter name -> scores of its shape.
        masks: Parameter name -> bool mask so far, True where the weight survives; may lack parameters.
        counts: How many weights are masked in all, or by parameter.
    """
    ranked = {name: _rankable(values, masks.get(name)) for name, values in scores.items()}
    if isinstance(counts, int):
        hidden = dict(zip(ranked, _lowest(list(ranked.values()), counts), strict=True))
    else:
        hidden = {name: _lowest([values], counts[name])[0] for name, values in ranked.items()}
    fresh = {name: ~hidden[name].reshape(scores[name].shape) for name in scores}
    return {name: mask & masks[name].to(mask.device) if name in masks else mask for name, mask in fresh.items()}


def _rankable(scores: Tensor, mask: Tensor | None) -> Tensor:
    flat = scores.detach().flatten().float().clone()
    if mask is not None:
        flat[~mask.flatten().to(flat.device)] = -torch.inf
    flat[flat.argmax()] = torch.inf  # the survivor
    return flat


def _lowest(parts: list[Tensor], count: int) -> list[Tensor]:
    """For each part, True at its share of the ``count`` lowest values of all parts."""
    values = torch.cat([part.cpu() for part in parts])
    hidden = torch.zeros(len(values), dtype=torch.bool)
    if count > 0:
        threshold = float(np.partition(values.numpy(), count - 1)[count - 1])
        hidden = values < threshold
        ties = torch.nonzero(values == threshold).flatten()
        hidden[ties[: count - int(hidden.sum())]] = True
    return [h.to(p.device) for h, p in zip(hidden.split([len(p) for p in parts]), parts, strict=True)]


class MaskKeeper:
    """Applies masks in place, after every optimizer step, to weights and to what optimizers remember of them.

    Args:
        parameters: Parameter name -> parameter.
        masks: Parameter name -> bool mask, True where the weight survives.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], masks: Mapping[str, Tensor]) -> None:
        self._parameters: list[Tensor] = [parameters[name] for name in masks]
        self._factors = [mask.to(p.device, p.dtype) for p, mask in zip(self._parameters, masks.values(), strict=True)]
        self._handles: list[RemovableHandle] = []

    def hold(self, optimizers: list[Optimizer]) -> None:
        """Apply the masks now, and after every step of one of ``optimizers``."""
        self.apply(optimizers)
        for optimizer in optimizers:
            self._handles.append(optimizer.register_step_post_hook(self._after_step))

    def release(self) -> None:
        """Let go of the optimizers; what is zero stays zero until the next step."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self.apply([optimizer])

    @torch.no_grad()
    def apply(self, optimizers: list[Optimizer]) -> None:
        """Zero the masked weights, and the entries of optimizer state (momentum, moments) that belong to them."""
        if not self._parameters:
            return
        torch._foreach_mul_(self._parameters, self._factors)  # type: ignore[arg-type]  # stubs know scalars only
        for optimizer in optimizers:
            for parameter, factor in zip(self._parameters, self._factors, strict=True):
                for value in optimizer.state.get(parameter, {}).values():
                    if isinstance(value, Tensor) and value.shape == parameter.shape and value.is_floating_point():
                        value.mul_(factor)


def pack(masks: Mapping[str, Tensor]) -> dict[str, dict[str, object]]:
    """Masks as bits, eight a byte, for a checkpoint."""
    return {
        name: {"bits": torch.from_numpy(np.packbits(mask.cpu().numpy().ravel())), "shape": list(mask.shape)}
        for name, mask in masks.items()
    }


def unpack(state: Mapping[str, Mapping[str, object]]) -> dict[str, Tensor]:
    """The masks that ``pack`` wrote.

    Example:
        >>> mask = {"w": torch.tensor([[True, False, True]])}
        >>> unpack(pack(mask))["w"].equal(mask["w"])
        True
    """
    masks = {}
    for name, entry in state.items():
        shape, bits = entry["shape"], entry["bits"]
        assert isinstance(shape, list)
        assert isinstance(bits, Tensor)
        flat = np.unpackbits(bits.numpy(), count=int(np.prod(shape)))
        masks[name] = torch.from_numpy(flat.astype(bool)).reshape(shape)
    return masks
