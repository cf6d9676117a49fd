"""Apply a plan: to a module, and to the optimizers that train it."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.optim import Optimizer

from lightning_prune.network.layer_attributes import sync_changed_layers
from lightning_prune.network.tensors import named_tensors, tensors_in
from lightning_prune.surgery.passthrough import identity_for, is_identity
from lightning_prune.surgery.plan import Plan, select
from lightning_prune.surgery.weight_norms import update_magnitude, weight_norm_magnitudes


def apply_plan(module: nn.Module, plan: Plan, optimizers: Iterable[Optimizer] = ()) -> None:
    """Remove what ``plan`` does not keep from ``module``, from pending gradients and from optimizer state.

    Every parameter that is left stays the same object, so optimizers, tied weights and parameter order are as before.

    Args:
        module: The network that the plan was made for.
        plan: What to keep; its masks are not applied here.
        optimizers: State tensors are sliced along the dimensions they share with their parameter (factored moments
            share some of them, step counts none). State that cannot be sliced begins anew, with a warning. Parameters
            of modules that are removed leave their group, which stays even if it is empty.

    Raises:
        ValueError: If the plan does not fit the module.
    """
    tensors, optimizers = dict(named_tensors(module)), list(optimizers)
    _check(plan, tensors)
    _check_modules(plan, module)
    for optimizer in optimizers:
        _slice_state(optimizer, {tensors[name]: dims for name, dims in plan.keep.items()})
    for name, dims in plan.keep.items():
        _slice_tensor(tensors[name], dims)
    for name, dims in plan.scales.items():
        for dim, factors in dims.items():
            shape = [-1 if d == dim else 1 for d in range(tensors[name].dim())]
            tensors[name].data.mul_(factors.to(tensors[name]).view(shape))
    set_attributes(module, plan.attributes)
    changed = {id(tensors[name]) for name in plan.keep}
    sync_changed_layers(module, changed)
    if plan.removed_modules:
        before = list(module.parameters())
        remove_modules(module, plan.removed_modules)
        left = set(module.parameters())
        gone = {parameter for parameter in before if parameter not in left}
        for optimizer in optimizers:
            _forget(optimizer, gone)


def remove_modules(module: nn.Module, names: Iterable[str]) -> None:
    """Put an identity in the place of every module in ``names``; all others keep their names."""
    for name in names:
        path, _, key = name.rpartition(".")
        children = module.get_submodule(path)._modules
        removed = children[key]
        identity = nn.Identity() if removed is None else identity_for(removed)
        children[key] = identity.train(removed is None or removed.training)


def set_attributes(module: nn.Module, attributes: Mapping[str, Mapping[str, Any]]) -> None:
    """Set integers that the modules inside ``module`` keep: name -> value, or {position: value} for a tuple or list."""
    for path, values in attributes.items():
        owner = module.get_submodule(path)
        for name, value in values.items():
            if isinstance(value, Mapping):
                old = getattr(owner, name)
                value = type(old)(value.get(position, item) for position, item in enumerate(old))
            setattr(owner, name, value)


def _check(plan: Plan, tensors: Mapping[str, Tensor]) -> None:
    last: dict[int, int] = {}  # of an index, which many dimensions share
    for name, dims in plan.keep.items():
        if name not in tensors:
            raise ValueError(
                f"the plan keeps parts of {name!r}, which the module does not have; was it made for another?"
            )
        for dim, index in dims.items():
            size = tensors[name].shape[dim] if dim < tensors[name].dim() else 0
            if id(index) not in last:
                last[id(index)] = int(index.max()) if len(index) else -1
            if not 0 <= last[id(index)] < size:
                raise ValueError(
                    f"the plan keeps {len(index)} indices up to {max(last[id(index)], 0)} of dimension "
                    f"{dim} of {name!r}, which has {size}; was it already applied?"
                )


def _check_modules(plan: Plan, module: nn.Module) -> None:
    modules = dict(module.named_modules()) if plan.removed_modules else {}
    for name in plan.removed_modules:
        if not name or name not in modules:
            raise ValueError(f"the plan removes {name!r}, which the module does not have; was it made for another?")
        if is_identity(modules[name]):
            raise ValueError(f"the plan removes {name!r}, which is an identity already; was it already applied?")


def _forget(optimizer: Optimizer, gone: Collection[Tensor]) -> None:
    """Let ``optimizer`` train and remember the parameters in ``gone`` no more."""
    for group in optimizer.param_groups:
        left = [index for index, parameter in enumerate(group["params"]) if parameter not in gone]
        for key in ("params", "param_names"):
            if key in group:
                group[key] = [group[key][index] for index in left]
    for parameter in gone:
        optimizer.state.pop(parameter, None)


def _slice_tensor(tensor: Tensor, dims: Mapping[int, Tensor]) -> None:
    grad = tensor.grad if tensor.is_leaf else None
    if grad is not None:
        tensor.grad = None
    replace_data(tensor, select(tensor.data, dims))
    if grad is not None:
        tensor.grad = select(grad, dims)


def _slice_state(optimizer: Optimizer, cut: Mapping[Tensor, Mapping[int, Tensor]]) -> None:
    """Slice the state of the parameters in ``cut``, which still have their old shapes."""
    lost, anew = _lost_keys(optimizer), 0
    for parameter, dims in cut.items():
        state = optimizer.state.get(parameter, {})
        if lost & state.keys():
            del optimizer.state[parameter]
            anew += 1
            continue
        for key, value in state.items():
            if isinstance(value, Tensor) and value.dim() == parameter.dim():
                shared = {dim: index for dim, index in dims.items() if value.shape[dim] == parameter.shape[dim]}
                state[key] = select(value, shared)
    if anew and not (distributed.is_available() and distributed.is_initialized() and distributed.get_rank() > 0):
        warnings.warn(
            f"{type(optimizer).__name__} keeps {', '.join(map(repr, sorted(lost)))} in other shapes than its "
            f"parameters: channels cannot be cut from them, so its state of {anew} pruned parameters begins anew",
            stacklevel=3,
        )


def _lost_keys(optimizer: Optimizer) -> set[str]:
    """What ``optimizer`` remembers in tensors that do not lie along their parameter.

    One parameter tells for all: a square matrix has the shape of the statistics of its rows.
    """
    return {
        key
        for parameter, state in optimizer.state.items()
        if isinstance(parameter, Tensor)
        for key, value in state.items()
        if not _along(value, parameter) and any(tensor.numel() > 1 for tensor in tensors_in(value))
    }


def _along(value: Any, parameter: Tensor) -> bool:
    """Whether ``value`` is a tensor of which every dimension is that of ``parameter``, or reduced to 1."""
    if type(value) not in (Tensor, nn.Parameter):  # subclasses keep their values in blocks, whatever their shape says
        return False
    return value.dim() == parameter.dim() and all(
        own in (1, size) for own, size in zip(value.shape, parameter.shape, strict=True)
    )


def replace_data(tensor: Tensor, data: Tensor) -> None:
    """Give ``tensor`` other data, of another shape; it stays the same object.

    A graph of the old shape may be alive, in an output that somebody kept: with it lives the node that accumulates the
    gradient of ``tensor``, and that node expects the old shape. A change of dtype makes PyTorch drop it.
    """
    other = torch.float32 if tensor.dtype == torch.float64 else torch.float64
    if tensor.requires_grad and not tensor.is_meta:
        tensor.data = torch.empty(0, dtype=other, device=tensor.device)
    tensor.data = data


def zero_removed(module: nn.Module, plan: Plan) -> None:
    """Mask instead of removing: write 0 where ``plan`` keeps nothing (1 into running variances).

    What removal has to be equal to, for networks without statistics across channels. Rows of a weight under
    ``weight_norm`` are divided by the norms that they had.
    """
    with torch.no_grad():
        tensors, directions = dict(named_tensors(module)), weight_norm_magnitudes(module)
        before = {name: tensors[name].clone() for name in directions if name in plan.keep}
        for name, tensor in tensors.items():
            for dim, index in plan.keep.get(name, {}).items():
                gone = torch.ones(tensor.shape[dim], dtype=torch.bool, device=tensor.device)
                gone[index] = False
                tensor.index_fill_(dim, gone.nonzero().flatten(), 1.0 if name.endswith("running_var") else 0.0)
        for name, direction in before.items():
            update_magnitude(tensors[name], tensors[directions[name]], direction)
