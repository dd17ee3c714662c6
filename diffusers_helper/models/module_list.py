"""Declare torch's list of modules with what it holds: torch's own stubs call everything in it a module.

Only a type checker sees the class; when the program runs it is torch's own, which compilers and checkpoints know.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Generic, TypeVar, overload

from torch import nn

if TYPE_CHECKING:
    # Any stands for modules of several kinds, which are known by their places.
    M = TypeVar("M", bound=nn.Module)

    class ModuleList(nn.ModuleList, Generic[M]):
        """Hold modules of one kind."""

        def __init__(self, modules: Iterable[M] = ()) -> None: ...

        @overload
        def __getitem__(self, idx: slice) -> ModuleList[M]: ...

        @overload
        def __getitem__(self, idx: int) -> M: ...

        def __getitem__(self, idx: int | slice) -> M | ModuleList[M]: ...

        def __iter__(self) -> Iterator[M]: ...

else:
    ModuleList = nn.ModuleList
