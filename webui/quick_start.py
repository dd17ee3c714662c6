"""Starting a page as a program: gradio without the work it does for its own developers."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn


@contextmanager
def without_stubs() -> Iterator[None]:
    """Component classes made inside get no stub file.

    For every component class, its own and others', gradio (6.31) parses the source and writes a file of type hints (.pyi)
    beside it, and offers no way to switch that off. It leaves a class alone whose source cannot be found.
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
