"""Values of a request's fields as JSON has them, read by kind; what they may be beside their type, the request's checks say."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from eichi_utils.files.pictures import is_unicode
from eichi_utils.problems import MOST_PROBLEMS, Problem, UserError, shown
from eichi_utils.requests.loras import Lora, read_loras

# Kinds of fields with a value for each of some sections.
SECTION_KINDS = ("section_pictures", "section_texts", "section_numbers")
# Python takes digits of all scripts for numbers; no film has a million sections.
SECTION_NUMBER = re.compile("[0-9]{1,6}")


def read_value(value: Any, limits: Mapping[str, Any]) -> Any:
    """Return a field's value. limits: its metadata. Raises TypeError, ValueError, OverflowError, or UserError with a place."""
    if value is None and limits.get("optional"):
        return "" if limits["kind"] in ("picture", "latents") else None
    return _READERS[limits["kind"]](value, limits)


def wrong_type(name: str, value: Any) -> Problem:
    if value is None or value == "":
        return Problem(name, "value_needed")
    return Problem(name, "wrong_type", {"value": shown(value)})


def _read_text(value: Any, limits: Mapping[str, Any]) -> str:
    if not isinstance(value, str):
        raise TypeError(value)
    return value


def _read_integer(value: Any, limits: Mapping[str, Any]) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != int(value):
        raise TypeError(value)
    return int(value)


def _read_number(value: Any, limits: Mapping[str, Any]) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(value)
    return float(value)


def _read_choice(value: Any, limits: Mapping[str, Any]) -> Any:
    if isinstance(value, bool) or not isinstance(value, type(limits["choices"][0]) | int):
        raise TypeError(value)
    return type(limits["choices"][0])(value)


def _read_switch(value: Any, limits: Mapping[str, Any]) -> bool:
    if not isinstance(value, bool):
        raise TypeError(value)
    return value


def _read_sections(value: Any, limits: Mapping[str, Any]) -> dict[int, Any]:
    """Values by section number. Two spellings of one number, such as 7 and 07, would be two values for one section."""
    if not isinstance(value, Mapping):
        raise TypeError(value)
    read = _read_number if limits["kind"] == "section_numbers" else _read_text
    problems, found = [], {}
    for key, part in value.items():
        name = str(shown(key))
        number = int(name) if SECTION_NUMBER.fullmatch(name) else None
        if number is None or number in found:
            problems.append(Problem(name, "section_number", {"value": name}))
        elif read is _read_number and part in (None, ""):
            problems.append(Problem(name, "value_needed"))
        else:
            found[number] = part
    if problems:
        raise UserError(problems[:MOST_PROBLEMS])
    return {number: read(part, limits) for number, part in found.items()}


def _read_controls(value: Any, limits: Mapping[str, Any]) -> tuple:
    item = limits["item"]
    names = {field.name for field in dataclasses.fields(item)}
    if not isinstance(value, (list, tuple)) or not all(isinstance(entry, Mapping) for entry in value):
        raise TypeError(value)
    problems = []
    for number, entry in enumerate(value[:MOST_PROBLEMS]):
        problems += [Problem(str(number), "control_unknown_key", {"name": shown(key)}) for key in entry if key not in names]
        if "image" not in entry:
            problems.append(Problem(f"{number}/image", "picture_needed"))
        texts = [name for name in ("image", "mask") if not isinstance(entry.get(name, ""), str)]
        problems += [wrong_type(f"{number}/{name}", entry[name]) for name in texts]
    if problems:
        raise UserError(problems[:MOST_PROBLEMS])
    return tuple(item(**entry) for entry in value)


def _read_loras(value: Any, limits: Mapping[str, Any]) -> tuple[Lora, ...]:
    loras = read_loras(value, limits)
    problems = []
    for number, lora in enumerate(loras[:MOST_PROBLEMS]):
        if not isinstance(lora.file, str):
            problems.append(wrong_type(f"{number}/file", lora.file))
        elif not is_unicode(lora.file):
            problems.append(Problem(f"{number}/file", "name_not_unicode", {"file": lora.file}))
    if problems:
        raise UserError(problems)
    return loras


_READERS = {
    "picture": _read_text,
    "text": _read_text,
    "folder": _read_text,
    "integer": _read_integer,
    "number": _read_number,
    "choice": _read_choice,
    "switch": _read_switch,
    "section_pictures": _read_sections,
    "section_texts": _read_sections,
    "section_numbers": _read_sections,
    "controls": _read_controls,
    "loras": _read_loras,
    "latents": _read_text,
}
