"""Application of a plan to a module and to the optimizers that train it."""

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
    """Remove everything that ``plan`` does not keep from ``module``, from its gradients and from optimizer state.

    Remaining parameters stay the same objects, so that optimizers, tied weights and the order of parameters are
    unchanged.

    Args:
        module: The network that the plan was made for.
        plan: What is kept; its masks are not applied here.
        optimizers: Optimizers of the network. State tensors are sliced along the dimensions that they share with their
            parameter (factored moments share some of them, step counts none). State that cannot be sliced is reset,
            with a warning. Parameters of removed modules are removed from their group, which may become empty.

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
        remaining = set(module.parameters())
        removed = {parameter for parameter in before if parameter not in remaining}
        for optimizer in optimizers:
            _remove_parameters(optimizer, removed)


def remove_modules(module: nn.Module, names: Iterable[str]) -> None:
    """Replace every module in ``names`` by an identity; all other modules keep their names."""
    for name in names:
        path, _, key = name.rpartition(".")
        children = module.get_submodule(path)._modules
        removed = children[key]
        identity = nn.Identity() if removed is None else identity_for(removed)
        children[key] = identity.train(removed is None or removed.training)


def set_attributes(module: nn.Module, attributes: Mapping[str, Mapping[str, Any]]) -> None:
    """Set integer attributes of submodules: module name -> attribute -> value; {position: value} for tuples."""
    for path, values in attributes.items():
        owner = module.get_submodule(path)
        for name, value in values.items():
            if isinstance(value, Mapping):
                old = getattr(owner, name)
                value = type(old)(value.get(position, item) for position, item in enumerate(old))
            setattr(owner, name, value)


def _check(plan: Plan, tensors: Mapping[str, Tensor]) -> None:
    last: dict[int, int] = {}  # id of an index tensor, which many dimensions share -> its last entry
    for name, dims in plan.keep.items():
        if name not in tensors:
            raise ValueError(
                f"the plan keeps parts of {name!r}, which the module does not have; was it made for another module?"
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
            raise ValueError(
                f"the plan removes {name!r}, which the module does not have; was it made for another module?"
            )
        if is_identity(modules[name]):
            raise ValueError(f"the plan removes {name!r}, which is already an identity; was it already applied?")


def _remove_parameters(optimizer: Optimizer, removed: Collection[Tensor]) -> None:
    """Remove parameters and their state from ``optimizer``."""
    for group in optimizer.param_groups:
        kept = [index for index, parameter in enumerate(group["params"]) if parameter not in removed]
        for key in ("params", "param_names"):
            if key in group:
                group[key] = [group[key][index] for index in kept]
    for parameter in removed:
        optimizer.state.pop(parameter, None)


def _slice_tensor(tensor: Tensor, dims: Mapping[int, Tensor]) -> None:
    grad = tensor.grad if tensor.is_leaf else None
    if grad is not None:
        tensor.grad = None
    replace_data(tensor, select(tensor.data, dims))
    if grad is not None:
        tensor.grad = select(grad, dims)


def _slice_state(optimizer: Optimizer, sliced: Mapping[Tensor, Mapping[int, Tensor]]) -> None:
    """Slice the state of the parameters in ``sliced``, which still have their old shapes."""
    unaligned, reset = _unaligned_keys(optimizer), 0
    for parameter, dims in sliced.items():
        state = optimizer.state.get(parameter, {})
        if unaligned & state.keys():
            del optimizer.state[parameter]
            reset += 1
            continue
        for key, value in state.items():
            if isinstance(value, Tensor) and value.dim() == parameter.dim():
                shared = {dim: index for dim, index in dims.items() if value.shape[dim] == parameter.shape[dim]}
                state[key] = select(value, shared)
    if reset and not (distributed.is_available() and distributed.is_initialized() and distributed.get_rank() > 0):
        warnings.warn(
            f"{type(optimizer).__name__} keeps {', '.join(map(repr, sorted(unaligned)))} in other shapes than its "
            f"parameters: channels cannot be removed from them, so its state of {reset} pruned parameters is reset",
            stacklevel=3,
        )


def _unaligned_keys(optimizer: Optimizer) -> set[str]:
    """Keys of the optimizer state whose tensors do not have the dimensions of their parameter.

    A key counts if it is unaligned for any parameter: for a square matrix, statistics of its rows have its shape.
    """
    return {
        key
        for parameter, state in optimizer.state.items()
        if isinstance(parameter, Tensor)
        for key, value in state.items()
        if not _is_aligned(value, parameter) and any(tensor.numel() > 1 for tensor in tensors_in(value))
    }


def _is_aligned(value: Any, parameter: Tensor) -> bool:
    """Whether ``value`` is a tensor with the dimensions of ``parameter``, each of the same size or of size 1."""
    if type(value) not in (Tensor, nn.Parameter):  # subclasses may store their values in another layout
        return False
    return value.dim() == parameter.dim() and all(
        own in (1, size) for own, size in zip(value.shape, parameter.shape, strict=True)
    )


def replace_data(tensor: Tensor, data: Tensor) -> None:
    """Replace the data of ``tensor`` by data of another shape; the tensor stays the same object.

    An autograd graph of the old shape may still be referenced, for example by an output. Its node that accumulates the
    gradient of ``tensor`` expects the old shape; a temporary change of dtype makes PyTorch drop this node.
    """
    other = torch.float32 if tensor.dtype == torch.float64 else torch.float64
    if tensor.requires_grad and not tensor.is_meta:
        tensor.data = torch.empty(0, dtype=other, device=tensor.device)
    tensor.data = data


def zero_removed(module: nn.Module, plan: Plan) -> None:
    """Mask instead of removing: set to 0 everything that ``plan`` does not keep (running variances to 1).

    For networks without statistics across channels, removal has to give the same outputs as this masking. Rows of a
    weight under ``weight_norm`` are divided by the norms that they had before.
    """
    with torch.no_grad():
        tensors, directions = dict(named_tensors(module)), weight_norm_magnitudes(module)
        before = {name: tensors[name].clone() for name in directions if name in plan.keep}
        for name, tensor in tensors.items():
            for dim, index in plan.keep.get(name, {}).items():
                removed = torch.ones(tensor.shape[dim], dtype=torch.bool, device=tensor.device)
                removed[index] = False
                tensor.index_fill_(dim, removed.nonzero().flatten(), 1.0 if name.endswith("running_var") else 0.0)
        for name, direction in before.items():
            update_magnitude(tensors[name], tensors[directions[name]], direction)
