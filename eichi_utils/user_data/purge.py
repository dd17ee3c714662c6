"""Uploads that nobody needs any more are deleted: by their age, and where all together take too much room, the oldest first.

What a request of this program's run, a saved favourite or the metadata of a result in the output folders names stays.
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
# Copies that `kept.keep` has named, and last frames that became pictures of a form; other files are somebody's own.
OURS = re.compile(r"[0-9a-f]{12}_.*|.+_last\.png", re.DOTALL)
DIGITS = 12
# Results that are read in one round, some milliseconds each. While there are more, nobody knows what is needed.
MOST_READ = 5_000
RESULTS = (".mp4", ".png", ".safetensors")
# The frames of one section all say the same.
FRAMES = "_frames_section"


def names_in(document: Any) -> frozenset[str]:
    """Return what tells the files that a request's JSON document names: the first digits of their content, else their names."""
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
    """Return what may be the beginnings of kept files' names in a file of any kind, also a damaged one. Raises OSError."""
    return frozenset(found.decode() for found in re.findall(rb"[0-9a-f]{12}(?=_)", file.read_bytes()))


@dataclass
class Results:
    """The names of files that the results in some folders name. A result is read once, and again when it was changed."""

    folders: tuple[Path, ...]
    most: int = MOST_READ
    _known: dict[str, tuple[float, frozenset[str]]] = field(default_factory=dict)

    def names(self) -> frozenset[str] | None:
        """Return them all; None while there are more unread results than one round may read."""
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
        """(path, time of the last change) of every result in the folders and below."""
        for folder in self.folders:
            for place, below, names in os.walk(folder):
                below[:] = [name for name in below if not name.startswith(".")]
                names = sorted(name for name in names if name.lower().endswith(RESULTS) and not name.startswith("."))
                for name in names[:1] if FRAMES in Path(place).name else names:
                    path = Path(place, name)
                    # Deleted just now, or a link to nowhere.
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
    """Delete what was not used for so many days, and then the oldest until the rest takes so much room. Returns how many.

    needed: what tells the files that stay (`names_in`), None where nobody knows; it takes time, and is asked only if there is
    any to delete.
    What was used today stays too: a form may hold it.
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
    """(last use, bytes, path) of the files that this program has put there, what was used longest ago first."""
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
    """Delete a file that was last used then; False if it stays."""
    try:
        # Used again since it was looked at.
        if path.lstat().st_mtime != used:
            return False
        path.unlink()
    except OSError as error:
        logger.info("%s stays: %s", path, error)
        return False
    return True
