"""Keep settings in JSON files that survive crashes, other programs and newer versions, and read the program's own settings.

A change is made under a lock, to the newest content, and written to a new file that replaces the old one: nobody's keys are
lost. A file that cannot be understood is renamed and reported, never overwritten.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import filelock

from eichi_utils.exchange.legacy import SETTINGS_BLOCKS, migrated
from eichi_utils.exchange.metadata import KEY
from eichi_utils.files.paths import SETTINGS, place, real, written_atomically
from eichi_utils.files.safe_reading import MOST_BYTES, UnsafeError, check_value, parse_json_parts, read_bytes
from eichi_utils.models.requirements import RESERVE_GB
from eichi_utils.problems import Problem, UserError
from eichi_utils.requests.transfer import usable

logger = logging.getLogger(__name__)

FIELD = "settings"
# Ending of the new name of a damaged file whose intact part stays in use.
PARTLY = "-partly"
# Seconds to wait for a lock. A file is locked for milliseconds, so a longer wait means that a process hangs.
WAIT_SECONDS = 10.0
# The existing program's only block, before it had one for each page.
OLDEST_BLOCK = "app_settings"
# Longest document in characters that is written with indents: json's encoder for indents is written in Python, and takes half a
# second for half a megabyte that is nested 60 levels deep.
MOST_INDENTED = 100_000
PROGRAM = "program"
# Keys of the existing program outside of its blocks.
SHARED = ("output_folder", "input_folder", "reference_folder")
LOGS = "log_settings"
LOG_KEYS = {"log_enabled": bool, "log_folder": str}
# Settings of the program that no request has, with their defaults. reserve_gb: GiB of the card left to others. uploads_days,
# uploads_gb: longest time and largest size for pictures that nothing names any more.
CHOICES: Mapping[str, Any] = MappingProxyType(
    {
        "save_settings_on_start": False,
        "alarm_on_completion": True,
        "log_enabled": False,
        "log_folder": "logs",
        "reserve_gb": RESERVE_GB,
        "uploads_days": 30.0,
        "uploads_gb": 10.0,
    }
)

Document = dict[str, Any]


@dataclass(frozen=True)
class JsonFile:
    """Read and change a JSON object in a file. lists: keys whose values must be lists if they are there."""

    path: Path
    lists: tuple[str, ...] = ()
    wait: float = WAIT_SECONDS

    def read(self) -> tuple[Document, tuple[Problem, ...]]:
        """Return the content, {} if there is no file, and a note if a damaged file was set aside."""
        if not self.path.exists():
            return {}, ()
        # No lock can be made, and none is needed, where nobody may write.
        with self._locked() if os.access(self.path.parent, os.W_OK) else nullcontext():
            return self._load()

    def update(self, change: Callable[[Document], None]) -> tuple[Problem, ...]:
        """Change the newest content in place and return the notes of `read`.

        Nothing is written if `change` raises or changes nothing. Raises UserError if the file cannot be written.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError([self._not_written(error)]) from None
        with self._locked():
            document, notes = self._load()
            before = _text(document)
            change(document)
            try:
                # A document beyond the limits of reading would be lost with everything in it.
                check_value(document)
                text = _text(document)
            except ValueError as error:
                raise UserError([self._refused(str(error))]) from None
            if len(text) > MOST_BYTES // 4:
                raise UserError([self._refused(f"it would have more than {MOST_BYTES // 4 // 2**20} MB")])
            if text != before:
                self._write(text)
        return notes

    @contextmanager
    def _locked(self) -> Iterator[None]:
        lock = filelock.FileLock(self.path.with_name(f".{self.path.name}.lock"), timeout=self.wait)
        try:
            lock.acquire()
        except filelock.Timeout:
            raise UserError([Problem(FIELD, "settings_locked", {"file": str(self.path)})]) from None
        except OSError as error:
            raise UserError([self._not_written(error)]) from None
        try:
            yield
        finally:
            lock.release()

    def _load(self) -> tuple[Document, tuple[Problem, ...]]:
        try:
            data = read_bytes(self.path)
        except FileNotFoundError:
            return {}, ()
        except OSError as error:
            raise UserError([self._unreadable(error.strerror or str(error))]) from None
        except UnsafeError as error:
            raise UserError([self._unreadable(str(error))]) from None
        if not data.strip():
            return {}, ()
        try:
            document, damaged = parse_json_parts(data)
        except ValueError:
            document, damaged = None, True
        if not isinstance(document, dict) or not all(isinstance(document.get(name, []), list) for name in self.lists):
            return {}, (Problem(FIELD, "settings_damaged", {"file": str(self.path), "kept": self._set_aside()}),)
        if not damaged:
            return document, ()
        try:
            # The intact part replaces the file, so that the damage is reported once.
            kept = self._set_aside(PARTLY)
            self._write(_text(document))
        except UserError as error:
            return document, error.problems
        return document, (Problem(FIELD, "settings_partly_damaged", {"file": str(self.path), "kept": kept}),)

    def _set_aside(self, ending: str = "") -> str:
        """Rename the file and return its new name. ending: of the new name. Raises UserError."""
        stamp = time.strftime("%Y%m%d_%H%M%S") + ending
        number, target = 1, self.path.with_name(f"{self.path.name}.damaged-{stamp}")
        while target.exists():
            number, target = number + 1, self.path.with_name(f"{self.path.name}.damaged-{stamp}-{number}")
        try:
            self.path.rename(target)
        except OSError as error:
            raise UserError([self._unreadable(error.strerror or str(error))]) from None
        # The first reader gets the note, and that may be one that tells no user.
        logger.warning("%s was damaged and is kept as %s", self.path, target.name)
        return target.name

    def _write(self, text: str) -> None:
        try:
            # Replaces the file that a link leads to, not the link.
            with written_atomically(real(self.path), durable=True) as temporary:
                temporary.write_text(text, encoding="utf-8")
        except OSError as error:
            raise UserError([self._not_written(error)]) from None

    def _unreadable(self, reason: str) -> Problem:
        return Problem(FIELD, "settings_unreadable", {"file": str(self.path), "reason": reason})

    def _not_written(self, error: OSError) -> Problem:
        return self._refused(error.strerror or str(error))

    def _refused(self, reason: str) -> Problem:
        return Problem(FIELD, "settings_not_written", {"file": str(self.path), "reason": reason})


