"""Small networks written down in one expression, and what the tests of coupling ask of them."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from lightning_prune.coupling import Coupling, find_coupling
from lightning_prune.network.example_input import Example
from lightning_prune.network.tensors import tensors_in
from lightning_prune.surgery.apply import apply_plan, zero_removed
from lightning_prune.surgery.dry_run import try_widths
from lightning_prune.surgery.removal import compensate_scalars, plan_removal


class Net(nn.Module):
    """Layers, and a function of (network, inputs) for a forward pass."""

    def __init__(self, run: Callable[..., Any], **layers: nn.Module) -> None:
        super().__init__()
        self.run = run
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.run(self, *args, **kwargs)


def conv(read: int, made: int, kernel: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(read, made, kernel, padding=kernel // 2, **options)


def pooled(x: Tensor) -> Tensor:
    return x.mean((2, 3))


def image(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*(shape or (2, 3, 8, 8)), generator=torch.Generator().manual_seed(seed))


def groups_of(coupling: Coupling) -> dict[str, tuple[int, dict[tuple[str, int], int]]]:
    """Group name -> units, and for every (tensor, dimension) the indices that one unit owns there."""
    return {
        name: (group.size, {(m.tensor, m.dim): m.index.shape[1] for m in group.members})
        for name, group in coupling.groups.items()
    }


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Draw every parameter and batch-norm statistic: zero means and unit scales would hide errors."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, _NormBase):
                if module.running_mean is not None and module.running_var is not None:
                    module.running_mean.normal_(0, 0.5, generator=draw)
                    module.running_var.uniform_(0.5, 2, generator=draw)
                if module.weight is not None:
                    module.weight.uniform_(0.5, 1.5, generator=draw)
                    module.bias.normal_(0, 0.5, generator=draw)
    return model


def error_between(found: Any, expected: Any) -> float:
    """The largest relative error of any tensor in the outputs; they must not be empty or zero."""
    errors = []
    for a, b in zip(tensors_in(found), tensors_in(expected), strict=True):
        assert a.shape == b.shape
        assert b.std() > 1e-4
        errors.append(float((a - b).norm() / b.norm()))
    return max(errors)


def remove_some(coupling: Coupling, seed: int = 0, names: list[str] | None = None) -> dict[str, Tensor]:
    """About half of the units of every group (or of ``names``), at least one and never all; bundles by steps."""
    draw = torch.Generator().manual_seed(seed)
    alone = {name for name in coupling.groups} - {name for bundle in coupling.bundles for name in bundle.quantum}
    removed = {}
    for quantum in [*({name: 1} for name in coupling.groups if name in alone), *(b.quantum for b in coupling.bundles)]:
        steps = min(coupling.groups[name].size // units for name, units in quantum.items())
        gone = int(torch.randint(1, steps, (), generator=draw))
        for name, units in quantum.items():
            if names is None or name in names:
                size = coupling.groups[name].size
                order = torch.randperm(size, generator=draw)[: gone * units]
                removed[name] = torch.zeros(size, dtype=torch.bool).index_fill_(0, order, True)
    return removed


def removal_error(model: nn.Module, inputs: Any, seed: int = 0) -> float:
    """Remove random units of every group, in place; the relative error against zeroing them on a copy."""
    example = Example.of(inputs)
    model.eval()
    coupling = find_coupling(model, example)
    removed: Mapping[str, Tensor] = remove_some(coupling, seed)
    assert removed, coupling.frozen
    result = try_widths(model, example, coupling, removed)
    assert result.failing == {}
    plan, inexact = compensate_scalars(
        plan_removal(removed, coupling), removed, coupling, result.scalars, result.constants
    )
    assert inexact == {}
    masked = copy.deepcopy(model)
    zero_removed(masked, plan)
    apply_plan(model, plan)
    with torch.no_grad():
        return error_between(example.run(model), example.run(masked))
