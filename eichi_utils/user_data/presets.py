"""Keep presets under names: prompts, sets of LoRA, and whole requests (favourites).

Prompts are read and written in the existing program's own file. Its five LoRA slots and its favourites are read and never
changed; ours, which hold more, are in files beside them.
"""

from __future__ import annotations

import hashlib
import math
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from eichi_utils.exchange.legacy import LORA_KEYS, loras_of, migrated
from eichi_utils.files.paths import PRESETS, place
from eichi_utils.files.pictures import is_unicode
from eichi_utils.problems import Problem, UserError, shown
from eichi_utils.requests.loras import Lora
from eichi_utils.requests.modes import MODES
from eichi_utils.requests.transfer import usable
from eichi_utils.user_data.settings import Document, JsonFile

FIELD = "presets"
ENTRIES = "presets"
STARTUP = "default_startup_prompt"
# The existing program's name for the entry of its start-up prompt.
STARTUP_NAME = "起動時デフォルト"
# Largest number of a name's characters, as many as a list can show.
MOST_NAME = 100
# Unicode categories that no name may have: control characters, lone surrogates, line and paragraph separators.
UNNAMABLE = ("Cc", "Cs", "Zl", "Zp")
Notes = tuple[Problem, ...]


@dataclass(frozen=True)
class PromptPreset:
    """Hold a prompt under a name.

    is_default: it came with the existing program, which does not let it be deleted. is_startup: a new page begins with it.
    """

    name: str
    prompt: str
    is_default: bool = False
    is_startup: bool = False


class PromptPresets:
    """Keep prompts by name, and the one that a new page begins with. No prompt is ever shortened."""

    def __init__(self, file: JsonFile | None = None):
        self.file = file or JsonFile(place(PRESETS) / "prompt_presets.json", (ENTRIES,))

    def read(self) -> tuple[tuple[PromptPreset, ...], Notes]:
        """Return all prompts, the existing program's own first, each group by name; and notes on what was not understood."""
        document, notes = self.file.read()
        entries, bad = _entries(document, ENTRIES, "prompt")
        presets = [
            PromptPreset(entry["name"], entry["prompt"], _is(entry, "is_default"), _is(entry, "is_startup_default"))
            for entry in entries
        ]
        return tuple(sorted(presets, key=lambda preset: (not preset.is_default, preset.name))), (*notes, *bad)

    def startup(self) -> str:
        """Return the prompt of a new page, "" if none was chosen."""
        document, _ = self.file.read()
        if isinstance(document.get(STARTUP), str):
            return document[STARTUP]
        return next((preset.prompt for preset in self.read()[0] if preset.is_startup), "")

    def save(self, name: str, prompt: str) -> Notes:
        """Save a prompt, which replaces one of the same name. Raises UserError if name or prompt are not usable."""
        return self.file.update(lambda document: _save_prompt(document, _named(name), _text(prompt)))

    def save_startup(self, prompt: str) -> Notes:
        """Save the prompt that new pages begin with."""

        def change(document: Document) -> None:
            entries, _ = _entries(document, ENTRIES, "prompt")
            name = next((entry["name"] for entry in entries if _is(entry, "is_startup_default")), STARTUP_NAME)
            _save_prompt(document, name, _text(prompt))
            entry = _find(document, name)
            entry |= {"is_default": True, "is_startup_default": True}
            document[STARTUP] = prompt

        return self.file.update(change)

    def delete(self, name: str) -> Notes:
        """Delete a prompt of the user's own. Raises UserError for the existing program's prompts."""

        def change(document: Document) -> None:
            entry = _find(document, name)
            if _is(entry, "is_default") or _is(entry, "is_startup_default"):
                raise UserError([Problem(FIELD, "preset_is_default", {"name": name})])
            document[ENTRIES].remove(entry)

        return self.file.update(change)


class Presets:
    """Keep values by name: the user's own, and the existing program's, which an own one of the same name hides."""

    def __init__(self, own: JsonFile, old: JsonFile, check: Callable, read_old: Callable):
        """Take two files and two functions (check, read_old) that return (value, notes); a value of None is left out.

        check: of an own value. read_old: of an entry of the existing program.
        """
        self.own, self.old = own, old
        self._check, self._read_old = check, read_old

    def read(self) -> tuple[dict[str, Any], Notes]:
        """Return the values by name, and notes on what was not understood."""
        mine, notes = self.own.read()
        theirs, more = self.old.read()
        old, bad = _values(theirs, self.old, self._read_old)
        own, worse = _values(mine, self.own, lambda entry: self._check(entry.get("value")))
        return {**old, **own}, (*notes, *more, *bad, *worse)

    def save(self, name: str, value: Any) -> Notes:
        """Save a value, which replaces an own one of the same name. Raises UserError if it is not valid."""
        name = _named(name)
        checked, problems = self._check(value)
        if checked is None or problems:
            raise UserError(problems)

        def change(document: Document) -> None:
            entries = document.setdefault(self.own.lists[0], [])
            entry = next((entry for entry in entries if isinstance(entry, dict) and entry.get("name") == name), None)
            if entry is None:
                entries.append(entry := {"name": name})
            entry |= {"value": checked, "timestamp": datetime.now().isoformat()}

        return self.own.update(change)

    def delete(self, name: str) -> Notes:
        """Delete a value of the user's own. Raises UserError for the existing program's and for unknown names."""
        name = name if isinstance(name, str) else ""
        is_old = name in _values(self.old.read()[0], self.old, self._read_old)[0]

        def change(document: Document) -> None:
            entries = document.get(self.own.lists[0], [])
            kept = [entry for entry in entries if not (isinstance(entry, dict) and entry.get("name") == name)]
            if len(kept) == len(entries) and is_old:
                raise UserError([Problem(FIELD, "preset_is_old", {"name": name, "file": str(self.old.path)})])
            if len(kept) == len(entries):
                raise UserError([Problem(FIELD, "preset_unknown", {"name": name})])
            document[self.own.lists[0]] = kept

        return self.own.update(change)


