"""Preview of the state dict of a network after a plan."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from lightning_prune.masks.enforcer import MaskEnforcer
from lightning_prune.network.sharded import full_tensor
from lightning_prune.surgery.averaged_copies import with_averages
from lightning_prune.surgery.plan import Plan, select


def state_after(module: nn.Module, plan: Plan) -> dict[str, Any]:
    """The state dict that ``module`` will have once ``plan`` is applied; the module is not changed."""
    plan = with_averages(plan, module)
    previewed: dict[tuple[Any, ...], Tensor] = {}
    state: dict[str, Any] = {}
    for name, value in module.state_dict().items():
        if not isinstance(value, Tensor):
            state[name] = value
            continue
        storage = (value.data_ptr(), value.shape, value.stride()) if value.numel() else (name,)
        if storage not in previewed:  # shared tensors are saved once, and plans contain their first names
            after = select(full_tensor(value), plan.keep.get(name, {}))
            previewed[storage] = masked_copy(after, plan.masks[name]) if name in plan.masks else after
        state[name] = previewed[storage]
    return state


def masked_copy(values: Tensor, mask: Tensor) -> Tensor:
    """A copy of ``values`` with the zeros that ``mask`` gives in training, without −0.0."""
    copy = nn.Parameter(values.detach().clone(), requires_grad=False)
    MaskEnforcer({"": copy}, {"": mask}).apply()
    return copy.detach()
