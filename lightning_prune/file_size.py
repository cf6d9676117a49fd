"""Size of a network as a compressed file."""

from __future__ import annotations

import io
import os
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from lightning_prune.network.sharded import full_tensor

_LEVEL = 6  # of deflate: the default of zip programs
_SAMPLE_BYTES = 2**18  # of each tensor, for an estimate


def write_compressed(state: Mapping[str, Any], file: str | Path | IO[bytes] | io.RawIOBase) -> None:
    """Write a file as ``torch.save`` does, compressed (deflate, level 6); ``torch.load`` reads it.

    Args:
        state: A state dict, or another object that ``torch.save`` can save.
        file: A path, or a file object opened for writing in binary mode.

    Example:
        >>> net, file = torch.nn.Linear(3, 2), io.BytesIO()
        >>> write_compressed(net.state_dict(), file)
        >>> _ = file.seek(0)
        >>> torch.equal(torch.load(file)["weight"], net.weight)
        True
    """
    saved = io.BytesIO()
    torch.save(state, saved)
    with (
        zipfile.ZipFile(saved) as source,
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=_LEVEL) as target,  # type: ignore[arg-type]
    ):
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry), zipfile.ZIP_DEFLATED, _LEVEL)


def compressed_size(state: Mapping[str, Any]) -> int:
    """Size in bytes of the file that ``write_compressed`` writes; it compresses about 20 MB of weights per second.

    Example:
        >>> dense, zeros = torch.randn(100, 100), torch.zeros(100, 100)
        >>> compressed_size({"weight": zeros}) < 2_000 < 36_000 < compressed_size({"weight": dense}) < 40_000
        True
    """
    counter = _Counter()
    write_compressed(state, counter)
    return counter.size


def estimated_size(tensors: Iterable[Tensor]) -> float:
    """Estimate of the bytes that tensors take in a compressed file, from a sample of each."""
    total = 0.0
    for tensor in tensors:
        values = full_tensor(tensor.detach()).flatten()
        count = max(1, _SAMPLE_BYTES // values.element_size())
        start = max(0, (values.numel() - count) // 2)
        sample = values[start : start + count]
        if sample.numel():
            total += len(deflated(sample)) * values.numel() / sample.numel()
    return total


def deflated(values: Tensor) -> bytes:
    """The compressed bytes of a tensor of one dimension."""
    return zlib.compress(values.detach().contiguous().cpu().view(torch.uint8).numpy().tobytes(), _LEVEL)


def overhead(state: Mapping[str, Any]) -> int:
    """Bytes of a file without the values of its tensors: names, shapes and the archive itself."""
    return compressed_size({name: v.new_empty(0) if isinstance(v, Tensor) else v for name, v in state.items()})


class _Counter(io.RawIOBase):
    """A file object that only counts its bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.size = self._at = 0

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.size}[whence]
        return self._at

    def write(self, data: Any) -> int:
        self._at += memoryview(data).nbytes
        self.size = max(self.size, self._at)
        return memoryview(data).nbytes
