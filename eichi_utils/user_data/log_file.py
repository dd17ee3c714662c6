"""A log in a file: what the program logs by `logging`, warnings and tracebacks included, and what is said to it.

    [2026-05-22 18:03:11] === FramePack-eichi endframe_ichi: the log begins ===
    [2026-05-22 18:03:40] WARNING eichi_utils.files.disk_cache: ...

A log never fails what it tells of: where nothing more can be written, that is said once on the console.
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

# The settings, called as in the existing program's file.
ENABLED, FOLDER = "log_enabled", "log_folder"
# What the existing program calls its pages in the names of log files, by mode; and the command line.
SOURCES = MappingProxyType({"reverse": "endframe_ichi", "forward": "endframe_ichi_f1", "single": "oneframe_ichi"})
COMMAND_LINE = "eichi"
# Of a line.
STAMP = "%Y-%m-%d %H:%M:%S"
# What says something to the log alone, and not to the console.
SAID = "eichi_utils.user_data.log_file.said"
# Bytes of a file, of which an older one is kept; both together are no more than twice as many.
LARGEST = 16 << 20
# How often, and with how many characters, the same thing is logged in so many seconds; and kinds of things that are counted.
OFTEN, OFTEN_CHARACTERS, PERIOD, KINDS = 60, 32 << 10, 60.0, 256
# Characters of one record's text, and of its traceback, of which beginning and end are kept; and of an exception in a line.
LONGEST, EXCEPTION = 16 << 10, 500
# On a record: whether it passes.
JUDGED = "eichi_passes"
# What nobody may know to whom a log is sent: keys of the hub, names and passwords in addresses such as a proxy's, and those in
# the head of a request.
SECRETS = (
    re.compile(r"(?P<kept>\bhf_)[A-Za-z0-9]{16,}"),
    re.compile(r"(?P<kept>\b[a-z][a-z0-9+.-]*://)[^\s/@]+(?=@)", re.IGNORECASE),
    re.compile(r"(?P<kept>\bauthorization['\"]?\s*[:=]\s*['\"]?(?:bearer|basic) )[^\s'\"]+", re.IGNORECASE),
)
HIDDEN = r"\g<kept>***"


@dataclass
class Counted:
    """What was logged of one kind since `began`, and how many records were left out."""

    began: float
    count: int = 0
    characters: int = 0
    left: int = 0


class Seldom(logging.Filter):
    """Lets the same be logged `OFTEN` times in a period, its traceback the first time only, and says with the first of the
    next how many it has left out.

    Whoever can make a server fail can do it a thousand times a second, and would fill the disk. The same is what has the same
    text before its values are put in, up to its first line's end, and was raised at the same place. Several handlers may have
    it: a record is judged, and shortened, once.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        super().__init__()
        self._clock = clock
        self._seen: dict[tuple[str, int, str, str], Counted] = {}
        self._guard = threading.RLock()

    def filter(self, record: logging.LogRecord) -> bool:
        """Say whether a record passes, and shorten what it says where it does."""
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
    """Where a record's exception was raised, and what it is."""
    kind, _, trace = record.exc_info or (None, None, None)
    if kind is None:
        return ""
    frames = [frame for frame, _ in traceback.walk_tb(trace)]
    code = frames[-1].f_code if frames else None
    return f"{kind.__qualname__} {code and (code.co_filename, code.co_firstlineno)}"


def _shortened(record: logging.LogRecord, whole: bool) -> int:
    """Shorten a record to what is written of it, and return its characters. whole: whether its traceback is written."""
    text = ""
    # What cannot be formatted its handler says.
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
    """A text without its middle, if it is long."""
    return text if len(text) <= most else f"{text[: most // 2]}\n...\n{text[-most // 2 :]}"


class Stamped(logging.Formatter):
    """Gives every line the time, also of a traceback, and takes `SECRETS` out; empty lines are left out."""

    def format(self, record: logging.LogRecord) -> str:
        """Return a record's lines, without the last one's end."""
        stamp = self.formatTime(record, STAMP)
        text = super().format(record)
        for secret in SECRETS:
            text = secret.sub(HIDDEN, text)
        if record.name != SAID:
            text = f"{record.levelname} {record.name}: {text}"
        return "\n".join(f"[{stamp}] {line}" for line in [line for line in text.splitlines() if line.strip()] or [""])


class LogFile(RotatingFileHandler):
    """Writes records to a file. What goes wrong is warned of once, and tried again with the next record.

    The file is open only while something is written: each line is on the disk at once, a folder that was moved or deleted
    meanwhile is made again, and another process may give the file its older name.
    """

    def __init__(self, path: Path, seldom: Seldom):
        # Half a surrogate pair in somebody's prompt has no UTF-8.
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
        """Write a record, and close the file."""
        super().emit(record)
        if self.stream is not None:
            # What a full disk did not take was said when it was written.
            with suppress(OSError):
                self.stream.close()
            self.stream = None

    def handleError(self, record: logging.LogRecord) -> None:
        """Warn, once, of a file that cannot be written; other errors are those of who has logged."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._warned:
            # Set before, since the warning comes here too.
            self._warned = True
            logger.warning("nothing can be written to the log %s: %s", self.path, error.strerror or error)


class Log:
    """Writes to a file of a folder while it is on. source: what the files' names begin with. folders: where they may lie.
    seldom: what keeps the same from being logged without end, for other handlers too.

    Any thread may use it. What is logged elsewhere comes through the root logger, and so without what that leaves out.
    """

    def __init__(self, source: str, t: Translate, folders: OutputFolders | None = None):
        self.source, self.t = source, t
        self.folders = folders or OutputFolders(WEBUI, field=FOLDER)
        self.seldom = Seldom()
        self._lock = threading.RLock()
        self._file: LogFile | None = None

    @property
    def path(self) -> Path | None:
        """Return the file that is written now; None while the log is off."""
        return self._file.path if self._file else None

    def folder(self, name: str) -> Path:
        """Return the folder that the setting means; without a name, the usual one."""
        return self.folders.of(name.strip() or CHOICES[FOLDER])

    def problem(self, name: str) -> Problem | None:
        """Return why no log can be written to that folder, or None."""
        return self.folders.problem(name.strip() or CHOICES[FOLDER])

    def apply(self, enabled: bool, folder: str) -> None:
        """Write to that folder from now on, or not at all. Raises UserError; then all stays as it was."""
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
        """Do what was saved, and return why it cannot be done, which keeps nothing else from its work."""
        try:
            self.apply(settings.choice(mode, ENABLED), settings.choice(mode, FOLDER))
        except UserError as error:
            return error.problems
        return ()

    def say(self, text: str) -> None:
        """Write a line to the file alone; nothing where the log is off."""
        with self._lock:
            if self._file:
                self._file.handle(logging.LogRecord(SAID, logging.INFO, "", 0, text, None, None))

    def close(self) -> None:
        """Write the last line of the file, if one is written, and leave it."""
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
