"""Kinds of a request's fields: how a value is read and checked, which files it names, how it is given as a flag and shown.

A field is one line, such as `seconds: float = setting(1.0, Number(0.1, 120.0))`; whoever needs to know about fields asks their
kinds, and has no list of names.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

from eichi_utils.files.folders import check_folder
from eichi_utils.files.latent_header import latents_problem
from eichi_utils.files.pictures import is_unicode, picture_problem
from eichi_utils.problems import Problem, shown

# The text encoder reads 256 tokens, about 1,000 to 1,300 characters of English; four times that can only be a mistake.
MAX_PROMPT_CHARACTERS = 5000
SWITCH_WORDS = MappingProxyType({"on": True, "off": False, "true": True, "false": False})

# place such as "image", "keyframes/3" or "controls/0/mask", and the path there -> another path.
Change = Callable[[str, str], str]


@dataclass(frozen=True, kw_only=True)
class Kind(ABC):
    """optional: whether no value is a value too, None, or "" for a file.

    repeated: whether its flag may be given several times. content: whether it is what a film is made of, and not how, and so no
    setting. per_section: whether it has numbers of sections, which are counted anew where a request goes from one mode to
    another.
    """

    optional: bool = False
    repeated: ClassVar[bool] = False
    content: ClassVar[bool] = False
    per_section: ClassVar[bool] = False
    _metavar: ClassVar[str] = "N"
    _shown_wrong: ClassVar[bool] = False
    _names_files: ClassVar[bool] = False

    @property
    def metavar(self) -> str:
        """Return what the value of its flag is called in the command line's help."""
        return self._metavar

    @property
    def shown_wrong(self) -> bool:
        """Say whether a page can show a value that has something wrong in it.

        A file may be back tomorrow, and a text can be made shorter.
        """
        return self._shown_wrong

    @property
    def names_files(self) -> bool:
        """Say whether its values name files of the user's, beside LoRA."""
        return self._names_files

    def read(self, value: Any) -> Any:
        """Return a field's value from JSON. Raises TypeError, ValueError, OverflowError, or UserError with places inside."""
        return self.nothing if value is None and self.optional else self._read(value)

    def check(self, name: str, value: Any) -> list[Problem]:
        """Return everything that is wrong with the value of the field of that name."""
        return [] if value is None and self.optional else self._check(name, value)

    def to_json(self, value: Any) -> Any:
        """Return the value as JSON has it."""
        return value

    def map_files(self, place: str, value: Any, change: Change) -> Any:
        """Return a JSON value with every path of a file changed; what is no path is left to the reading."""
        return value

    def with_files(self, place: str, value: Any, good: Callable[[str, str], bool]) -> Any:
        """Return a JSON value without the files for which good(place, path) is false."""
        return value

    def from_flag(self, name: str, given: Any) -> tuple[Any, list[Problem]]:
        """Return the JSON value of what the command line was given: a text, or texts where the flag may be repeated.

        What cannot be read stays as it is; reading it will say what is wrong.
        """
        return given, []

    def in_words(self, value: Any) -> str:
        """Return a JSON value as text for reading."""
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

    def word(self, name: str, value: Any) -> str:
        """Return the key of the words for a JSON value, as far as there are any."""
        return f"page.{name}.{self.in_words(value)}"

    @property
    def nothing(self) -> Any:
        """Return the value that stands for none, where there may be none."""
        return None

    @abstractmethod
    def _read(self, value: Any) -> Any: ...

    @abstractmethod
    def _check(self, name: str, value: Any) -> list[Problem]: ...


@dataclass(frozen=True, kw_only=True)
class Text(Kind):
    """A text of at most `MAX_PROMPT_CHARACTERS`."""

    _metavar = "TEXT"
    _shown_wrong = True

    def _read(self, value: Any) -> str:
        if not isinstance(value, str):
            raise TypeError(value)
        return value

    def _check(self, name: str, value: Any) -> list[Problem]:
        if not isinstance(value, str):
            return [wrong_type(name, value)]
        if len(value) > MAX_PROMPT_CHARACTERS:
            return [Problem(name, "text_too_long", {"characters": len(value), "limit": MAX_PROMPT_CHARACTERS})]
        return [] if is_unicode(value) else [Problem(name, "text_not_unicode")]


@dataclass(frozen=True, kw_only=True)
class Folder(Text):
    """A folder for results: a name below the program's own, or a path."""

    _metavar = "DIR"
    _shown_wrong = False

    def _check(self, name: str, value: Any) -> list[Problem]:
        return super()._check(name, value) or _listed(check_folder(name, value))


@dataclass(frozen=True, kw_only=True)
class File(Kind):
    """A path of a file."""

    _metavar = "FILE"
    content = _shown_wrong = _names_files = True

    @property
    def nothing(self) -> str:
        """Return the path of no file."""
        return ""

    def _read(self, value: Any) -> str:
        if not isinstance(value, str):
            raise TypeError(value)
        return value

    def map_files(self, place: str, value: Any, change: Change) -> Any:
        """Return the changed path; no path, and what is none, stays."""
        return change(place, value) if isinstance(value, str) and value else value

    def with_files(self, place: str, value: Any, good: Callable[[str, str], bool]) -> Any:
        """Return the path, or none if it is not good."""
        return "" if isinstance(value, str) and value and not good(place, value) else value

    def from_flag(self, name: str, given: Any) -> tuple[Any, list[Problem]]:
        """Return the path, which is relative to the current folder, as an absolute one."""
        return os.path.abspath(given) if given else "", []

    def in_words(self, value: Any) -> str:
        """Return the file's name without its folders."""
        return Path(value).name if isinstance(value, str) else super().in_words(value)


