"""Lay out host memory for weights: one buffer of the exact size, cut into slabs that begin at pages, with tensors as views.

One slab is what moves to the card in one copy. Page-locked memory of torch's own allocator would round every tensor up to a
power of two, 40 GB for 26.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

# Tensors begin at a multiple of this many bytes, which suits kernels best.
ALIGNMENT = 256
# Kernels need this alignment: tensors that follow each other without a gap stay together where each begins at a multiple of it.
LEAST_ALIGNMENT = 16
PAGE = mmap.ALLOCATIONGRANULARITY

# dtype and shape of a tensor that is still to be made.
Spec = tuple[torch.dtype, tuple[int, ...]]


@dataclass(frozen=True)
class Place:
    """Hold where a tensor lies in a buffer; offset in bytes."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int

    @property
    def bytes(self) -> int:
        """Return how many bytes the tensor takes."""
        return prod(self.shape) * self.dtype.itemsize

    def view(self, buffer: Tensor) -> Tensor:
        """Return the tensor in a buffer of uint8.

        It is an ordinary tensor even in inference mode, because parameters will point to it.
        """
        with torch.inference_mode(False):
            return buffer[self.offset : self.offset + self.bytes].view(self.dtype).view(self.shape)


def aligned(offset: int, step: int = ALIGNMENT) -> int:
    """Return the first multiple of `step` from `offset` on."""
    return -(-offset // step) * step


def lay_out(slabs: Sequence[Mapping[str, Spec]], contiguous: Sequence[Sequence[str]] = ()) -> tuple[dict[str, Place], int]:
    """Return the place of every tensor, slab after slab, and the bytes of all.

    contiguous: names, all of one slab or none of it, whose tensors follow the first of them without a gap.
    """
    rows = {row[0]: row for row in contiguous}
    followers = {name for row in contiguous for name in row[1:]}
    places, end = {}, 0
    for slab in slabs:
        end = aligned(end, PAGE)
        for first in slab:
            if first in followers:
                continue
            end = aligned(end)
            for name in rows.get(first, (first,)):
                dtype, shape = slab[name]
                places[name] = Place(dtype, tuple(shape), end)
                end += places[name].bytes
    return places, end


def fused(tensors: Sequence[Tensor]) -> Tensor | None:
    """Join neighbours (rows, ...) in one memory as one tensor, (sum of rows, ...), without a copy.

    Returns None where they do not lie one after the other.
    """
    first, rows = tensors[0], sum(len(tensor) for tensor in tensors)
    end, storage = first.data_ptr(), first.untyped_storage().data_ptr()
    for tensor in tensors:
        same = tensor.dtype == first.dtype and tensor.shape[1:] == first.shape[1:] and tensor.is_contiguous()
        if not same or tensor.data_ptr() != end or tensor.untyped_storage().data_ptr() != storage:
            return None
        end += tensor.numel() * tensor.element_size()
    return first.detach().as_strided((rows, *first.shape[1:]), first.stride())


def allocate(size: int) -> Tensor:
    """Return new host memory, uint8, that begins at a page.

    On Linux it has large pages where the kernel offers them: reading weights into memory took half as long again in pages of 4
    KiB, each of which the system hands out and clears on its own.
    """
    with torch.inference_mode(False):
        if not hasattr(mmap, "MADV_HUGEPAGE"):
            whole = torch.empty(size + PAGE, dtype=torch.uint8)
            skipped = -whole.data_ptr() % PAGE
            return whole[skipped : skipped + size]
        memory = mmap.mmap(-1, max(size, PAGE), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        # A kernel may be built without large pages.
        with suppress(OSError):
            memory.madvise(mmap.MADV_HUGEPAGE)
        return torch.frombuffer(memory, dtype=torch.uint8)[:size]


class Arena:
    """Hold slabs in one buffer of host memory.

    slabs: dtype and shape by name, in the order they shall lie. contiguous: as in `lay_out`. buffer: memory of the right size,
    uint8, to use in the place of new memory. bytes: what the slabs take, padding included; the system gives memory only to
    pages that are written.
    """

    def __init__(
        self,
        slabs: Sequence[Mapping[str, Spec]],
        contiguous: Sequence[Sequence[str]] = (),
        buffer: Tensor | None = None,
    ):
        self.places, self.bytes = lay_out(slabs, contiguous)
        self.buffer = allocate(self.bytes) if buffer is None else buffer

    def __contains__(self, name: str) -> bool:
        return name in self.places

    def put(self, name: str, tensor: Tensor) -> Tensor:
        """Write a tensor from any device into its place; return the view of it. Raises ValueError where it does not fit."""
        place = self.places[name]
        if tensor.dtype != place.dtype or tuple(tensor.shape) != place.shape:
            wanted = f"{place.dtype} {place.shape}"
            raise ValueError(f"{name} is {tensor.dtype} {tuple(tensor.shape)}, its place is for {wanted}")
        return self.view(name).copy_(tensor)

    def view(self, name: str) -> Tensor:
        """Return the tensor of this name, in place."""
        return self.places[name].view(self.buffer)

    def bytes_of(self, name: str) -> Tensor:
        """Return the bytes of the tensor of this name, in place, as uint8."""
        place = self.places[name]
        return self.buffer[place.offset : place.offset + place.bytes]


@dataclass(frozen=True)
class Run:
    """Hold neighbouring tensors that move in one copy.

    source: their bytes in host memory. offset: where they go in a slot.
    """

    source: Tensor
    offset: int


def runs(tensors: Sequence[Tensor]) -> tuple[list[Run], list[Place], int]:
    """Return how tensors move: the runs, the place of each tensor in a slot, and the slot's bytes.

    Tensors of one slab are one run, and neighbours stay neighbours; others, such as windows into a file, make as many runs as
    there are gaps or unaligned beginnings.
    """
    found: list[Run] = []
    places: dict[int, Place] = {}
    end = 0
    order = sorted(range(len(tensors)), key=lambda number: tensors[number].data_ptr())
    for number in order:
        tensor = tensors[number]
        storage, start = tensor.untyped_storage(), int(tensor.storage_offset()) * tensor.element_size()
        size = tensor.numel() * tensor.element_size()
        if found and found[-1].source.untyped_storage().data_ptr() == storage.data_ptr():
            before = found[-1]
            begin = int(before.source.storage_offset())
            gap = start - begin - before.source.numel()
            if gap < ALIGNMENT and (start - begin) % (ALIGNMENT if gap else LEAST_ALIGNMENT) == 0:
                length = max(before.source.numel(), start - begin + size)
                found[-1] = Run(_bytes(storage, begin, length), before.offset)
                places[number] = Place(tensor.dtype, tuple(tensor.shape), before.offset + start - begin)
                end = before.offset + length
                continue
        offset = aligned(end)
        found.append(Run(_bytes(storage, start, size), offset))
        places[number] = Place(tensor.dtype, tuple(tensor.shape), offset)
        end = offset + size
    return found, [places[number] for number in range(len(tensors))], end


def _bytes(storage: torch.UntypedStorage, start: int, length: int) -> Tensor:
    with torch.inference_mode(False):
        return torch.empty(0, dtype=torch.uint8).set_(storage, start, (length,), (1,))
