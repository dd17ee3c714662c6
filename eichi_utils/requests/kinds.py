"""Define the kinds of a request's fields: how a value is read, checked, given as a flag and shown, and which files it names.

A field is one line, such as `seconds: float = setting(1.0, Number(0.1, 120.0))`. Code that works on fields asks their kinds
and keeps no list of names.
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

# Function of a place ("image", "keyframes/3", "controls/0/mask") and the path there that returns another path.
Change = Callable[[str, str], str]


@dataclass(frozen=True, kw_only=True)
class Kind(ABC):
    """Describe the values of a field.

    optional: whether the field may be empty: None, or "" for a file.
    repeated: whether its flag may be given several times.
    content: whether the field says what a film is made of. Such a field is not stored among the settings.
    per_section: whether its keys are section numbers, which are counted anew when a request goes from one mode to another.
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
        """Return the name of the flag's value in the command line's help."""
        return self._metavar

    @property
    def shown_wrong(self) -> bool:
        """Say whether a page can show a value that is wrong: a missing file may come back, and a long text can be cut."""
        return self._shown_wrong

    @property
    def names_files(self) -> bool:
        """Say whether its values name files of the user, LoRA excepted."""
        return self._names_files

    def read(self, value: Any) -> Any:
        """Return a field's value from JSON. Raises TypeError, ValueError, OverflowError, or UserError with places inside."""
        return self.nothing if value is None and self.optional else self._read(value)

    def check(self, name: str, value: Any) -> list[Problem]:
        """Return everything that is wrong with the value of the field of that name."""
        return [] if value is None and self.optional else self._check(name, value)

    def to_json(self, value: Any) -> Any:
        """Return the JSON form of the value."""
        return value

    def map_files(self, place: str, value: Any, change: Change) -> Any:
        """Return a JSON value with every path of a file changed.

        Values of a wrong type stay; reading the request names them.
        """
        return value

    def with_files(self, place: str, value: Any, good: Callable[[str, str], bool]) -> Any:
        """Return a JSON value without the files for which good(place, path) is false."""
        return value

    def from_flag(self, name: str, given: Any) -> tuple[Any, list[Problem]]:
        """Return the JSON value of what the command line was given: a text, or texts where the flag may be repeated.

        A text that cannot be read is returned as it is; reading the request reports it.
        """
        return given, []

    def in_words(self, value: Any) -> str:
        """Return a JSON value as readable text."""
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

    def word(self, name: str, value: Any) -> str:
        """Return the key of a JSON value's words in the locale files, if there are any."""
        return f"page.{name}.{self.in_words(value)}"

    @property
    def nothing(self) -> Any:
        """Return the value of an empty field."""
        return None

    @abstractmethod
    def _read(self, value: Any) -> Any: ...

    @abstractmethod
    def _check(self, name: str, value: Any) -> list[Problem]: ...


@dataclass(frozen=True, kw_only=True)
class Text(Kind):
    """Take a text of at most `MAX_PROMPT_CHARACTERS` characters."""

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
    """Take a folder for results: a name below the program's own folder, or a path."""

    _metavar = "DIR"
    _shown_wrong = False

    def _check(self, name: str, value: Any) -> list[Problem]:
        return super()._check(name, value) or _listed(check_folder(name, value))


@dataclass(frozen=True, kw_only=True)
class File(Kind):
    """Take the path of a file."""

    _metavar = "FILE"
    content = _shown_wrong = _names_files = True

    @property
    def nothing(self) -> str:
        """Return "", the value of an empty file field."""
        return ""

    def _read(self, value: Any) -> str:
        if not isinstance(value, str):
            raise TypeError(value)
        return value

    def map_files(self, place: str, value: Any, change: Change) -> Any:
        """Return the changed path; "" and values of another type stay."""
        return change(place, value) if isinstance(value, str) and value else value

    def with_files(self, place: str, value: Any, good: Callable[[str, str], bool]) -> Any:
        """Return the path, or "" if the file is not good."""
        return "" if isinstance(value, str) and value and not good(place, value) else value

    def from_flag(self, name: str, given: Any) -> tuple[Any, list[Problem]]:
        """Return the path as an absolute one; it is given relative to the current folder."""
        return os.path.abspath(given) if given else "", []

    def in_words(self, value: Any) -> str:
        """Return the file's name without its folders."""
        return Path(value).name if isinstance(value, str) else super().in_words(value)


