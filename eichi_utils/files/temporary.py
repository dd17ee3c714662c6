"""Name unfinished files and folders after their process, and remove those whose process has ended.

    .eichi-MACHINE-PID-START-TOKEN[.part.png]

Files that a killed process left take room, and lie where people look for results.
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
# Names of earlier versions, which did not name the process; the last form is that of the caches.
OLD = re.compile(r"\.eichi-[a-z0-9_]{8}|\..+\.part(\.[A-Za-z0-9]+)?|[0-9a-f]{64}\.[0-9a-f]{8}\.part")
# Setting the clock changes a running process's start time. No file that is being written is unchanged for this long.
UNSURE_SECONDS = 3600
# Seconds after which files of another machine or an earlier version are abandoned, since their process cannot be asked for.
OLD_SECONDS = 24 * 3600
# Largest number of folders that are looked into below one of them; if there are more, a random choice. Names alone are read
# fast, so a folder may hold a million files.
MOST_FOLDERS = 10_000


def own_prefix() -> str:
    """Return the beginning of the names of this process's unfinished files and folders."""
    return _prefix_of(os.getpid())


def unfinished(path: Path) -> Path:
    """Return a unique name beside `path`, with its suffix, from which some writers choose the format."""
    return path.with_name(f"{own_prefix()}{secrets.token_hex(6)}.part{path.suffix}")


def is_unfinished(name: str) -> bool:
    """Say whether a name is one that this program, in any version, gives to unfinished files and folders."""
    return OURS.fullmatch(name) is not None or OLD.fullmatch(name) is not None


def is_abandoned(path: Path) -> bool:
    """Say whether an unfinished file or folder has no process that will finish it; False for every other file."""
    if not is_unfinished(path.name):
        return False
    own = OURS.fullmatch(path.name)
    # A file that cannot be examined counts as in use.
    with suppress(OSError):
        age = time.time() - _last_change(path)
        if own is None or own["machine"] != _machine():
            return age > OLD_SECONDS
        if not psutil.pid_exists(int(own["pid"])):
            return True
        return not _is_running(int(own["pid"]), int(own["start"])) and age > UNSURE_SECONDS
    return False


def remove_abandoned(folders: Iterable[Path], depth: int = 3) -> int:
    """Remove abandoned files in folders and `depth` levels below, without following links. Returns their number.

    Files that cannot be removed stay for the next time.
    """
    removed = 0
    for folder in dict.fromkeys(folders):
        for path in _candidates(folder, depth):
            removed += is_abandoned(path) and _remove(path)
    if removed:
        logger.info("%d unfinished files of earlier runs were removed", removed)
    return removed


def _candidates(folder: Path, depth: int) -> Iterator[Path]:
    """Yield paths with the name of an unfinished file, in the folder and `depth` levels below, the upper levels first."""
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
    """Return the paths with such a name in a folder, and its other sub-folders; nothing if the folder cannot be read."""
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
    """Say whether the process with this number is the one that began then, since numbers are used again."""
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
    """Return an identifier of where process numbers are unique: this computer, or a container on it."""
    space = ""
    with suppress(OSError):
        space = str(Path("/proc/self/ns/pid").readlink())
    return hashlib.sha256(f"{platform.node()} {space}".encode()).hexdigest()[:8]
