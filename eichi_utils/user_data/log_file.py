"""Write a log file: what the program logs by `logging`, with warnings and tracebacks, and lines written to the file alone.

    [2026-05-22 18:03:11] === FramePack-eichi endframe_ichi: the log begins ===
    [2026-05-22 18:03:40] WARNING eichi_utils.files.disk_cache: ...

A log that cannot be written stops nothing: that is said once on the console.
"""

from __future__ import annotations

import io
import logging
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from logging.handlers import RotatingFileHandler
from pathlib import Path
from types import MappingProxyType

from eichi_utils.files.folders import OutputFolders
from eichi_utils.files.paths import WEBUI, real
from eichi_utils.problems import Problem, Translate, UserError
from eichi_utils.user_data.settings import CHOICES, AppSettings

logger = logging.getLogger(__name__)

# Names of the settings, as in the existing program's file.
ENABLED, FOLDER = "log_enabled", "log_folder"
# Beginnings of log files' names: by mode as in the existing program, and for the command line.
SOURCES = MappingProxyType({"reverse": "endframe_ichi", "forward": "endframe_ichi_f1", "single": "oneframe_ichi"})
COMMAND_LINE = "eichi"
# Format of the time at the beginning of a line.
STAMP = "%Y-%m-%d %H:%M:%S"
# Name of the logger whose records go to the file alone and not to the console.
SAID = "eichi_utils.user_data.log_file.said"
# Largest size of a log file in bytes. One older file is kept, so both together have at most twice as many.
LARGEST = 16 << 20
# Largest number of similar records and of their characters in a period of so many seconds, and of kinds that are counted.
OFTEN, OFTEN_CHARACTERS, PERIOD, KINDS = 60, 32 << 10, 60.0, 256
# Largest number of characters of a record's text, and of its traceback, whose middle is cut out; and of a one-line exception.
LONGEST, EXCEPTION = 16 << 10, 500
# Attribute of a record that says whether it passes.
JUDGED = "eichi_passes"
# Secrets, since logs are sent to others: keys of the hub, names and passwords in addresses such as a proxy's, and those in the
# headers of a request.
SECRETS = (
    re.compile(r"(?P<kept>\bhf_)[A-Za-z0-9]{16,}"),
    re.compile(r"(?P<kept>\b[a-z][a-z0-9+.-]*://)[^\s/@]+(?=@)", re.IGNORECASE),
    re.compile(r"(?P<kept>\bauthorization['\"]?\s*[:=]\s*['\"]?(?:bearer|basic) )[^\s'\"]+", re.IGNORECASE),
)
HIDDEN = r"\g<kept>***"


@dataclass
class Counted:
    """Count the records of one kind that were logged since `began`, and those left out (`left`)."""

    began: float
    count: int = 0
    characters: int = 0
    left: int = 0


class Seldom(logging.Filter):
    """Pass similar records at most `OFTEN` times in a period, with the traceback of the first only.

    The first record of the next period says how many were left out. This keeps the disk from being filled by whoever can make a
    server fail a thousand times a second. Records are similar if they have the same text before its values are put in, up to
    the end of its first line, and an exception from the same place. Several handlers may share the filter: a record is judged,
    and shortened, once.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        super().__init__()
        self._clock = clock
        self._seen: dict[tuple[str, int, str, str], Counted] = {}
        self._guard = threading.RLock()

    def filter(self, record: logging.LogRecord) -> bool:
        """Say whether a record passes, and shorten one that does."""
        if record.name == SAID or hasattr(record, JUDGED):
            return getattr(record, JUDGED, True)
        kind = (record.name, record.levelno, str(record.msg).partition("\n")[0][:100], _place(record))
        with self._guard:
            now = self._clock()
            seen = self._seen.pop(kind, None) or Counted(now)
            if now - seen.began > PERIOD:
                if seen.left:
                    record.msg = f"{record.msg} ({seen.left} more like this one left out)"
                seen = Counted(now)
            self._seen[kind] = seen
            if len(self._seen) > KINDS:
                del self._seen[next(iter(self._seen))]
            passes = seen.count < OFTEN and seen.characters < OFTEN_CHARACTERS
            if passes:
                seen.characters += _shortened(record, whole=not seen.count)
            seen.count += passes
            seen.left += not passes
        setattr(record, JUDGED, passes)
        return passes


def _place(record: logging.LogRecord) -> str:
    """Return the type of a record's exception and the function that raised it, or ""."""
    kind, _, trace = record.exc_info or (None, None, None)
    if kind is None:
        return ""
    frames = [frame for frame, _ in traceback.walk_tb(trace)]
    code = frames[-1].f_code if frames else None
    return f"{kind.__qualname__} {code and (code.co_filename, code.co_firstlineno)}"


