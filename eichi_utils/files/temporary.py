"""Names for files and folders that are not finished, which say whose they are, and the removal of those that nobody finishes.

    .eichi-MACHINE-PID-START-TOKEN[.part.png]

What a process that was killed has left takes room, and lies where people look for results.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import random
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
# Folders that are looked into below one of them; which ones, where there are more, is another choice each time. Names alone
# are read fast, so a folder may hold a million files.
MOST_FOLDERS = 10_000


def own_prefix() -> str:
    """Return what the names of this process's unfinished files and folders begin with."""
    return _prefix_of(os.getpid())


def unfinished(path: Path) -> Path:
    """Return a name beside `path` that nobody else has; with its suffix, which writers go by."""
    return path.with_name(f"{own_prefix()}{secrets.token_hex(6)}.part{path.suffix}")


def is_unfinished(name: str) -> bool:
    """Tell whether a file or folder is called as this program, of any version, calls what is not finished."""
    return OURS.fullmatch(name) is not None or OLD.fullmatch(name) is not None


def is_abandoned(path: Path) -> bool:
    """Tell whether an unfinished file or folder has nobody who will finish it; False for every other file."""
    if not is_unfinished(path.name):
        return False
    own = OURS.fullmatch(path.name)
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
        for path in _candidates(folder, depth):
            removed += is_abandoned(path) and _remove(path)
    if removed:
        logger.info("%d unfinished files of earlier runs were removed", removed)
    return removed


def _candidates(folder: Path, depth: int) -> Iterator[Path]:
    """Yield what has an unfinished file's name, in the folder and `depth` levels below, the upper levels first."""
    level, left = [folder], MOST_FOLDERS
    for rest in range(depth, -1, -1):
        below: list[Path] = []
        random.shuffle(level)
        for place in level[:left]:
            found, folders = _listed(place, with_folders=rest > 0)
            yield from found
            below += folders
        left -= min(left, len(level))
        level = below


def _listed(place: Path, with_folders: bool) -> tuple[list[Path], list[Path]]:
    """Return what has such a name in a folder, and the other folders in it; nothing for a folder that cannot be read."""
    found, folders = [], []
    with suppress(OSError), os.scandir(place) as entries:
        for entry in entries:
            if is_unfinished(entry.name):
                found.append(Path(entry.path))
            elif with_folders and not entry.name.startswith(PREFIX) and entry.is_dir(follow_symlinks=False):
                folders.append(Path(entry.path))
    return found, folders


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
        space = str(Path("/proc/self/ns/pid").readlink())
    return hashlib.sha256(f"{platform.node()} {space}".encode()).hexdigest()[:8]
