"""Give memory back to the system, not only to this program."""

from __future__ import annotations

import ctypes
import sys


def trim() -> None:
    """Give freed memory back to the system.

    Linux's C library keeps pieces below some megabytes for itself: a LoRA that moved into a slab would be there twice, and a
    picture that nobody looks at any more would stay.
    """
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "malloc_trim"):
        library.malloc_trim(0)
