"""Read tensors of safetensors files, one after the other, into the caller's memory.

They are read, not mapped: pages that are seen through a mapping count as this process's memory while the mapping lives, so that
copying out of it would take the weights twice. Only what shall stay in the files is a window into a mapping.
"""

from __future__ import annotations

import os
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from diffusers_helper.checkpoints.files import CheckpointError, Tensors
from diffusers_helper.memory.slabs import Spec

DTYPES = MappingProxyType(
    {
        "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
        "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
        "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "BOOL": torch.bool,
        "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8,
    }
)  # fmt: skip


# Threads that read, bytes of a piece, and how many pieces ahead the system is told what comes, so that the disk can fetch it.
# One thread copies 2 GB a second out of the system's cache where four copy 6 (measured on the machine of the loading in
# benchmarks/README.md).
READERS, PIECE, AHEAD = 4, 2**23, 32


def readers() -> Executor:
    """Return the threads that read pieces of one tensor side by side; each begins when it is first needed."""
    return ThreadPoolExecutor(READERS, thread_name_prefix="reader")


def read_into(file: Path, begin: int, memory: Tensor, pool: Executor) -> bool:
    """Fill all of the memory, uint8, with the bytes of a file from `begin` on; return False if the file ends before.

    Raises OSError.
    """
    starts = range(0, memory.numel(), PIECE)

    def read(start: int) -> bool:
        rest = memory[start : start + PIECE].numpy().data
        # Unbuffered, so that bytes are read straight to where they shall lie.
        with file.open("rb", buffering=0) as stream:
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(stream.fileno(), begin + start + AHEAD * PIECE, PIECE, os.POSIX_FADV_WILLNEED)
            stream.seek(begin + start)
            while rest.nbytes:
                count = stream.readinto(rest)
                if not count:
                    return False
                rest = rest[count:]
        return True

    return all(list(pool.map(read, starts) if memory.numel() > PIECE else map(read, starts)))


def read_tensor(file: Path, place: tuple[int, int], dtype: str, shape: tuple[int, ...]) -> Tensor:
    """Read one tensor into memory of its own, which does not depend on the file any more.

    place: (first byte, end). dtype: in the format's words. Raises CheckpointError ("file_missing", or "file_damaged" where the
    file ends before the tensor or the dtype is none of torch's).
    """
    begin, end = place
    memory = torch.empty(end - begin, dtype=torch.uint8)
    try:
        with readers() as pool:
            whole = read_into(file, begin, memory, pool)
    except OSError:
        raise CheckpointError("file_missing", file=str(file)) from None
    if not whole or dtype not in DTYPES:
        raise CheckpointError("file_damaged", file=str(file), expected=f"{dtype} {shape}", actual=end - begin)
    return memory.view(DTYPES[dtype]).view(shape)


class Reader:
    """Read the tensors that were found in a model's files; a context, outside of which nothing is read.

    Raises CheckpointError for a tensor whose dtype is none of torch's or whose length does not fit its shape. specs: dtype and
    shape of each tensor by name.
    """

    def __init__(self, found: Tensors):
        self._found = found
        self._pool = readers()
        self._mapped: dict[Path, Any] = {}
        self._shared: Tensor | None = None
        self._open = ExitStack()
        self.specs: dict[str, Spec] = {}
        for name, shape in found.shapes.items():
            dtype = DTYPES.get(found.dtypes[name])
            begin, end = found.places[name]
            if dtype is None or end - begin != prod(shape) * dtype.itemsize:
                expected = f"{name}: {found.dtypes[name]} {shape}"
                raise CheckpointError("file_damaged", file=str(found.files[name]), expected=expected, actual=end - begin)
            self.specs[name] = dtype, shape

    def __enter__(self) -> Reader:
        self._open.enter_context(self._pool)
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def names(self) -> list[str]:
        """Return the names of the tensors in the order they lie on the disk."""
        return sorted(self.specs, key=lambda name: (str(self._found.files[name]), self._found.places[name]))

    def into(self, name: str, memory: Tensor) -> None:
        """Read a tensor's bytes into the caller's memory, uint8, of the same length.

        Raises CheckpointError if the file ends before them.
        """
        file = self._found.files[name]
        begin, end = self._found.places[name]
        if not read_into(file, begin, memory, self._pool):
            raise CheckpointError("file_damaged", file=str(file), expected=end, actual=file.stat().st_size)

    def tensor(self, name: str) -> Tensor:
        """Read a tensor into memory that the next call overwrites.

        New memory for each would stay with the process in pieces of all sizes. Raises CheckpointError as `into` does.
        """
        dtype, shape = self.specs[name]
        if self._shared is None:
            self._shared = torch.empty(max(end - begin for begin, end in self._found.places.values()), dtype=torch.uint8)
        memory = self._shared[: prod(shape) * dtype.itemsize]
        self.into(name, memory)
        return memory.view(dtype).view(shape)

    def window(self, name: str) -> Tensor:
        """Return a tensor as a window into the file.

        Memory is taken when it is used, and given up again when the system wants it.
        """
        file = self._found.files[name]
        if file not in self._mapped:
            self._mapped[file] = self._open.enter_context(safe_open(file, framework="pt"))
        return self._mapped[file].get_tensor(name)
