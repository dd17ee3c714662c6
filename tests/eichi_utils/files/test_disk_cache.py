"""Test files by key: limits, order of deletion, full disks, several processes."""

from __future__ import annotations

import errno
import multiprocessing
import os
import time
from pathlib import Path

import pytest

from eichi_utils.files import disk_cache
from eichi_utils.files.disk_cache import DiskCache, key_of, open_caches
from tests.eichi_utils.helpers import names_in
from tests.eichi_utils.slow_writer import add_slowly


def writing(size: int):
    return lambda path: path.write_bytes(bytes(size))


@pytest.fixture
def cache(tmp_path: Path) -> DiskCache:
    return DiskCache(tmp_path / "cache", 1000)


def age(cache: DiskCache, key: str, seconds: float) -> None:
    """Set a file's last use to some seconds ago."""
    then = time.time() - seconds
    os.utime(cache.folder / f"{key}.safetensors", (then, then))


def test_what_was_added_is_found(cache: DiskCache) -> None:
    assert cache.find("a") is None and cache.usage() == (0, 0)
    assert cache.add("a", 10, lambda path: path.write_bytes(b"0123456789"))
    assert cache.find("a").read_bytes() == b"0123456789" and cache.usage() == (1, 10)
    assert names_in(cache.folder) == {"a.safetensors"}
    cache.empty()
    assert cache.find("a") is None and cache.usage() == (0, 0)


def test_what_was_used_longest_ago_goes_first(cache: DiskCache) -> None:
    """A use counts, not the age: `a` is the oldest file, but was asked for last."""
    for number, key in enumerate("abc"):
        cache.add(key, 300, writing(300))
        age(cache, key, 1000 - number)
    cache.find("a")
    assert cache.add("d", 300, writing(300))
    assert names_in(cache.folder) == {"a.safetensors", "c.safetensors", "d.safetensors"}
    assert cache.usage() == (3, 900)


def test_what_is_larger_than_the_limit_pushes_nothing_out(cache: DiskCache) -> None:
    cache.add("a", 300, writing(300))
    assert not cache.add("b", 1001, lambda path: pytest.fail("written"))
    assert cache.usage() == (1, 300)


def test_off(tmp_path: Path) -> None:
    """A limit of 0 changes nothing on the disk, even if files are there."""
    on, off = DiskCache(tmp_path / "c", 100), DiskCache(tmp_path / "c", 0)
    on.add("a", 1, writing(1))
    assert off.find("a") is None and not off.add("b", 1, writing(1))
    assert names_in(tmp_path / "c") == {"a.safetensors"}


def test_a_disk_that_fills_up_while_writing(cache: DiskCache) -> None:
    """If the disk fills up while writing, no partial file is left, and only the log tells of it."""

    def write(path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    assert not cache.add("a", 10, write)
    assert names_in(cache.folder) == set() and cache.find("a") is None


def test_an_error_that_is_no_disks_comes_through_and_leaves_nothing(cache: DiskCache) -> None:
    def write(path: Path) -> None:
        path.write_bytes(b"half")
        raise RuntimeError("a mistake in the program")

    with pytest.raises(RuntimeError):
        cache.add("a", 10, write)
    assert names_in(cache.folder) == set()


def test_too_little_room_is_seen_before_anything_is_written(cache: DiskCache, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("usage", (), {"free": disk_cache.SPARE_BYTES + 9})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    assert not cache.add("a", 10, lambda path: pytest.fail("written"))
    assert cache.add("a", 9, writing(9))


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = DiskCache(tmp_path / "file" / "below", 100)
    assert not cache.add("a", 1, writing(1))
    assert cache.find("a") is None and cache.usage() == (0, 0)


def test_a_folder_that_may_not_be_entered(cache: DiskCache, monkeypatch: pytest.MonkeyPatch) -> None:
    """A film ended there, and so did `eichi doctor` and `eichi cache`: keeping is a help, and fails nothing."""

    def closed(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    for name in ("stat", "iterdir", "is_file", "is_dir", "mkdir"):
        monkeypatch.setattr(Path, name, closed)
    monkeypatch.setattr(os, "utime", closed)
    monkeypatch.setattr(os, "scandir", closed)
    assert cache.find("key") is None and cache.usage() == (0, 0)
    assert cache.add("key", 1, lambda path: path.write_bytes(b"x")) is False
    cache.empty()


def test_files_of_a_process_that_was_ended(cache: DiskCache) -> None:
    """Old partial files of an ended process are deleted, but fresh ones stay: another process may be writing them."""
    cache.folder.mkdir()
    for name, seconds in (("old", 2 * disk_cache.ABANDONED_SECONDS), ("fresh", 1)):
        path = cache.folder / f"{name}.part"
        path.write_bytes(b"123")
        os.utime(path, (time.time() - seconds,) * 2)
    assert cache.usage() == (0, 6)
    cache.add("a", 10, writing(10))
    assert names_in(cache.folder) == {"fresh.part", "a.safetensors"}
    cache.empty()
    assert names_in(cache.folder) == set()


@pytest.mark.process
def test_two_processes_at_once(cache: DiskCache) -> None:
    """Two processes that write the same entry do not write into each other's file, and one whole file stays."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(2)
    both = [context.Process(target=add_slowly, args=(cache.folder, letter, barrier)) for letter in (b"a", b"b")]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [0, 0]
    assert cache.find("same").read_bytes() in (b"a" * 100, b"b" * 100)
    assert names_in(cache.folder) == {"same.safetensors"}


def test_a_file_that_vanishes_while_it_is_counted(cache: DiskCache, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counting goes on if a file vanishes meanwhile, because another process makes room."""
    cache.add("a", 10, writing(10))
    monkeypatch.setattr(Path, "iterdir", lambda self: iter([self / "gone.safetensors", self / "a.safetensors"]))
    assert cache.usage() == (1, 10)


def test_keys() -> None:
    assert key_of("a", 1) == key_of("a", 1) != key_of("a", "1")
    assert key_of("ab", "c") != key_of("a", "bc")


def test_the_limit_is_shared_out() -> None:
    caches = open_caches(24)
    sizes = [cache.limit for cache in (caches.prompts, caches.pictures, caches.weights)]
    assert sum(sizes) <= 24e9 and sizes[2] > 2 * 9.2e9
    assert not any(cache.limit for cache in vars(open_caches(0)).values())