def lora_presets(folder: Path = PRESETS) -> Presets:
    """Return the presets of LoRA: lists in JSON form of any length, and the existing program's five slots."""
    own, old = JsonFile(folder / "loras.json", ("loras",)), JsonFile(folder / "lora_presets.json", (ENTRIES,))
    return Presets(own, old, _checked_loras, _old_loras)


def favourites(folder: Path = PRESETS) -> Presets:
    """Return the presets of requests in JSON form, with their mode; the existing program's are all of the one-frame mode."""
    own = JsonFile(folder / "favorites.json", ("favorites",))
    return Presets(own, JsonFile(folder / "favorite_settings.json", ("favorites",)), _checked_request, _old_favourite)


def _checked_loras(value: Any) -> tuple[Any, list[Problem]]:
    fields, problems = usable("reverse", {"loras": value})
    for number, lora in enumerate(fields.get("loras", ())):
        strength = lora.get("strength", Lora.strength)
        if isinstance(strength, bool) or not isinstance(strength, (int, float)) or not math.isfinite(strength):
            problems.append(Problem(f"loras/{number}/strength", "wrong_type", {"value": shown(strength)}))
    return None if problems else fields.get("loras"), problems


def _old_loras(entry: Mapping[str, Any]) -> tuple[Any, list[Problem]]:
    loras, problems = loras_of([entry.get(key) for key in LORA_KEYS], entry.get("scales"))
    return loras or None, problems


def _checked_request(value: Any) -> tuple[Any, list[Problem]]:
    mode = value.get("mode") if isinstance(value, Mapping) else None
    if not isinstance(mode, str) or mode not in MODES:
        return None, [Problem("mode", "mode_unknown", {"mode": str(mode)[:80], "modes": ", ".join(MODES)})]
    fields, problems = usable(mode, {str(name): part for name, part in value.items() if name != "mode"})
    return {"mode": mode, **fields}, problems


def _old_favourite(entry: Mapping[str, Any]) -> tuple[Any, list[Problem]]:
    found = migrated("single", entry)
    return {"mode": "single", **found.fields}, list(found.notes)


def _values(document: Document, file: JsonFile, read: Callable) -> tuple[dict[str, Any], list[Problem]]:
    entries, notes = _entries(document, file.lists[0])
    values: dict[str, Any] = {}
    for number, entry in enumerate(entries, 1):
        value, problems = read(entry)
        notes += problems
        if value is not None:
            # Several slots of the existing program may have the same name.
            values[entry["name"] if entry["name"] not in values else f"{entry['name']} ({number})"] = value
    return values, notes


def _entries(document: Mapping[str, Any], key: str, *texts: str) -> tuple[list[Document], list[Problem]]:
    """Return the entries that have a name and these other texts, and a note for each other one. All stay in the file."""
    good, notes = [], []
    for entry in document.get(key, []):
        if isinstance(entry, dict) and all(isinstance(entry.get(name), str) for name in ("name", *texts)):
            good.append(entry)
        else:
            notes.append(Problem(FIELD, "legacy_value", {"name": key, "value": shown(entry)}))
    return good, notes


def _save_prompt(document: Document, name: str, prompt: str) -> None:
    entries, _ = _entries(document, ENTRIES)
    entry = next((entry for entry in entries if entry["name"] == name), None)
    if entry is None:
        document.setdefault(ENTRIES, []).append(entry := {"name": name, "is_default": False})
    # The existing program finds its cached encoding of the text by this hash of prompt and empty negative prompt.
    digest = hashlib.md5(f"{prompt}||".encode(), usedforsecurity=False).hexdigest()
    entry |= {"prompt": prompt, "timestamp": datetime.now().isoformat(), "prompt_hash": digest}
    if _is(entry, "is_startup_default"):
        document[STARTUP] = prompt


def _find(document: Document, name: str) -> Document:
    for entry in _entries(document, ENTRIES)[0]:
        if entry["name"] == name:
            return entry
    raise UserError([Problem(FIELD, "preset_unknown", {"name": name})])


def _is(entry: Mapping[str, Any], flag: str) -> bool:
    return entry.get(flag) is True


def _text(prompt: Any) -> str:
    if not isinstance(prompt, str):
        raise UserError([Problem("prompt", "wrong_type", {"value": shown(prompt)})])
    if not is_unicode(prompt):
        raise UserError([Problem("prompt", "text_not_unicode")])
    return prompt


def _named(name: Any) -> str:
    """Return a name that can be stored, listed and typed again. Raises UserError."""
    name = name.strip() if isinstance(name, str) else ""
    if not name:
        raise UserError([Problem(FIELD, "preset_name_needed")])
    if len(name) > MOST_NAME:
        raise UserError([Problem(FIELD, "preset_name_too_long", {"max": MOST_NAME})])
    if any(unicodedata.category(character) in UNNAMABLE for character in name):
        raise UserError([Problem(FIELD, "preset_name_characters")])
    return name
