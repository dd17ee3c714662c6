"""Give back memory that is a window into a file.

What was read of it need not count as this process's memory any more.
"""

from __future__ import annotations

import ctypes
import mmap
from bisect import bisect_right
from pathlib import Path

from torch import Tensor

MAPS = Path("/proc/self/maps")


def windows() -> list[tuple[int, int]]:
    """Return the address ranges (first byte, end) of this process that are private windows into safetensors files.

    There are none where the system does not tell.
    """
    try:
        with MAPS.open("rb") as lines:
            # Read as bytes, and only the few lines that count are split: a process with our libraries has a thousand lines.
            found = [line.split(maxsplit=2) for line in lines.read().splitlines() if line.endswith(b".safetensors")]
    except OSError:
        return []
    # A line has the address range, permissions, and the rest with the path at its end; a deleted file's path is marked there.
    return [
        (int(begin, 16), int(end, 16))
        for place, permissions, _ in found
        if permissions.endswith(b"p")
        for begin, end in [place.split(b"-")]
    ]


def forget(memory: Tensor, known: list[tuple[int, int]]) -> bool:
    """Let the system take back the pages of a CPU tensor's memory; the next use reads them from the file again.

    Only whole pages are given back, and only where all of the memory lies in one of the windows `known`: pages that are no
    file's would come back as zeros. Nobody may have written to them. Returns False where nothing was given back.
    """
    begin = memory.data_ptr()
    end = begin + memory.numel() * memory.element_size()
    at = bisect_right(known, (begin, float("inf"))) - 1
    if at < 0 or not known[at][0] <= begin <= end <= known[at][1] or not hasattr(mmap, "MADV_DONTNEED"):
        return False
    first, last = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
    if last <= first:
        return False
    libc = ctypes.CDLL(None)
    return libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), mmap.MADV_DONTNEED) == 0
