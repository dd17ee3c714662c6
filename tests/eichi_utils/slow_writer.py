"""Write slowly to a disk cache, in the other processes of `test_disk_cache.py`, which need not import PyTorch for it."""

from __future__ import annotations

import time
from pathlib import Path

from eichi_utils.files.disk_cache import DiskCache


def add_slowly(folder: Path, letter: bytes, barrier) -> None:
    def write(path: Path) -> None:
        with path.open("wb") as stream:
            for _ in range(20):
                stream.write(letter * 5)
                stream.flush()
                time.sleep(0.005)

    barrier.wait()
    assert DiskCache(folder, 1000).add("same", 100, write)
