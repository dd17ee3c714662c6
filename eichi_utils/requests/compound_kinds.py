"""Define the kinds of fields with several values: one value per section, control pictures, LoRA files."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from eichi_utils.files.pictures import is_unicode
from eichi_utils.problems import MOST_PROBLEMS, Problem, UserError, shown
from eichi_utils.requests.kinds import Change, Kind, Number, wrong_type
from eichi_utils.requests.loras import check_loras, from_flag, read_loras

# `str.isdecimal` and `int` accept the digits of all scripts. No film has a million sections.
SECTION_NUMBER = re.compile("[0-9]{1,6}")


@dataclass(frozen=True)
class PerSection(Kind):
    """Hold a value of the kind `each` for some of the sections, by section number."""

    each: Kind
    _metavar = "K=VALUE"
    repeated = content = per_section = True

    @property
    def shown_wrong(self) -> bool:
        """Say whether a page can show one of the values although something is wrong in it."""
        return self.each.shown_wrong

    @property
    def names_files(self) -> bool:
        """Say whether the values name files."""
        return self.each.names_files

    def _read(self, value: Any) -> dict[int, Any]:
        """Return the values by section number.

        Raises UserError for keys that are no section number, and for a second spelling of a number (7 and 07 are one section).
        """
        if not isinstance(value, Mapping):
            raise TypeError(value)
        problems, found = [], {}
        for key, part in value.items():
            name = str(shown(key))
            number = int(name) if SECTION_NUMBER.fullmatch(name) else None
            if number is None or number in found:
                problems.append(Problem(name, "section_number", {"value": name}))
            elif isinstance(self.each, Number) and part in (None, ""):
                problems.append(Problem(name, "value_needed"))
            else:
                found[number] = part
        if problems:
            raise UserError(problems[:MOST_PROBLEMS])
        return {number: self.each.read(part) for number, part in found.items()}

    def _check(self, name: str, value: Mapping[int, Any]) -> list[Problem]:
        return [problem for key, part in value.items() for problem in self.each.check(f"{name}/{key}", part)]

    def to_json(self, value: Mapping[int, Any]) -> dict[str, Any]:
        """Return the values by section number as text, in the order of the sections."""
        return {str(key): self.each.to_json(part) for key, part in sorted(value.items())}

    def map_files(self, place: str, value: Any, change: Change) -> Any:
        """Return the values with the paths in them changed; the place of one is `place/NUMBER`."""
        if not isinstance(value, Mapping):
            return value
        return {key: self.each.map_files(f"{place}/{key}", part, change) for key, part in value.items()}

    def with_files(self, place: str, value: Any, good: Callable[[str, str], bool]) -> Any:
        """Return the values without those whose file is not good."""
        if not isinstance(value, Mapping) or not self.names_files:
            return value
        return {key: part for key, part in value.items() if self.each.with_files(f"{place}/{key}", part, good) == part}

    def from_flag(self, name: str, given: Sequence[str]) -> tuple[Any, list[Problem]]:
        """Return the values of texts such as `3=VALUE` by section number, and a problem for each text of another form."""
        pairs, problems = {}, []
        for text in given:
            key, equals, value = text.partition("=")
            if not equals or not key.strip().isdecimal():
                problems.append(Problem(name, "pair_expected", {"value": text[:80]}))
            else:
                pairs[key.strip()], wrong = self.each.from_flag(name, value)
                problems += wrong
        return pairs, problems


@dataclass(frozen=True)
class Controls(Kind):
    """Hold further pictures that the model looks at, each with a time position.

    item: the dataclass of one control, which has `check` and the paths `image` and `mask`.
    """

    item: type
    _metavar = "FILE"
    content = _shown_wrong = repeated = _names_files = True
    files: ClassVar[tuple[str, ...]] = ("image", "mask")

    def _read(self, value: Any) -> tuple:
        names = {field.name for field in dataclasses.fields(self.item)}
        if not isinstance(value, (list, tuple)) or not all(isinstance(entry, Mapping) for entry in value):
            raise TypeError(value)
        problems = []
        for number, entry in enumerate(value[:MOST_PROBLEMS]):
            unknown = [key for key in entry if key not in names]
            problems += [Problem(str(number), "control_unknown_key", {"name": shown(key)}) for key in unknown]
            if "image" not in entry:
                problems.append(Problem(f"{number}/image", "picture_needed"))
            texts = [name for name in self.files if not isinstance(entry.get(name, ""), str)]
            problems += [wrong_type(f"{number}/{name}", entry[name]) for name in texts]
        if problems:
            raise UserError(problems[:MOST_PROBLEMS])
        return tuple(self.item(**entry) for entry in value)

    def _check(self, name: str, value: tuple) -> list[Problem]:
        return [problem for number, control in enumerate(value) for problem in control.check(f"{name}/{number}")]

    def to_json(self, value: tuple) -> list[dict[str, Any]]:
        """Return a JSON object with all fields for each control."""
        return [dataclasses.asdict(item) for item in value]

    def map_files(self, place: str, value: Any, change: Change) -> Any:
        """Return the list with the paths of pictures and masks changed."""
        return map_entries(place, value, self.files, change)

    def with_files(self, place: str, value: Any, good: Callable[[str, str], bool]) -> Any:
        """Return the controls whose files are all good. `good` is called for every file, also after one that is not good."""
        if not isinstance(value, (list, tuple)):
            return value
        return [entry for number, entry in enumerate(value) if self._is_whole(f"{place}/{number}", entry, good)]

    def _is_whole(self, place: str, entry: Any, good: Callable[[str, str], bool]) -> bool:
        if not isinstance(entry, Mapping):
            return True
        paths = [(name, entry.get(name)) for name in self.files]
        return all([good(f"{place}/{name}", path) for name, path in paths if isinstance(path, str) and path])


@dataclass(frozen=True)
class Loras(Kind):
    """Hold LoRA files with a strength each, `max` of them at most. A file is a name below the LoRA folder, or a path."""

    max: int
    _metavar = "FILE[=STRENGTH]"
    repeated = _shown_wrong = True

    def _read(self, value: Any) -> tuple:
        loras = read_loras(value)
        problems = []
        for number, lora in enumerate(loras[:MOST_PROBLEMS]):
            if not isinstance(lora.file, str):
                problems.append(wrong_type(f"{number}/file", lora.file))
            elif not is_unicode(lora.file):
                problems.append(Problem(f"{number}/file", "name_not_unicode", {"file": lora.file}))
        if problems:
            raise UserError(problems)
        return loras

    def _check(self, name: str, value: tuple) -> list[Problem]:
        return check_loras(name, value, self.max)

    def to_json(self, value: tuple) -> list[dict[str, Any]]:
        """Return a JSON object with all fields for each LoRA."""
        return [dataclasses.asdict(item) for item in value]

    def from_flag(self, name: str, given: Sequence[str]) -> tuple[Any, list[Problem]]:
        """Return the files, each with its strength where the text says one."""
        return [from_flag(text) for text in given], []


def map_entries(place: str, value: Any, names: Sequence[str], change: Change) -> Any:
    """Return a JSON list of objects with the paths under these names changed; a value of another form is returned as it is."""
    if not isinstance(value, (list, tuple)):
        return value
    return [
        {
            name: change(f"{place}/{number}/{name}", part) if name in names and isinstance(part, str) and part else part
            for name, part in entry.items()
        }
        if isinstance(entry, Mapping)
        else entry
        for number, entry in enumerate(value)
    ]