@dataclass(frozen=True, kw_only=True)
class Picture(File):
    """Take the path of a picture or a mask."""

    def _check(self, name: str, value: Any) -> list[Problem]:
        if not value:
            return [] if self.optional else [Problem(name, "picture_needed")]
        return _listed(picture_problem(name, value))


@dataclass(frozen=True, kw_only=True)
class Latents(File):
    """Take the path of a file of latents."""

    def _check(self, name: str, value: Any) -> list[Problem]:
        return _listed(latents_problem(name, value)) if value else []


@dataclass(frozen=True)
class Number(Kind):
    """Take a number from `min` to `max`, both allowed."""

    min: float
    max: float

    def _read(self, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(value)
        return float(value)

    def _check(self, name: str, value: Any) -> list[Problem]:
        if isinstance(value, bool) or not isinstance(value, self._type):
            return [wrong_type(name, value)]
        # NaN compares false and so is out of every range.
        if not self.min <= value <= self.max:
            numbers = {"value": shown(value), "min": self.min, "max": self.max}
            return [Problem(name, "out_of_range", {name: _tidy(number) for name, number in numbers.items()})]
        return []

    def from_flag(self, name: str, given: Any) -> tuple[Any, list[Problem]]:
        """Return the number that the text says; other texts stay, so that reading the request names them."""
        return number_from(given), []

    @property
    def _type(self) -> type | tuple[type, ...]:
        return (int, float)


@dataclass(frozen=True)
class Integer(Number):
    """Take a whole number from `min` to `max`, both allowed."""

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
    """Take one of `choices`, which are all of one type.

    names: what a choice is called in the keys of the locale files, where that is not its value.
    """

    choices: tuple[Any, ...]
    names: Mapping[Any, str] = dataclasses.field(default_factory=dict)

    @property
    def metavar(self) -> str:
        """Return all choices, joined by "|", for the command line's help."""
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
        """Return the JSON form of the choice: a number if the text is one."""
        return number_from(given), []

    def word(self, name: str, value: Any) -> str:
        """Return the key of a choice's words in the locale files, by its name if it has one."""
        known = value if isinstance(value, (str, int, float)) else None
        return f"page.{name}.{self.names[known]}" if known in self.names else super().word(name, value)


@dataclass(frozen=True, kw_only=True)
class Switch(Kind):
    """Take True or False."""

    _metavar = "on|off"

    def _read(self, value: Any) -> bool:
        if not isinstance(value, bool):
            raise TypeError(value)
        return value

    def _check(self, name: str, value: Any) -> list[Problem]:
        return [] if isinstance(value, bool) else [wrong_type(name, value)]

    def from_flag(self, name: str, given: Any) -> tuple[Any, list[Problem]]:
        """Return True or False for the words of `SWITCH_WORDS`, in any case; other texts stay."""
        return SWITCH_WORDS.get(given.lower(), given), []


def setting(default: Any, kind: Kind, content: bool | None = None) -> Any:
    """Return a dataclass field of this kind. content: overrides `kind.content`."""
    metadata = {"kind": kind, "content": kind.content if content is None else content}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=dict, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@cache
def kinds_of(request: type) -> Mapping[str, Kind]:
    """Return the kinds of a request class's fields by name, in the order of the fields."""
    return MappingProxyType({field.name: field.metadata["kind"] for field in dataclasses.fields(request)})


@cache
def content_of(request: type) -> frozenset[str]:
    """Return the names of the fields that say what a film is made of (`content`)."""
    return frozenset(field.name for field in dataclasses.fields(request) if field.metadata["content"])


def wrong_type(name: str, value: Any) -> Problem:
    """Return the problem that a value has the wrong type, or that it is missing."""
    if value is None or value == "":
        return Problem(name, "value_needed")
    return Problem(name, "wrong_type", {"value": shown(value)})


def number_from(text: str) -> int | float | str:
    """Return the number that a text says. Other texts, and numbers too large for a float, are returned as written."""
    try:
        return int(text)
    except ValueError:
        return finite_number(text, text)


def finite_number(text: str, otherwise: Any = None) -> Any:
    """Return the finite number that a text says, or `otherwise`."""
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
    """Return 7.0 as 7, for reading. Floats above 2**53 stay, so that 1e+308 is not written with 309 digits."""
    return int(number) if isinstance(number, float) and number.is_integer() and abs(number) < 2**53 else number
