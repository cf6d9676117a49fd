"""Example inputs of a network, and forward passes on copies of it."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_flatten, tree_map

from lightning_prune.network.copies import copy_of, meta_copy
from lightning_prune.network.eager import running_eagerly
from lightning_prune.network.meta_recurrence import fused_recurrence
from lightning_prune.network.tensors import named_tensors

MAX_IMAGE_CHANNELS = 4
MAX_EXAMPLES = 64  # for passes that compute values


@dataclass(frozen=True)
class Example:
    """The arguments of one forward pass.

    Attributes:
        args: Positional arguments.
        kwargs: Keyword arguments.
        batch: Number of examples in the arguments, 1 where they contain no batch.
        listed: Whether the batch is a list with one entry for each example, as in detection networks.
        whole: All given examples (at most 64), where the arguments hold only the first two. Passes that compute values
            use them, because values may determine which layers run.
        module: Qualified name of the module that receives the arguments, empty for the whole network.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    batch: int
    listed: bool = False
    whole: Example | None = None
    module: str = ""

    @classmethod
    def of(cls, inputs: Any, model: nn.Module | None = None) -> Example:
        """Make an example of the inputs that a user gives.

        Batches are reduced or repeated to two examples, the fewest that batch norm accepts in train mode. A batch is a
        list of images (of any sizes) or of dicts, which is only shortened, or the leading dimension of all tensors.

        Args:
            inputs: A tuple holds positional arguments, a dict keyword arguments, anything else is the one argument.
            model: If given, inputs with which it fails once they are reduced are kept: one example without a batch.

        Example:
            >>> Example.of(torch.zeros(32, 3, 8, 8)).args[0].shape
            torch.Size([2, 3, 8, 8])
            >>> len(Example.of([torch.zeros(3, 8, 8)] * 3).args[0])
            2
            >>> Example.of(torch.zeros(3, 8, 8), nn.Conv2d(3, 1, 1)).args[0].shape
            torch.Size([3, 8, 8])
        """
        args = inputs if isinstance(inputs, tuple) else () if isinstance(inputs, dict) else (inputs,)
        return cls(args, inputs if isinstance(inputs, dict) else {}, 1).cut(model)

    def cut(self, model: nn.Module | None = None) -> Example:
        """The example with two of the examples in the arguments, see ``of``."""
        candidates = [*self._batched(listed=True), *self._batched(listed=False)]
        if not self._lists_images():
            candidates.reverse()
        candidates.append(self)
        tensors = [leaf for leaf in tree_flatten((self.args, self.kwargs))[0] if isinstance(leaf, Tensor)]
        if model is None or len(candidates) == 1 or all(tensor.dim() > 3 for tensor in tensors):
            return candidates[0]  # four dimensions are a batch of images; with fewer dimensions a trial pass decides
        return next((candidate for candidate in candidates if candidate._runs(model)), candidates[0])

    def _batched(self, listed: bool) -> Iterator[Example]:
        """The example with two of the examples in the arguments, if these are a batch."""
        arguments = (*self.args, *self.kwargs.values())
        lists = [argument for argument in arguments if listed and _is_batch(argument)]
        others = tree_flatten([argument for argument in arguments if not (listed and _is_batch(argument))])[0]
        tensors = [leaf for leaf in others if isinstance(leaf, Tensor) and leaf.dim() > 0]
        sizes = {len(tensor) for tensor in tensors} | {len(items) for items in lists}
        shared = len(sizes) == 1 and 0 not in sizes
        if shared and (lists or (not listed and any(tensor.dim() > 1 for tensor in tensors))):
            given = replace(self, batch=sizes.pop(), listed=listed)
            whole = given._with(min(given.batch, MAX_EXAMPLES)) if given.batch > 2 else None
            yield given if listed and given.batch == 1 else replace(given._with(2), whole=whole)

    def _lists_images(self) -> bool:
        """Whether lists seem to contain images, and not feature levels or sequences that are batches themselves."""
        tensors = [x for a in (*self.args, *self.kwargs.values()) if _is_batch(a) for x in a if isinstance(x, Tensor)]
        return all(len(tensor) <= MAX_IMAGE_CHANNELS for tensor in tensors)

    def _with(self, batch: int) -> Example:
        times = -(-batch // self.batch)

        def resize(argument: Any) -> Any:
            if self.listed and _is_batch(argument):
                return (argument * times)[:batch]
            return tree_map(lambda leaf: _resized(leaf, times, batch), argument)

        kwargs = {name: resize(argument) for name, argument in self.kwargs.items()}
        args = tuple(resize(argument) for argument in self.args)
        return replace(self, args=args, kwargs=kwargs, batch=batch, whole=None)

    def _runs(self, model: nn.Module) -> bool:
        try:
            run_on_copy(model, replace(self, whole=None), lambda copy, inputs: inputs.run(copy.eval()))
        except Exception:
            return False
        return True

    def to(self, device: torch.device | str) -> Example:
        """The same arguments with every tensor on ``device``."""

        def move(leaf: Any) -> Any:
            return leaf.to(device) if isinstance(leaf, Tensor) else leaf

        return replace(self, args=tree_map(move, self.args), kwargs=tree_map(move, dict(self.kwargs)), whole=None)

    def repeated(self, batch: int) -> Example:
        """The arguments repeated or reduced to ``batch`` examples, where they are a batch."""
        return self if self.batch == 1 and not self.listed else self._with(batch)

    def run(self, model: nn.Module) -> Any:
        """The output of ``model``, or of its submodule ``module``, for these arguments."""
        called = model.get_submodule(self.module) if self.module else model
        return called(*self.args, **self.kwargs)


def _is_batch(argument: Any) -> bool:
    """Whether an argument is a list with one entry for each example: images, or dicts such as targets."""
    if not isinstance(argument, list) or not argument:
        return False
    images = all(isinstance(item, Tensor) and item.dim() == 3 for item in argument)
    return images or all(isinstance(item, dict) for item in argument)


def _resized(leaf: Any, times: int, batch: int) -> Any:
    """The first ``batch`` entries of a tensor that is repeated ``times`` times."""
    if not isinstance(leaf, Tensor) or leaf.dim() == 0:
        return leaf
    return torch.cat([leaf.detach()] * times)[:batch] if times > 1 else leaf.detach()[:batch]


def run_on_copy(
    model: nn.Module, example: Example, use: Callable[[nn.Module, Example], Any], on_meta: bool | None = None
) -> Any:
    """Call ``use(copy, example)`` with a copy on the meta device; if that fails, with a copy on the network's device.

    Networks whose control flow reads values, or that keep tensors outside their parameters and buffers, cannot run on
    the meta device.

    Args:
        model: The network; it is not modified.
        example: The arguments of its forward pass.
        use: The function to call.
        on_meta: True for only the copy on the meta device, False for only the other, None to try both.

    Returns:
        The result of ``use``.

    Raises:
        Exception: Any exception of the last call of ``use``.
    """
    with isolated_forward(), fused_recurrence(model):
        if on_meta is not False:
            try:
                return use(meta_copy(model), example.to("meta"))
            except Exception:
                if on_meta:
                    raise
        device = next((tensor.device for _, tensor in named_tensors(model)), torch.device("cpu"))
        return use(copy_of(model), (example.whole or example).to(device))


@contextmanager
def isolated_forward() -> Iterator[None]:
    """Context for forward passes without side effects.

    Gradients, fused attention, compiled code, warnings and garbage collection are disabled, and the state of the random
    number generators is restored afterwards.
    """
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with (
            without_garbage_collection(),
            torch.inference_mode(False),
            torch.no_grad(),
            torch.random.fork_rng(),
            running_eagerly(),
            sdpa_kernel(SDPBackend.MATH),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Context without automatic garbage collection.

    Code that creates many small objects triggers it again and again, and each collection scans all objects of the
    program.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()
