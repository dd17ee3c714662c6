"""Test how much memory a process may have: under its own limits, those of cgroups above it, and those of Windows."""

from __future__ import annotations

import ctypes
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from eichi_utils.models import host_memory as module
from eichi_utils.models.host_memory import HostMemory, commit_available, control_groups, host_memory

GIB = 2**30


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Simulate a machine with 64 GiB of memory, 50 of them free, and 30 GiB of free swap."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=64 * GIB, available=50 * GIB))
    monkeypatch.setattr(psutil, "swap_memory", lambda: SimpleNamespace(total=30 * GIB, free=30 * GIB))
    folder = tmp_path / "proc"
    folder.mkdir()
    return folder


def unified(proc: Path, own: str, root: str = "/") -> Path:
    """Give the process a place in a tree of the second version; return where the tree is seen."""
    top = proc.parent / "cgroup"
    (proc / "cgroup").write_text(f"0::{own}\n")
    (proc / "mountinfo").write_text(f"30 23 0:26 {root} {top} rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n")
    top.mkdir()
    return top


def group(folder: Path, limit: str, used: int, files: int = 0, **more: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(limit + "\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 1\nfile 9\nshmem 9\ninactive_file {files}\nactive_file 0\n")
    for name, text in more.items():
        (folder / f"memory.{name}").write_text(text + "\n")


def test_free_swap_is_no_memory_for_weights(proc: Path) -> None:
    """Free swap counted as memory, and a film that was said to fit swapped for hours."""
    assert host_memory(proc) == HostMemory(64 * GIB, 50 * GIB)


def test_a_limit_of_the_own_group_counts(proc: Path) -> None:
    """Only the topmost cgroup was read, so a process in a child group of 16 GiB took 16 bits and was killed. Pages of files
    count as used, though the system gives them up when it must."""
    top = unified(proc, "/films/one")
    group(top / "films" / "one", str(16 * GIB), 6 * GIB, files=2 * GIB)
    assert host_memory(proc) == HostMemory(16 * GIB, 12 * GIB)


def test_a_limit_above_the_own_group_counts(proc: Path) -> None:
    """The limit of a parent cgroup counts too, less what other processes in that group have taken."""
    top = unified(proc, "/films/one")
    group(top / "films" / "one", "max", GIB)
    group(top / "films", str(24 * GIB), 14 * GIB)
    assert host_memory(proc) == HostMemory(24 * GIB, 10 * GIB)
    group(top / "films", str(24 * GIB), 14 * GIB, high=str(20 * GIB))
    assert host_memory(proc) == HostMemory(20 * GIB, 6 * GIB)
    group(top / "films" / "one", str(8 * GIB), 9 * GIB)
    assert host_memory(proc) == HostMemory(8 * GIB, 0)


@pytest.mark.parametrize(("own", "root"), [("/", "/"), ("/docker/12ab", "/docker/12ab"), ("/../../other", "/")])
def test_a_container_sees_a_part_of_the_tree(own: str, root: str, proc: Path) -> None:
    """In a container the process's own cgroup is the visible root, whatever its path in the whole tree is."""
    group(unified(proc, own, root), str(16 * GIB), 4 * GIB)
    assert host_memory(proc) == HostMemory(16 * GIB, 12 * GIB)


def test_groups_of_the_first_version(proc: Path) -> None:
    """Each kind of resource has a tree of its own there, and no limit is a number as well."""
    top = proc.parent / "memory"
    (proc / "cgroup").write_text("5:memory:/films/one\n3:cpu,cpuacct:/films\n0::/\n")
    (proc / "mountinfo").write_text(
        f"35 31 0:32 / {top} rw - cgroup cgroup rw,memory\n36 31 0:33 / {proc} rw - cgroup cgroup rw,cpu,cpuacct\nnonsense\n"
    )

    def write(folder: Path, limit: int, used: int, files: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "memory.limit_in_bytes").write_text(f"{limit}\n")
        (folder / "memory.usage_in_bytes").write_text(f"{used}\n")
        (folder / "memory.stat").write_text(f"inactive_file 0\ntotal_inactive_file {files}\ntotal_active_file 0\n")

    write(top / "films" / "one", 16 * GIB, 6 * GIB, 2 * GIB)
    write(top / "films", 2**63 - 4096, 7 * GIB, 0)
    write(top, 12 * GIB, 7 * GIB, 3 * GIB)
    assert sorted(control_groups(proc)) == [(12 * GIB, 8 * GIB), (16 * GIB, 12 * GIB)]
    assert host_memory(proc) == HostMemory(12 * GIB, 8 * GIB)


def test_windows_promises_no_more_than_its_commit_limit(proc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On Windows the commit limit counts: with a small page file programs end while half of the memory is free. Every
    Windows machine counted as 16 GiB."""

    def status(reference) -> int:
        reference._obj.commit_available = 9 * GIB
        assert reference._obj.length == ctypes.sizeof(reference._obj) == 64
        return 1

    kernel = SimpleNamespace(GlobalMemoryStatusEx=status)
    monkeypatch.setattr(ctypes, "windll", SimpleNamespace(kernel32=kernel), raising=False)
    monkeypatch.setattr(module.sys, "platform", "win32")
    assert commit_available() == 9 * GIB
    assert host_memory(proc) == HostMemory(64 * GIB, 9 * GIB)


def test_this_machine_answers() -> None:
    found = host_memory()
    assert 0 < found.available <= found.total <= psutil.virtual_memory().total
