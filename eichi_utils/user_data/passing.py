"""A folder of passing files (gradio's uploads, files to download) stays below a size, and something of the disk stays free.

Nothing there is anybody's only copy: what a film needs is kept elsewhere before it begins.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Container, Iterator
from contextlib import suppress
from pathlib import Path

from eichi_utils.problems import Problem, UserError
from eichi_utils.user_data.purge import DAY_SECONDS, GB, delete

# Of all files there together; many times what a full form of large pictures takes.
MOST_BYTES, MOST_FILES = 4 * GB, 5_000
# A page may be about to use what is younger; unless there is twice as much as there may be, or half of what must stay free is
# gone, when the disk counts for more.
SAFE_SECONDS = 600.0
# What a broken upload leaves: Python's own names, in the folder itself (gradio 6.31 writes there and then moves the file).
BROKEN = re.compile(r"tmp[a-z0-9_]{8}")
BROKEN_SECONDS = 600.0
# Of the disk, for everything else that is written there: films, settings, the log.
LEAST_FREE = 2 * GB


def purge_passing(
    folder: Path, seconds: float = DAY_SECONDS, most_bytes: float = MOST_BYTES, most_files: int = MOST_FILES
) -> int:
    """Delete what was not used for so long, and then the oldest until the rest is no more than there may be, and the disk has
    room for everything else; say how many."""
    now, deleted, stayed, before = time.time(), 0, [], set()
    for used, size, path in _files(folder):
        age = now - used
        before.add(str(path.parent))
        if age > seconds or (age > BROKEN_SECONDS and path.parent == folder and BROKEN.fullmatch(path.name)):
            deleted += delete(path, used)
        else:
            stayed.append((used, size, path))
    total, count, short = sum(size for _, size, _ in stayed), len(stayed), shortage(folder)
    for used, size, path in sorted(stayed):
        far_too_much = total > 2 * most_bytes or count > 2 * most_files or short > LEAST_FREE / 2
        too_much = total > most_bytes or count > most_files or short > 0
        if not far_too_much and not (too_much and now - used > SAFE_SECONDS):
            break
        if delete(path, used):
            total, count, short, deleted = total - size, count - 1, short - size, deleted + 1
    if deleted:
        _remove_empty(folder, now - min(seconds, SAFE_SECONDS), before)
    return deleted


def need_room(folder: Path) -> None:
    """Raise UserError if less of the folder's disk is free than must stay for everything else that is written there."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if (short := shortage(folder)) > 0:
        sizes = {"free": (LEAST_FREE - short) // 10**6, "least": LEAST_FREE // 10**6}
        raise UserError([Problem("", "disk_low", {"folder": str(folder), **sizes})])


def shortage(folder: Path) -> int:
    """Return the bytes that the folder's disk lacks of what must stay free; 0 or less where none, or where nobody can say."""
    try:
        return LEAST_FREE - shutil.disk_usage(folder).free
    except OSError:
        # Whoever writes there says what is wrong with it.
        return 0


def _files(folder: Path) -> Iterator[tuple[float, int, Path]]:
    """(last use, bytes, path) of every file there and below."""
    for place, _, names in os.walk(folder):
        for name in names:
            path = Path(place, name)
            # Deleted just now.
            with suppress(OSError):
                state = path.lstat()
                yield state.st_mtime, state.st_size, path


def _remove_empty(folder: Path, since: float, emptied: Container[str]) -> None:
    """Remove empty folders: those that held files a moment ago, and others unless an upload has made them since then."""
    for name, _, _ in os.walk(folder, topdown=False):
        place = Path(name)
        with suppress(OSError):
            if place != folder and (name in emptied or place.stat().st_mtime < since):
                place.rmdir()
