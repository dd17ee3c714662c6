"""Report the user's files that were found damaged and set aside, on the page that is loaded next.

The code that finds a damaged file often has no page to report it on: the start of the program, the end of a film, the command
line.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path

from eichi_utils.problems import Problem
from eichi_utils.user_data.settings import FIELD, PARTLY

# The mark in the name of a file that was set aside, followed by the local time of that (see `settings.JsonFile`).
SIGN, STAMP, STAMP_LENGTH = ".damaged-", "%Y%m%d_%H%M%S", 15
# Files that were set aside at most so many seconds before the pages were built, while the program started, are reported too.
STARTING_SECONDS = 300.0


class DamagedFiles:
    """Find files that were set aside, and report each of them once, on one page. folders: where to look. Thread-safe."""

    def __init__(self, *folders: Path):
        self._folders = folders
        self._since = time.time() - STARTING_SECONDS
        self._told: set[str] = set()
        self._lock = threading.Lock()

    def news(self, notes: Sequence[Problem] = ()) -> list[Problem]:
        """Return a problem for each file that was set aside and not reported yet.

        notes: problems that the caller has just found; those about files set aside come first and count as reported.
        """
        told = [note for note in notes if "kept" in note.values]
        found = [path for folder in self._folders for path in sorted(folder.glob(f"*{SIGN}*"))]
        with self._lock:
            self._told |= {note.values["kept"] for note in told}
            new = [path for path in found if path.name not in self._told and _set_aside_at(path) >= self._since]
            self._told |= {path.name for path in new}
        return told + [_problem(path) for path in new]


def _problem(path: Path) -> Problem:
    """Return the problem that reports a file that was set aside."""
    values = {"file": str(path.with_name(path.name.partition(SIGN)[0])), "kept": path.name}
    if PARTLY in path.name.partition(SIGN)[2]:
        return Problem(FIELD, "settings_partly_damaged", values)
    return Problem(FIELD, "settings_damaged", values)


def _set_aside_at(path: Path) -> float:
    """Return the time in the name of a file that was set aside, in seconds since the epoch; 0 if it has none."""
    try:
        return time.mktime(time.strptime(path.name.partition(SIGN)[2][:STAMP_LENGTH], STAMP))
    except (ValueError, OverflowError):
        return 0.0