@dataclass(frozen=True, kw_only=True)
class Picture(File):
    """A picture or a mask."""

    def _check(self, name: str, value: Any) -> list[Problem]:
        if not value:
            return [] if self.optional else [Problem(name, "picture_needed")]
        return _listed(picture_problem(name, value))


@dataclass(frozen=True, kw_only=True)
class Latents(File):
    """A file of latents."""

    def _check(self, name: str, value: Any) -> list[Problem]:
        return _listed(latents_problem(name, value)) if value else []


@dataclass(frozen=True)
class Number(Kind):
    """A number from `min` to `max`, both allowed."""

    min: float
    max: float

    def _read(self, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(value)
        return float(value)

    def _check(self, name: str, value: Any) -> list[Problem]:
        if isinstance(value, bool) or not isinstance(value, self._type):
            return [wrong_type(name, value)]
        # A number that is none is in no range.
        if not self.min <= value <= self.max:
            numbers = {"value": shown(value), "min": self.min, "max": self.max}
            return [Problem(name, "out_of_range", {name: _tidy(number) for name, number in numbers.items()})]
        return []

    def from_flag(self, name: str, given: Any) -> tuple[Any, list[Problem]]:
        """Return the number that the text says; what says none stays a text, for the reading to name."""
        return number_from(given), []

    @property
    def _type(self) -> type | tuple[type, ...]:
        return (int, float)


@dataclass(frozen=True)
class Integer(Number):
    """A whole number from `min` to `max`, both allowed."""

    min: int
    max: int

    def _read(self, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value != int(value):
            raise TypeError(value)
        return int(value)

    @property
    def _type(self) -> type:
        return int


@dataclass(frozen=True)
class Choice(Kind):
    """One of `choices`, all of one type. names: what a choice is called in the keys of words, where that is not its value."""

    choices: tuple[Any, ...]
    names: Mapping[Any, str] = dataclasses.field(default_factory=dict)

    @property
    def metavar(self) -> str:
        """Return all choices, for the command line's help."""
        return "|".join(map(_as_choice, self.choices))

    def _read(self, value: Any) -> Any:
        kind = type(self.choices[0])
        if isinstance(value, bool) or not isinstance(value, (kind, int)):
            raise TypeError(value)
        return kind(value)

    def _check(self, name: str, value: Any) -> list[Problem]:
        if value in self.choices:
            return []
        return [Problem(name, "not_a_choice", {"value": shown(value), "choices": ", ".join(map(_as_choice, self.choices))})]

    def from_flag(self, name: str, given: Any) -> tuple[Any, list[Problem]]:
        """Return the choice as JSON has it: a number where the text says one."""
        return number_from(given), []

    def word(self, name: str, value: Any) -> str:
        """Return the key of a choice's words, by its name where it has one."""
        known = value if isinstance(value, (str, int, float)) else None
        return f"page.{name}.{self.names[known]}" if known in self.names else super().word(name, value)


@dataclass(frozen=True, kw_only=True)
class Switch(Kind):
    """On or off."""

    _metavar = "on|off"

    def _read(self, value: Any) -> bool:
        if not isinstance(value, bool):
            raise TypeError(value)
        return value

    def _check(self, name: str, value: Any) -> list[Problem]:
        return [] if isinstance(value, bool) else [wrong_type(name, value)]

    def from_flag(self, name: str, given: Any) -> tuple[Any, list[Problem]]:
        """Return True or False for the words of `SWITCH_WORDS`, in capitals too."""
        return SWITCH_WORDS.get(given.lower(), given), []


def setting(default: Any, kind: Kind, content: bool | None = None) -> Any:
    """Return a request's field. content: whether it is what a film is made of; by default as the kind says."""
    metadata = {"kind": kind, "content": kind.content if content is None else content}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=dict, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@cache
def kinds_of(request: type) -> Mapping[str, Kind]:
    """Return the kinds of a request class's fields, by name, in their order."""
    return MappingProxyType({field.name: field.metadata["kind"] for field in dataclasses.fields(request)})


@cache
def content_of(request: type) -> frozenset[str]:
    """Return the names of the fields that say what a film is made of, and not how."""
    return frozenset(field.name for field in dataclasses.fields(request) if field.metadata["content"])


def wrong_type(name: str, value: Any) -> Problem:
    """Return what is wrong with a value of another type, or with none where one is needed."""
    if value is None or value == "":
        return Problem(name, "value_needed")
    return Problem(name, "wrong_type", {"value": shown(value)})


def number_from(text: str) -> int | float | str:
    """Return the number that a text says; what is none, or is too large for one, stays as it was written, to be named."""
    try:
        return int(text)
    except ValueError:
        return finite_number(text, text)


def finite_number(text: str, otherwise: Any = None) -> Any:
    """Return the number that a text says; `otherwise` for a text that says none that can be counted with."""
    try:
        number = float(text)
    except ValueError:
        return otherwise
    return number if math.isfinite(number) else otherwise


def _listed(problem: Problem | None) -> list[Problem]:
    return [problem] if problem else []


def _as_choice(choice: Any) -> str:
    return f"{choice:g}" if isinstance(choice, float) else str(choice)


def _tidy(number: float) -> float | int:
    """7.0 as 7, for reading; one beyond the integers that floats know stays 1e+308 and not 309 digits."""
    return int(number) if isinstance(number, float) and number.is_integer() and abs(number) < 2**53 else number
