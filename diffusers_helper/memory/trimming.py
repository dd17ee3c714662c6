"""Give memory back to the system, not only to this program."""

from __future__ import annotations

import ctypes
import sys


def trim() -> None:
    """Give the system what was freed: Linux's C library keeps pieces below some megabytes for itself, and a LoRA that moved
    into a slab would be there twice, or a picture that nobody looks at any more."""
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "malloc_trim"):
        library.malloc_trim(0)
