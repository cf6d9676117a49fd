"""Example inputs, and copies of a network on which a forward pass costs nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map

from lightning_prune.coupling.trace import named_tensors, tensors_in


@dataclass(frozen=True)
class Example:
    """Arguments of one forward pass.

    Attributes:
        args: Positional arguments.
        kwargs: Keyword arguments.
        batch: Number of examples in them, 1 where the tensors share no leading dimension.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    batch: int

    @classmethod
    def of(cls, inputs: Any) -> Example:
        """A tuple is positional, a dict is keyword, anything else is the one argument.

        Batches are cut or repeated to two examples: the least that batch norm takes in train mode.
        """
        leaves = [leaf for leaf in tree_flatten(inputs)[0] if isinstance(leaf, Tensor)]
        sizes = {leaf.shape[0] for leaf in leaves if leaf.dim() > 0}
        batched = len(sizes) == 1 and any(leaf.dim() > 1 for leaf in leaves)
        if batched:
            inputs = tree_map(lambda leaf: _two(leaf) if isinstance(leaf, Tensor) and leaf.dim() > 0 else leaf, inputs)
        args = inputs if isinstance(inputs, tuple) else () if isinstance(inputs, dict) else (inputs,)
        return cls(args, inputs if isinstance(inputs, dict) else {}, 2 if batched else 1)

    def to(self, device: torch.device | str) -> Example:
        """The same arguments with every tensor on ``device``."""

        def move(leaf: Any) -> Any:
            return leaf.to(device) if isinstance(leaf, Tensor) else leaf

        return Example(tree_map(move, self.args), tree_map(move, dict(self.kwargs)), self.batch)

    def repeated(self, batch: int) -> Example:
        """The same arguments with ``batch`` examples, where they have a batch dimension."""
        times = -(-batch // self.batch)

        def repeat(leaf: Any) -> Any:
            return torch.cat([leaf] * times)[:batch] if isinstance(leaf, Tensor) and leaf.dim() > 0 else leaf

        if self.batch == 1:
            return self
        return Example(tree_map(repeat, self.args), tree_map(repeat, dict(self.kwargs)), batch)

    def run(self, model: nn.Module) -> Any:
        """The output of ``model`` on these arguments."""
        return model(*self.args, **self.kwargs)


def _two(leaf: Tensor) -> Tensor:
    return leaf[:2].detach() if len(leaf) > 1 else leaf.detach().expand(2, *leaf.shape[1:]).clone()


def copy_of(model: nn.Module, copied: dict[int, Any] | None = None) -> nn.Module:
    """A deep copy that shares the partial functions and detaches the activations which modules keep.

    A command line hands optimizers to a LightningModule as partials that lead back to the whole program: its Trainer,
    its data, its processes. Tensors of a running graph, such as outputs collected during an epoch, have no deep copy.

    Args:
        model: The network.
        copied: Copies that are already made, by the id of their original.
    """
    memo = dict(copied or {})
    for module in model.modules():
        kept = {name: value for name, value in vars(module).items() if name not in ("_parameters", "_modules")}
        memo.update({id(value): value for value in kept.values() if isinstance(value, partial)})
        memo.update({id(tensor): tensor.detach() for tensor in tensors_in(kept) if not tensor.is_leaf})
    return copy.deepcopy(model, memo)


def meta_copy(model: nn.Module) -> nn.Module:
    """A deep copy whose parameters and buffers are on the meta device; their data is never copied."""
    memo: dict[int, Any] = {}
    for _, tensor in named_tensors(model):
        empty = torch.empty_like(tensor, device="meta", requires_grad=False)
        memo[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
    return copy_of(model, memo)


def run_on_copy(
    model: nn.Module, example: Example, use: Callable[[nn.Module, Example], Any], on_meta: bool | None = None
) -> Any:
    """Call ``use(copy, example)`` on a meta copy; where that fails, on a real copy.

    Networks whose control flow reads values, or that keep tensors outside their parameters and buffers, cannot run on
    the meta device.

    Args:
        model: The network; it is not touched.
        example: What its forward receives.
        use: What to do with the copy.
        on_meta: Which copy to take; None tries both.

    Raises:
        Exception: What the real copy raised, if it fails as well.
    """
    with quiet_pass():
        if on_meta is not False:
            try:
                return use(meta_copy(model), example.to("meta"))
            except Exception:
                if on_meta:
                    raise
        device = next((tensor.device for _, tensor in named_tensors(model)), torch.device("cpu"))
        return use(copy_of(model), example.to(device))


@contextmanager
def quiet_pass() -> Iterator[None]:
    """No gradients, no fused attention kernel, no compiled code, and the random state as it was."""
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), torch.random.fork_rng(), torch.compiler.set_stance("force_eager"):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)