class AppSettings:
    """Keep what the user saved as settings: a block of request fields for each mode, and values of the whole program.

    They are under our own key in the existing program's file. Its own blocks are read while ours are missing, and never
    changed. Only its settings of logs belong to no block, and are changed in place.
    """

    def __init__(self, file: JsonFile | None = None):
        self.file = file or JsonFile(place(SETTINGS) / "app_settings.json")

    def fields(self, mode: str) -> tuple[dict[str, Any], tuple[Problem, ...]]:
        """Return the saved request fields of a mode in JSON form, and notes on what was not understood."""
        document, notes = self.file.read()
        own = _block(_block(document, KEY), mode)
        if own or mode in _block(document, KEY):
            fields, bad = usable(mode, own)
            return fields, (*notes, *bad)
        found = migrated(mode, _old_block(document, mode))
        return dict(found.fields), (*notes, *found.notes)

    def save_fields(self, mode: str, fields: Mapping[str, Any]) -> tuple[Problem, ...]:
        """Save request fields (JSON form) of a mode; other saved fields stay."""
        return self._save(mode, fields)

    def reset_fields(self, mode: str) -> tuple[Problem, ...]:
        """Forget the saved fields of a mode, also those of the existing program."""
        return self.file.update(lambda document: _own(document).update({mode: {}}))

    def program(self, mode: str) -> dict[str, Any]:
        """Return the program's settings for a mode's page, language-free, by the existing program's names."""
        document, _ = self.file.read()
        logs = _block(document, LOGS)
        shared = {name: document[name] for name in SHARED if isinstance(document.get(name), str) and document[name].strip()}
        logs = {name: logs[name] for name, kind in LOG_KEYS.items() if isinstance(logs.get(name), kind)}
        old = migrated(mode, _old_block(document, mode)).program
        return {**old, **shared, **_block(_block(document, KEY), PROGRAM), **logs}

    def choice(self, mode: str, name: str) -> Any:
        """Return one of `CHOICES` for a mode's page: the saved value if it has the right type, else the default."""
        usual, saved = CHOICES[name], self.program(mode).get(name)
        if isinstance(usual, float):
            # The limits exclude NaN and infinity.
            fits = isinstance(saved, (int, float)) and not isinstance(saved, bool) and 0 <= saved < math.inf
        else:
            fits = isinstance(saved, type(usual)) and saved != ""
        return saved if fits else usual

    def save_program(self, values: Mapping[str, Any]) -> tuple[Problem, ...]:
        """Save settings of the program; others stay."""

        def change(document: Document) -> None:
            logs = {name: value for name, value in values.items() if name in LOG_KEYS}
            others = {name: value for name, value in values.items() if name not in LOG_KEYS}
            if logs:
                document[LOGS] = {**_block(document, LOGS), **logs}
            if others:
                _add(document, PROGRAM, others)

        return self.file.update(change)

    def _save(self, name: str, values: Mapping[str, Any]) -> tuple[Problem, ...]:
        return self.file.update(lambda document: _add(document, name, values))


def _add(document: Document, name: str, values: Mapping[str, Any]) -> None:
    own = _own(document)
    own[name] = {**_block(own, name), **values}


def _own(document: Document) -> Document:
    own = document.setdefault(KEY, {})
    if not isinstance(own, dict):
        own = document[KEY] = {}
    return own


def _block(document: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    block = document.get(name)
    return block if isinstance(block, dict) else {}


def _old_block(document: Mapping[str, Any], mode: str) -> Mapping[str, Any]:
    name = SETTINGS_BLOCKS[mode]
    return _block(document, OLDEST_BLOCK if mode == "reverse" and name not in document else name)


def _text(document: Document) -> str:
    """Return a document as JSON text, one line per value unless it is longer than `MOST_INDENTED`."""
    text = json.dumps(document, ensure_ascii=False, allow_nan=False)
    return text if len(text) > MOST_INDENTED else json.dumps(document, ensure_ascii=False, allow_nan=False, indent=2)
