"""Files of the user's that were found damaged and set aside: told on the page that is loaded next, whoever found them.

Who reads a file first may speak to no user: the start of the program, the end of a film, another program.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path

from eichi_utils.problems import Problem
from eichi_utils.user_data.settings import FIELD, PARTLY

# What the name of such a file holds, followed by when that was (see `settings.JsonFile`).
SIGN, STAMP, STAMP_LENGTH = ".damaged-", "%Y%m%d_%H%M%S", 15
# What was set aside so long before the pages were made, while the program started, is news too.
STARTING_SECONDS = 300.0


class DamagedFiles:
    """folders: where to look. Each file is told once, on one page."""

    def __init__(self, *folders: Path):
        self._folders = folders
        self._since = time.time() - STARTING_SECONDS
        self._told: set[str] = set()
        self._lock = threading.Lock()

    def news(self, notes: Sequence[Problem] = ()) -> list[Problem]:
        """Return what was set aside and not told yet. notes: what was said of such files just now, which come first."""
        told = [note for note in notes if "kept" in note.values]
        found = [path for folder in self._folders for path in sorted(folder.glob(f"*{SIGN}*"))]
        with self._lock:
            self._told |= {note.values["kept"] for note in told}
            new = [path for path in found if path.name not in self._told and _set_aside_at(path) >= self._since]
            self._told |= {path.name for path in new}
        return told + [_problem(path) for path in new]


def _problem(path: Path) -> Problem:
    """Return what to tell of a file that was set aside."""
    values = {"file": str(path.with_name(path.name.partition(SIGN)[0])), "kept": path.name}
    if PARTLY in path.name.partition(SIGN)[2]:
        return Problem(FIELD, "settings_partly_damaged", values)
    return Problem(FIELD, "settings_damaged", values)


def _set_aside_at(path: Path) -> float:
    """Return when by the file's name, in seconds since the epoch; 0 for a name that does not say."""
    try:
        return time.mktime(time.strptime(path.name.partition(SIGN)[2][:STAMP_LENGTH], STAMP))
    except (ValueError, OverflowError):
        return 0.0
