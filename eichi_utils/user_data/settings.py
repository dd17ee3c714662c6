"""Settings in JSON files that outlive crashes, other programs and newer versions; and the program's own on top of it.

A file is written beside itself and renamed, under a lock, from what it holds at that moment: nobody's keys are lost. One that
cannot be understood is set aside and reported, never overwritten.
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
# How the name of a file that was set aside ends where the whole part of it goes on.
PARTLY = "-partly"
# A file is held for milliseconds; who waits this long has met a process that hangs.
WAIT_SECONDS = 10.0
# The existing program's one block before it had one for each page.
OLDEST_BLOCK = "app_settings"
# Characters of a document without line breaks up to which it gets them: json's encoder for indents is written in Python, and
# takes half a second for half a megabyte that is nested 60 levels deep.
MOST_INDENTED = 100_000
PROGRAM = "program"
# Values of the whole existing program, outside of its blocks.
SHARED = ("output_folder", "input_folder", "reference_folder")
LOGS = "log_settings"
LOG_KEYS = {"log_enabled": bool, "log_folder": str}
# Values of the program that no request has, and what they are where nobody chose. reserve_gb: GiB of the card left to others.
# uploads_days, uploads_gb: for how long, and as how much at most, pictures that nothing names any more are kept.
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
    """An object in a file. lists: keys that are lists where they are there at all."""

    path: Path
    lists: tuple[str, ...] = ()
    wait: float = WAIT_SECONDS

    def read(self) -> tuple[Document, tuple[Problem, ...]]:
        """What is in the file, {} where there is none; and a note if a damaged one was set aside."""
        if not self.path.exists():
            return {}, ()
        # A folder that nobody may write to needs no lock.
        with self._locked() if os.access(self.path.parent, os.W_OK) else nullcontext():
            return self._load()

    def update(self, change: Callable[[Document], None]) -> tuple[Problem, ...]:
        """Change the newest content in place; nothing is written if `change` raises or changes nothing. The notes of `read`."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError([self._not_written(error)]) from None
        with self._locked():
            document, notes = self._load()
            before = _text(document)
            change(document)
            try:
                # What could not be read again would be lost with all that lies beside it.
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
            # What is whole goes on in the file's place, so that this is said once.
            kept = self._set_aside(PARTLY)
            self._write(_text(document))
        except UserError as error:
            return document, error.problems
        return document, (Problem(FIELD, "settings_partly_damaged", {"file": str(self.path), "kept": kept}),)

    def _set_aside(self, ending: str = "") -> str:
        """Give the file another name, which is returned. ending: of that name. Raises UserError."""
        stamp = time.strftime("%Y%m%d_%H%M%S") + ending
        number, target = 1, self.path.with_name(f"{self.path.name}.damaged-{stamp}")
        while target.exists():
            number, target = number + 1, self.path.with_name(f"{self.path.name}.damaged-{stamp}-{number}")
        try:
            self.path.rename(target)
        except OSError as error:
            raise UserError([self._unreadable(error.strerror or str(error))]) from None
        # Whoever reads first is told, and that may be somebody who speaks to no user.
        logger.warning("%s was damaged and is kept as %s", self.path, target.name)
        return target.name

    def _write(self, text: str) -> None:
        try:
            # Where a link leads, not the link, gets the new content.
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
    """What the user saved as settings: a block of request fields for each mode, and values of the whole program.

    They lie under our own key in the existing program's file, whose blocks are read as long as ours are not there, and left
    as they are. Only what it says of logs belongs to no block, and is changed in its place.
    """

    def __init__(self, file: JsonFile | None = None):
        self.file = file or JsonFile(place(SETTINGS) / "app_settings.json")

    def fields(self, mode: str) -> tuple[dict[str, Any], tuple[Problem, ...]]:
        """Saved request fields of a mode in JSON form, and what was not understood."""
        document, notes = self.file.read()
        own = _block(_block(document, KEY), mode)
        if own or mode in _block(document, KEY):
            fields, bad = usable(mode, own)
            return fields, (*notes, *bad)
        found = migrated(mode, _old_block(document, mode))
        return dict(found.fields), (*notes, *found.notes)

    def save_fields(self, mode: str, fields: Mapping[str, Any]) -> tuple[Problem, ...]:
        """Save request fields (JSON form) of a mode; others that were saved stay."""
        return self._save(mode, fields)

    def reset_fields(self, mode: str) -> tuple[Problem, ...]:
        """From now on a mode has no saved fields, not even the existing program's."""
        return self.file.update(lambda document: _own(document).update({mode: {}}))

    def program(self, mode: str) -> dict[str, Any]:
        """Values of the program for a mode's page, language-free, by the existing program's names."""
        document, _ = self.file.read()
        logs = _block(document, LOGS)
        shared = {name: document[name] for name in SHARED if isinstance(document.get(name), str) and document[name].strip()}
        logs = {name: logs[name] for name, kind in LOG_KEYS.items() if isinstance(logs.get(name), kind)}
        old = migrated(mode, _old_block(document, mode)).program
        return {**old, **shared, **_block(_block(document, KEY), PROGRAM), **logs}

    def choice(self, mode: str, name: str) -> Any:
        """One of `CHOICES` for a mode's page: what was saved, if it is of its type, else what it usually is."""
        usual, saved = CHOICES[name], self.program(mode).get(name)
        if isinstance(usual, float):
            # A number that JSON can write and that is one: neither NaN nor endless.
            fits = isinstance(saved, (int, float)) and not isinstance(saved, bool) and 0 <= saved < math.inf
        else:
            fits = isinstance(saved, type(usual)) and saved != ""
        return saved if fits else usual

    def save_program(self, values: Mapping[str, Any]) -> tuple[Problem, ...]:
        """Save values of the program; others stay."""

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
    """Return the JSON text of a document, with a line for each value as long as it is short enough to be read by a person."""
    text = json.dumps(document, ensure_ascii=False, allow_nan=False)
    return text if len(text) > MOST_INDENTED else json.dumps(document, ensure_ascii=False, allow_nan=False, indent=2)