def _shortened(record: logging.LogRecord, whole: bool) -> int:
    """Shorten a record's text and traceback, and return their characters. whole: whether its traceback is kept."""
    text = ""
    # The record's handler reports a text that cannot be formatted.
    with suppress(TypeError, ValueError, KeyError):
        text = record.getMessage()
    if len(text) > LONGEST:
        text = record.msg = f"{text[:LONGEST]} ..."
        record.args = ()
    kind, error, _ = record.exc_info or (None, None, None)
    if kind and whole:
        record.exc_text = _cut("".join(traceback.format_exception(error)).rstrip(), LONGEST)
    elif kind:
        record.exc_text = _cut("".join(traceback.format_exception_only(error)).strip(), EXCEPTION)
    return len(text) + len(record.exc_text or "")


def _cut(text: str, most: int) -> str:
    """Return a text without its middle if it has more than `most` characters."""
    return text if len(text) <= most else f"{text[: most // 2]}\n...\n{text[-most // 2 :]}"


class Stamped(logging.Formatter):
    """Put the time before every line, also of a traceback, and remove `SECRETS`; empty lines are left out."""

    def format(self, record: logging.LogRecord) -> str:
        """Return a record's lines, without a line break at the end."""
        stamp = self.formatTime(record, STAMP)
        text = super().format(record)
        for secret in SECRETS:
            text = secret.sub(HIDDEN, text)
        if record.name != SAID:
            text = f"{record.levelname} {record.name}: {text}"
        return "\n".join(f"[{stamp}] {line}" for line in [line for line in text.splitlines() if line.strip()] or [""])


class LogFile(RotatingFileHandler):
    """Write records to a file. A failure is warned of once, and writing is tried again with the next record.

    The file is open only while something is written: each line is on the disk at once, a folder that was moved or deleted
    meanwhile is made again, and another process may rename the file when it is full.
    """

    def __init__(self, path: Path, seldom: Seldom):
        # A lone surrogate in a prompt has no UTF-8.
        super().__init__(path, maxBytes=LARGEST, backupCount=1, encoding="utf-8", errors="backslashreplace", delay=True)
        self.path = path
        self.namer = lambda _: str(path.with_suffix(".old.log"))
        self.setFormatter(Stamped())
        self.addFilter(seldom)
        self._warned = False

    def _open(self) -> io.TextIOWrapper:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return super()._open()

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record and close the file."""
        super().emit(record)
        if self.stream is not None:
            # Writing the record reported a full disk already.
            with suppress(OSError):
                self.stream.close()
            self.stream = None

    def handleError(self, record: logging.LogRecord) -> None:
        """Warn once of a file that cannot be written; errors other than OSError are left to `logging`."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._warned:
            # Set before the warning, which comes to this handler too.
            self._warned = True
            logger.warning("nothing can be written to the log %s: %s", self.path, error.strerror or error)


class Log:
    """Write a log file in a folder while it is on.

    source: the beginning of the files' names. folders: where they may lie. seldom: the filter of repeated records, for other
    handlers too. Any thread may use it. Records come through the root logger, so its level applies.
    """

    def __init__(self, source: str, t: Translate, folders: OutputFolders | None = None):
        self.source, self.t = source, t
        self.folders = folders or OutputFolders(WEBUI, field=FOLDER)
        self.seldom = Seldom()
        self._lock = threading.RLock()
        self._file: LogFile | None = None

    @property
    def path(self) -> Path | None:
        """Return the file that is written, or None while the log is off."""
        return self._file.path if self._file else None

    def folder(self, name: str) -> Path:
        """Return the folder that the setting names, or the usual one if it is empty."""
        return self.folders.of(name.strip() or CHOICES[FOLDER])

    def problem(self, name: str) -> Problem | None:
        """Return why no log can be written to that folder, or None."""
        return self.folders.problem(name.strip() or CHOICES[FOLDER])

    def apply(self, enabled: bool, folder: str) -> None:
        """Write to that folder from now on, or nothing if not `enabled`. Raises UserError; then nothing changes."""
        with self._lock:
            if not enabled:
                self.close()
                return
            if problem := self.problem(folder):
                raise UserError([problem])
            place = real(self.folder(folder))
            if self._file is None or self._file.path.parent != place:
                self.close()
                self._open(place / f"{self.source}_{time.strftime('%Y%m%d_%H%M%S')}.log")

    def begin(self, settings: AppSettings, mode: str) -> tuple[Problem, ...]:
        """Apply the saved settings, and return the problems if that fails; the program goes on without a log then."""
        try:
            self.apply(settings.choice(mode, ENABLED), settings.choice(mode, FOLDER))
        except UserError as error:
            return error.problems
        return ()

    def say(self, text: str) -> None:
        """Write a line to the file alone; without effect while the log is off."""
        with self._lock:
            if self._file:
                self._file.handle(logging.LogRecord(SAID, logging.INFO, "", 0, text, None, None))

    def close(self) -> None:
        """Write the last line of the file and end the log, if it is on."""
        with self._lock:
            if self._file:
                self.say(self.t("story.end", source=self.source))
                logging.getLogger().removeHandler(self._file)
                logging.captureWarnings(False)
                self._file.close()
                self._file = None

    def _open(self, path: Path) -> None:
        self._file = LogFile(path, self.seldom)
        logging.getLogger().addHandler(self._file)
        logging.captureWarnings(True)
        self.say(self.t("story.begin", source=self.source))
