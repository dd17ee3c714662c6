"""Delete uploads that nobody needs any more: by their age, and if all together take too much room, the oldest first.

Files stay that are named by a request of this run of the program, a saved favourite, or the metadata of a result in the output
folders.
"""

from __future__ import annotations

import json
import logging
import os
import re
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eichi_utils.exchange.metadata import KEY, read_document
from eichi_utils.exchange.named_files import FILES, bare_name
from eichi_utils.problems import UserError
from eichi_utils.requests.file_fields import map_files
from lora_utils.files import LoraError, read_header

logger = logging.getLogger(__name__)

DAY_SECONDS = 24 * 3600
GB = 10**9
# Names of copies that `files.copies.keep` made, and of last frames that became pictures of a form; other files are not ours to
# delete.
OURS = re.compile(r"[0-9a-f]{12}_.*|.+_last\.png", re.DOTALL)
DIGITS = 12
# Largest number of results that are read in one round, some milliseconds each. If there are more, it is unknown what is needed,
# and nothing is deleted.
MOST_READ = 5_000
RESULTS = (".mp4", ".png", ".safetensors")
# Part of the name of a folder with a section's frames, which all hold the same request, so one is read.
FRAMES = "_frames_section"


def names_in(document: Any) -> frozenset[str]:
    """Return what identifies the files that a request's JSON document names: the first digits of the SHA-256, or the name."""
    if not isinstance(document, Mapping):
        return frozenset()
    entries = document.get(FILES)
    found: set[str] = set()

    def note(where: str, path: str) -> str:
        entry = entries.get(where) if isinstance(entries, Mapping) else None
        digest = entry.get("sha256") if isinstance(entry, Mapping) else None
        found.add(digest[:DIGITS] if isinstance(digest, str) else bare_name(path))
        return path

    map_files(document, note)
    return frozenset(found)


def digits_in(file: Path) -> frozenset[str]:
    """Return all that may be the first digits of kept files' names in a file, which may be damaged. Raises OSError."""
    return frozenset(found.decode() for found in re.findall(rb"[0-9a-f]{12}(?=_)", file.read_bytes()))


@dataclass
class Results:
    """Collect the files that the results in some folders name. A result is read once, and again after it was changed."""

    folders: tuple[Path, ...]
    most: int = MOST_READ
    _known: dict[str, tuple[float, frozenset[str]]] = field(default_factory=dict)

    def names(self) -> frozenset[str] | None:
        """Return the names in all results, or None while more results are unread than one round may read."""
        known, unread = {}, 0
        for path, changed in self._files():
            entry = self._known.get(path)
            if entry is None or entry[0] != changed:
                unread += 1
                if unread > self.most:
                    continue
                entry = changed, names_in(_document(Path(path)))
            known[path] = entry
        self._known = known
        return None if unread > self.most else frozenset().union(*(names for _, names in known.values()))

    def _files(self) -> Iterator[tuple[str, float]]:
        """Yield (path, time of the last change) of every result in the folders and below."""
        for folder in self.folders:
            for place, below, names in os.walk(folder):
                below[:] = [name for name in below if not name.startswith(".")]
                names = sorted(name for name in names if name.lower().endswith(RESULTS) and not name.startswith("."))
                for name in names[:1] if FRAMES in Path(place).name else names:
                    path = Path(place, name)
                    # The file may have been deleted since it was listed, or be a broken link.
                    with suppress(OSError):
                        yield str(path), path.stat().st_mtime


def _document(path: Path) -> Any:
    try:
        if path.suffix.lower() == ".safetensors":
            return json.loads(read_header(path).metadata.get(KEY, "null"))
        return read_document(path)
    except (UserError, LoraError, ValueError, RecursionError):
        return None


def purge(folder: Path, days: float, gigabytes: float, needed: Callable[[], frozenset[str] | None]) -> int:
    """Delete files not used for so many days, then the oldest until the rest takes at most so many gigabytes.

    needed: returns what identifies the files that stay (`names_in`), or None if that is unknown, and nothing is deleted then.
    It takes time and is called only if there is something to delete. Files used within the last day are not deleted for lack of
    room, since a form may hold them. Returns the number of deleted files.
    """
    now, files, deleted = time.time(), _kept_files(folder), 0
    total, most = sum(size for _, size, _ in files), gigabytes * GB
    oldest = now - files[0][0] if files else 0.0
    if oldest <= days * DAY_SECONDS and (total <= most or oldest <= DAY_SECONDS):
        return 0
    names = needed()
    if names is None:
        return 0
    for used, size, path in files:
        age, is_needed = now - used, bool({path.name, path.name[:DIGITS], path.name[DIGITS + 1 :]} & names)
        unwanted = age > days * DAY_SECONDS or (total > most and age > DAY_SECONDS)
        if unwanted and not is_needed and delete(path, used):
            total, deleted = total - size, deleted + 1
    return deleted


def _kept_files(folder: Path) -> list[tuple[float, int, Path]]:
    """Return (last use, bytes, path) of the files that this program put there, the longest unused first."""
    found, paths = [], []
    with suppress(OSError):
        paths = list(folder.iterdir())
    for path in paths:
        with suppress(OSError):
            state = path.lstat()
            if OURS.fullmatch(path.name) and stat.S_ISREG(state.st_mode):
                found.append((state.st_mtime, state.st_size, path))
    return sorted(found)


def delete(path: Path, used: float) -> bool:
    """Delete a file whose last use was at `used`. Returns False if it was used since, or cannot be deleted."""
    try:
        # The file was used again since it was listed.
        if path.lstat().st_mtime != used:
            return False
        path.unlink()
    except OSError as error:
        logger.info("%s stays: %s", path, error)
        return False
    return True
