"""Ask the system how much memory this process may have: `requirements` decides by it, `doctor` shows it. Without torch.

psutil knows the computer's memory but not the limits of a container or of a service (cgroups), which are read here.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import psutil

PROC = Path("/proc/self")
# Linux writes the largest whole number of pages for a cgroup of version 1 without a limit; this many bytes or more mean that.
UNLIMITED = 2**60
# Counters of a cgroup's memory that the system gives up as soon as it is needed: pages of files that nobody locked.
RECLAIMABLE = ("inactive_file", "active_file")


@dataclass(frozen=True)
class HostMemory:
    """Hold the memory of this process.

    total: bytes of physical memory, or of the smallest limit on this process. available: bytes that it can still have.
    """

    total: int
    available: int


def host_memory(proc: Path = PROC) -> HostMemory:
    """Return the memory that there is for weights, by all limits on this process, without swap. proc: its folder in /proc."""
    system = psutil.virtual_memory()
    totals, free = [system.total], [system.available]
    for limit, left in control_groups(proc):
        totals.append(limit)
        free.append(left)
    if sys.platform == "win32":
        free.append(commit_available())
    return HostMemory(min(totals), max(0, min(free)))


def own_memory() -> int:
    """Return the bytes of memory that this process has taken, without pages of files, which are the system's."""
    info = psutil.Process().memory_info()
    return getattr(info, "private", info.rss - getattr(info, "shared", 0))


def control_groups(proc: Path = PROC) -> Iterator[tuple[int, int]]:
    """Yield (limit, what is left of it) in bytes, for the process's cgroup and each above it that has a limit on memory.

    Both versions of Linux's cgroups are read; other systems have none.
    """
    for folder, top, version in _memory_groups(proc):
        while True:
            yield from _limits(folder, version)
            if folder == top or folder == folder.parent:
                break
            folder = folder.parent


def _limits(folder: Path, version: int) -> Iterator[tuple[int, int]]:
    names = ("memory.max", "memory.high") if version == 2 else ("memory.limit_in_bytes",)
    try:
        used = int((folder / ("memory.current" if version == 2 else "memory.usage_in_bytes")).read_text())
        counted = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        # The topmost cgroup has no such files.
        return
    # In version 1 these counters are of the cgroup alone; those that begin with `total_` include the cgroups below it.
    given_up = sum(int(counted.get(name if version == 2 else f"total_{name}", 0)) for name in RECLAIMABLE)
    for name in names:
        try:
            limit = int((folder / name).read_text())
        except (OSError, ValueError):
            # The file has "max" for no limit, or does not exist on this system.
            continue
        if limit < UNLIMITED:
            yield limit, limit - used + given_up


def _memory_groups(proc: Path) -> Iterator[tuple[Path, Path, int]]:
    """Yield (folder of the process's cgroup, folder of the topmost visible one, version) for each hierarchy with memory."""
    try:
        own = [line.split(":", 2) for line in (proc / "cgroup").read_text().splitlines()]
        mounts = [line.split(" ") for line in (proc / "mountinfo").read_text().splitlines()]
    except OSError:
        return
    for fields in mounts:
        try:
            kind, _, options = fields[fields.index("-") + 1 :][:3]
        except ValueError:
            continue
        version = {"cgroup2": 2, "cgroup": 1}.get(kind)
        if version is None or (version == 1 and "memory" not in options.split(",")):
            continue
        paths = [path for _, names, path in own if (names == "" if version == 2 else "memory" in names.split(","))]
        if paths:
            # A container may see only a part of the tree of cgroups; the mount's root is that part's path in the whole.
            root, top = PurePosixPath(fields[3]), Path(fields[4])
            path = PurePosixPath(paths[0])
            inside = path.relative_to(root) if path.is_relative_to(root) else PurePosixPath()
            yield (top if ".." in inside.parts else top / inside), top, version


def commit_available() -> int:
    """Return the bytes that Windows still lets programs commit: memory and page file, less what is committed already."""

    class Status(ctypes.Structure):
        _fields_ = (
            ("length", ctypes.c_uint32),
            ("load", ctypes.c_uint32),
            *((name, ctypes.c_uint64) for name in ("total", "available", "commit_limit", "commit_available")),
            *((name, ctypes.c_uint64) for name in ("virtual", "virtual_available", "extended")),
        )

    status = Status(length=ctypes.sizeof(Status))
    if not ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):
        raise ctypes.WinError()
    return status.commit_available
