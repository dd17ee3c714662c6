"""What is tidied up at the start and then again and again, beside everything else: unfinished files, old uploads."""

from __future__ import annotations

import logging
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from eichi_utils.files.temporary import remove_abandoned
from eichi_utils.jobs.snapshot import Job
from eichi_utils.problems import UserError
from eichi_utils.requests.request import to_json
from eichi_utils.user_data.passing import purge_passing, shortage
from eichi_utils.user_data.presets import favourites
from eichi_utils.user_data.purge import Results, digits_in, names_in, purge
from eichi_utils.user_data.settings import AppSettings

logger = logging.getLogger(__name__)

# Seconds between two rounds, and between two looks at what passes: a fast network brings gigabytes in a minute. And between two
# looks at how much of the disk is free.
HOUR, MINUTE, SOON = 3600.0, 60.0, 5.0
# Levels below folders of results: users sort them into folders of their own.
RESULT_LEVELS = 8
# Settings, see `settings.CHOICES`, and their least and greatest values.
DAYS, GIGABYTES = "uploads_days", "uploads_gb"
LIMITS: Mapping[str, tuple[float, float]] = MappingProxyType({DAYS: (1, 36_500), GIGABYTES: (0.1, 100_000)})


class Housekeeper:
    """A thread that tidies up now and then. It waits for nobody and nobody for it.

    uploads: folder of kept pictures. passing: gradio's own folder of uploads; None where it belongs to other programs too.
    presets: folder of favourites. results: folders of films. others: further folders where unfinished files may lie.
    """

    def __init__(
        self,
        settings: AppSettings,
        mode: str,
        jobs: Callable[[], Iterable[Job]],
        *,
        uploads: Path,
        presets: Path,
        results: tuple[Path, ...],
        passing: Path | None = None,
        others: tuple[Path, ...] = (),
    ):
        self.settings, self.mode, self.jobs = settings, mode, jobs
        self.uploads, self.presets, self.passing = uploads, presets, passing
        self.results, self.folders = Results(results), (uploads, presets, *others)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, name="eichi-housekeeper", daemon=True)

    def start(self) -> None:
        """Begin the rounds, in a thread that the program's end does not wait for."""
        self._thread.start()

    def close(self) -> None:
        """Begin no further round; one that runs is let go with the program."""
        self._closed.set()

    def _work(self) -> None:
        self.begin()
        since = time.monotonic() - HOUR
        while not self._closed.is_set():
            self.look()
            if time.monotonic() - since >= HOUR:
                since = time.monotonic()
                self.round()
            self._wait()

    def _wait(self) -> None:
        """Wait for a minute, or until the passing files' disk has become too full."""
        until = time.monotonic() + MINUTE
        full = self._is_full()
        while (left := until - time.monotonic()) > 0 and not self._closed.wait(min(left, SOON)):
            before, full = full, self._is_full()
            # One that has stayed full has nothing left there to delete.
            if full and not before:
                return

    def _is_full(self) -> bool:
        return self.passing is not None and shortage(self.passing) > 0

    def begin(self) -> int:
        """Remove the unfinished files that earlier runs have left. Returns how many."""
        results = self.results.folders
        # While a folder is not there, whether it can be written is tried above it (`paths.is_writable`). Other programs' files
        # lie there too, and in the temporary folder, where ZIPs are unpacked; so nothing below is looked through.
        above = [parent for folder in (*self.folders, *results) for parent in folder.parents[:2]]
        removed = remove_abandoned(self.folders) + remove_abandoned(results, RESULT_LEVELS)
        return removed + remove_abandoned([Path(tempfile.gettempdir()), *above], 0)

    def look(self) -> int:
        """Hold the passing files below their bound. Returns how many were deleted."""
        return purge_passing(self.passing) if self.passing else 0

    def round(self) -> int:
        """Delete the uploads that nobody needs. Returns how many."""
        deleted = self.look()
        try:
            days, gigabytes = (max(LIMITS[name][0], float(self.settings.choice(self.mode, name))) for name in (DAYS, GIGABYTES))
        except UserError as error:
            # Settings that cannot be read now may say something else.
            logger.warning("no uploads are deleted: %s", error)
            return deleted
        deleted += purge(self.uploads, days, gigabytes, self.needed)
        if deleted:
            logger.info("%d uploads that nobody used any more were deleted", deleted)
        return deleted

    def needed(self) -> frozenset[str] | None:
        """The names of files that are needed; None where not everything that may name some can be read."""
        results = self.results.names()
        if results is None:
            return None
        try:
            kept, _ = favourites(self.presets).read()
            # Also of one that was damaged and set aside, whose favourites somebody may bring back.
            digits = frozenset().union(*(digits_in(file) for file in self.presets.glob("*.json*")))
        except (UserError, OSError):
            return None
        documents: Iterator[Mapping[str, Any]] = (to_json(job.request) for job in self.jobs())
        return results.union(digits, *map(names_in, documents), *map(names_in, kept.values()))
