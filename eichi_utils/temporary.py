"""Names for files and folders that are not finished, which say whose they are, and the removal of those that nobody finishes.

    .eichi-MACHINE-PID-START-TOKEN[.part.png]

What a process that was killed has left takes room, and lies where people look for results.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import re
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import psutil

logger = logging.getLogger(__name__)

PREFIX = ".eichi-"
OURS = re.compile(r"\.eichi-(?P<machine>[0-9a-f]{8})-(?P<pid>\d+)-(?P<start>\d+)-.*")
# Of versions that named nobody; the last one is of the caches.
OLD = re.compile(r"\.eichi-[a-z0-9_]{8}|\..+\.part(\.[A-Za-z0-9]+)?|[0-9a-f]{64}\.[0-9a-f]{8}\.part")
# A clock that is set while a process runs moves its start; a file that somebody writes is never this old.
UNSURE_SECONDS = 3600
# Whose process cannot be asked for, on another machine or of an old version: nobody writes one file for a day.
OLD_SECONDS = 24 * 3600
# Of one folder and those below it; a folder of a million files is not looked through at every start.
MOST_ENTRIES = 100_000


def own_prefix() -> str:
    """Return what the names of this process's unfinished files and folders begin with."""
    return _prefix_of(os.getpid())


def unfinished(path: Path) -> Path:
    """Return a name beside `path` that nobody else has; with its suffix, which writers go by."""
    return path.with_name(f"{own_prefix()}{secrets.token_hex(6)}.part{path.suffix}")


def is_abandoned(path: Path) -> bool:
    """Tell whether an unfinished file or folder has nobody who will finish it; False for every other file."""
    own = OURS.fullmatch(path.name)
    if own is None and OLD.fullmatch(path.name) is None:
        return False
    # Whatever cannot be asked is somebody's.
    with suppress(OSError):
        age = time.time() - _last_change(path)
        if own is None or own["machine"] != _machine():
            return age > OLD_SECONDS
        if not psutil.pid_exists(int(own["pid"])):
            return True
        return not _is_running(int(own["pid"]), int(own["start"])) and age > UNSURE_SECONDS
    return False


def remove_abandoned(folders: Iterable[Path], depth: int = 3) -> int:
    """Remove what was abandoned in folders and `depth` levels below, without following links. Returns how much it was.

    What cannot be removed stays for the next time.
    """
    removed = 0
    for folder in dict.fromkeys(folders):
        for number, path in enumerate(_walk(folder, depth)):
            if number >= MOST_ENTRIES:
                break
            if path.name.startswith(".") or path.suffix == ".part":
                removed += is_abandoned(path) and _remove(path)
    if removed:
        logger.info("%d unfinished files of earlier runs were removed", removed)
    return removed


def _walk(folder: Path, depth: int) -> Iterator[Path]:
    try:
        entries = sorted(folder.iterdir())
    except OSError:
        return
    for path in entries:
        yield path
        if depth and not path.name.startswith(PREFIX) and not path.is_symlink() and path.is_dir():
            yield from _walk(path, depth - 1)


def _remove(path: Path) -> bool:
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    except OSError as error:
        logger.info("%s stays: %s", path, error)
        return False
    return True


def _last_change(path: Path) -> float:
    inside = path.iterdir() if path.is_dir() and not path.is_symlink() else ()
    return max(one.lstat().st_mtime for one in (path, *inside))


def _is_running(pid: int, start: int) -> bool:
    """Tell whether the process of that number is the one that began then; numbers are given again."""
    try:
        return abs(psutil.Process(pid).create_time() - start) < 2
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:
        return True


@lru_cache(maxsize=2)
def _prefix_of(pid: int) -> str:
    return f"{PREFIX}{_machine()}-{pid}-{int(psutil.Process(pid).create_time())}-"


@lru_cache(maxsize=1)
def _machine() -> str:
    """Return a word for where process numbers mean the same: this computer, or a container on it."""
    space = ""
    with suppress(OSError):
        space = os.readlink("/proc/self/ns/pid")
    return hashlib.sha256(f"{platform.node()} {space}".encode()).hexdigest()[:8]
