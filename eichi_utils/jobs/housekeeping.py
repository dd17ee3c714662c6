"""Delete unfinished files and unused uploads, at the program's start and then regularly, in a thread of its own."""

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

# Seconds between two rounds, between two looks at gradio's folder of uploads (a fast network fills it with gigabytes in a
# minute), and between two looks at the free space of its disk.
HOUR, MINUTE, SOON = 3600.0, 60.0, 5.0
# Levels below a folder of results that are searched for unfinished files: users sort results into folders of their own.
RESULT_LEVELS = 8
# Names of settings (`settings.CHOICES`), and their least and greatest values.
DAYS, GIGABYTES = "uploads_days", "uploads_gb"
LIMITS: Mapping[str, tuple[float, float]] = MappingProxyType({DAYS: (1, 36_500), GIGABYTES: (0.1, 100_000)})


class Housekeeper:
    """Run the thread that deletes files; it blocks no other thread, and none waits for it.

    settings, mode: where limits of uploads are set. jobs: returns the jobs, whose requests name uploads. uploads: folder of
    kept pictures. passing: gradio's own folder of uploads; None if other programs use it too. presets: folder of favourites.
    results: folders of films. others: further folders where unfinished files may lie.
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
        """Start the thread; the program's end does not wait for it."""
        self._thread.start()

    def close(self) -> None:
        """Begin no further round; one that is running ends with the program."""
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
        """Wait for a minute, or until the disk of gradio's uploads has become too full."""
        until = time.monotonic() + MINUTE
        full = self._is_full()
        while (left := until - time.monotonic()) > 0 and not self._closed.wait(min(left, SOON)):
            before, full = full, self._is_full()
            # If the disk was full before too, what can be deleted there is already gone.
            if full and not before:
                return

    def _is_full(self) -> bool:
        return self.passing is not None and shortage(self.passing) > 0

    def begin(self) -> int:
        """Remove the unfinished files that earlier runs of the program left, and return how many."""
        results = self.results.folders
        # Whether a missing folder could be written is tried in the folders above it (`paths.is_writable`), and ZIPs are
        # unpacked in the temporary folder. Other programs use these folders too, so their subfolders are not searched.
        above = [parent for folder in (*self.folders, *results) for parent in folder.parents[:2]]
        removed = remove_abandoned(self.folders) + remove_abandoned(results, RESULT_LEVELS)
        return removed + remove_abandoned([Path(tempfile.gettempdir()), *above], 0)

    def look(self) -> int:
        """Delete from gradio's folder of uploads what exceeds its limit, and return how many files."""
        return purge_passing(self.passing) if self.passing else 0

    def round(self) -> int:
        """Delete the uploads that nothing needs and that are too old or take too much room; return how many files, with `look`.

        The limits are the settings'; if these cannot be read, no uploads are deleted.
        """
        deleted = self.look()
        try:
            days, gigabytes = (max(LIMITS[name][0], float(self.settings.choice(self.mode, name))) for name in (DAYS, GIGABYTES))
        except UserError as error:
            # Unreadable settings may ask to keep more than the default, so nothing is deleted.
            logger.warning("no uploads are deleted: %s", error)
            return deleted
        deleted += purge(self.uploads, days, gigabytes, self.needed)
        if deleted:
            logger.info("%d uploads that nobody used any more were deleted", deleted)
        return deleted

    def needed(self) -> frozenset[str] | None:
        """Return the names of uploads that results, jobs or favourites need; None if one of these sources cannot be read."""
        results = self.results.names()
        if results is None:
            return None
        try:
            kept, _ = favourites(self.presets).read()
            # Files of favourites that were set aside as damaged count too: somebody may repair them.
            digits = frozenset().union(*(digits_in(file) for file in self.presets.glob("*.json*")))
        except (UserError, OSError):
            return None
        documents: Iterator[Mapping[str, Any]] = (to_json(job.request) for job in self.jobs())
        return results.union(digits, *map(names_in, documents), *map(names_in, kept.values()))
