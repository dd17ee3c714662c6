"""Keep a folder of temporary files (gradio's uploads, files to download) below a size, and some of its disk free.

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

# Largest size and number of all files there; many times what a full form of large pictures takes.
MOST_BYTES, MOST_FILES = 4 * GB, 5_000
# Seconds for which files stay, as a page may be about to use them. They are deleted earlier if there is more than twice the
# allowed size or number, or if less than half of `LEAST_FREE` is free.
SAFE_SECONDS = 600.0
# Names of files that a broken upload leaves in the folder itself; Python chose them (gradio 6.31 writes there, then moves the
# file).
BROKEN = re.compile(r"tmp[a-z0-9_]{8}")
BROKEN_SECONDS = 600.0
# Bytes of the disk that stay free for everything else that is written there: films, settings, the log.
LEAST_FREE = 2 * GB


def purge_passing(
    folder: Path, seconds: float = DAY_SECONDS, most_bytes: float = MOST_BYTES, most_files: int = MOST_FILES
) -> int:
    """Delete files not used for `seconds`, then the oldest until size, number and free space are within limits.

    Returns the number of deleted files.
    """
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
    """Raise UserError if less than `LEAST_FREE` bytes of the folder's disk are free. The folder need not exist."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if (short := shortage(folder)) > 0:
        sizes = {"free": (LEAST_FREE - short) // 10**6, "least": LEAST_FREE // 10**6}
        raise UserError([Problem("", "disk_low", {"folder": str(folder), **sizes})])


def shortage(folder: Path) -> int:
    """Return the bytes that are missing to `LEAST_FREE` on the folder's disk; 0 or less if none are, or if that is unknown."""
    try:
        return LEAST_FREE - shutil.disk_usage(folder).free
    except OSError:
        # Writing there will report what is wrong with the disk.
        return 0


def _files(folder: Path) -> Iterator[tuple[float, int, Path]]:
    """Yield (last use, bytes, path) of every file in the folder and below."""
    for place, _, names in os.walk(folder):
        for name in names:
            path = Path(place, name)
            # The file may have been deleted since it was listed.
            with suppress(OSError):
                state = path.lstat()
                yield state.st_mtime, state.st_size, path


def _remove_empty(folder: Path, since: float, emptied: Container[str]) -> None:
    """Remove empty folders: those whose files were deleted (`emptied`), and others that were last changed before `since`.

    A newer empty folder may be one that an upload has just made.
    """
    for name, _, _ in os.walk(folder, topdown=False):
        place = Path(name)
        with suppress(OSError):
            if place != folder and (name in emptied or place.stat().st_mtime < since):
                place.rmdir()
