"""Locate and check the LoRA files of a request. Reads headers, and tensors only to find values that are not finite."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PureWindowsPath
from typing import Any

from eichi_utils.files.paths import LORAS
from eichi_utils.problems import Problem, UserError
from lora_utils.files import Header, LoraError, read_header
from lora_utils.finite import first_not_finite
from lora_utils.formats import Layout, Shapes, analyse
from lora_utils.peft import config_beside
from lora_utils.scales import check_alphas

STRONGEST = 2.0
# A page has this many slots; more files could not be shown there.
MOST_LORAS = 12
# In characters; no file system takes longer paths.
LONGEST_SHOWN = 4096


@dataclass(frozen=True)
class Lora:
    """Name a LoRA file and its strength: 1 is as trained, 0 is no effect, below 0 the opposite direction.

    file: a path, or a name below webui/lora, which is the same on every computer.
    The default strength is that of the existing program.
    """

    file: str
    strength: float = 0.8

    @property
    def path(self) -> Path:
        """Return the file's path.

        Of a relative path that leads out of webui/lora only the last part is used, below that folder.
        """
        if is_below(self.file) or Path(self.file).is_absolute():
            return LORAS / self.file
        return LORAS / Path(self.file.replace("\\", "/")).name

    def check(self, field: str) -> list[Problem]:
        """Return what is wrong with the file on its own, and with the strength."""
        problems = []
        if not isinstance(self.file, str) or not self.file.strip():
            problems.append(Problem(f"{field}/file", "value_needed"))
        else:
            try:
                read_header(self.path)
            except LoraError as error:
                problems.append(lora_problem(field, error))
        number = isinstance(self.strength, (int, float)) and not isinstance(self.strength, bool)
        if self.strength is None:
            problems.append(Problem(f"{field}/strength", "value_needed"))
        elif not number:
            problems.append(Problem(f"{field}/strength", "wrong_type", {"value": str(self.strength)[:80]}))
        elif not math.isfinite(self.strength) or abs(self.strength) > STRONGEST:
            limits = {"value": self.strength, "min": -STRONGEST, "max": STRONGEST}
            problems.append(Problem(f"{field}/strength", "out_of_range", limits))
        return problems


def lora_problem(field: str, error: LoraError) -> Problem:
    """Return the problem that tells the user why a file cannot be used.

    field: the request's, with the file's number, such as "loras/0".
    """
    values = {name: _short(value) if isinstance(value, str) else value for name, value in error.values.items()}
    return Problem(f"{field}/file", f"lora_{error.key}", values)


def _short(text: str) -> str:
    """Return a text of at most `LONGEST_SHOWN` characters, its middle left out; characters without UTF-8 become "?"."""
    text = text.encode(errors="replace").decode()
    return text if len(text) <= LONGEST_SHOWN else f"{text[: LONGEST_SHOWN // 2]} ... {text[-LONGEST_SHOWN // 2 :]}"


def is_below(file: str) -> bool:
    """Say whether a file's name in a request can only mean one below webui/lora, wherever links in that folder lead."""
    # PureWindowsPath knows both slashes and drives such as C: on every system.
    path = PureWindowsPath(file)
    return bool(file) and not path.anchor and ".." not in path.parts


def named(path: str | Path) -> str:
    """Return the name of a file in a request: its path below webui/lora if it lies there, else its absolute path.

    A relative path is looked for in the current folder first, then below webui/lora.
    """
    absolute = Path(os.path.abspath(path))
    if not os.path.exists(absolute) and is_below(str(path)) and os.path.exists(LORAS / path):
        return Path(path).as_posix()
    return absolute.relative_to(LORAS).as_posix() if absolute.is_relative_to(LORAS) else str(absolute)


def shown_name(file: str | Path) -> str:
    """Return the name of a file on a page: its path below webui/lora, or its bare name if it lies elsewhere.

    Two folders below webui/lora may have files of one name.
    """
    path = Path(file)
    return path.relative_to(LORAS).as_posix() if path.is_relative_to(LORAS) else path.name


def from_flag(text: str) -> dict[str, Any]:
    """Return the JSON form of `FILE` or `FILE=STRENGTH`.

    An equals sign belongs to the file's name if a file of that name exists, or if no number follows it.
    """
    if os.path.exists(text) or os.path.exists(LORAS / text):
        return {"file": named(text)}
    file, _, strength = text.rpartition("=")
    try:
        number = float(strength)
    except ValueError:
        return {"file": named(text)}
    # A strength beyond the floats stays a text, so that the check names it as it was written.
    return {"file": named(file), "strength": strength if math.isinf(number) else number} if file else {"file": named(text)}


def named_beside(document: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return a request's JSON document in which LoRA files that lie in `folder` are named by their path."""
    changed = dict(document)
    if isinstance(entries := changed.get("loras"), (list, tuple)):
        changed["loras"] = [_beside(entry, folder) for entry in entries]
    return changed


def _beside(entry: Any, folder: Path) -> Any:
    file = entry.get("file") if isinstance(entry, Mapping) else None
    # `os.path.isfile` returns False, and raises nothing, for a name that is too long or holds a NUL.
    if isinstance(file, str) and (is_below(file) or Path(file).is_absolute()) and os.path.isfile(folder / file):
        return {**entry, "file": named(folder / file)}
    return entry


def read_loras(value: Any) -> tuple[Lora, ...]:
    """Return the LoRA of a JSON list of {"file": ..., "strength": ...}. Raises TypeError, or UserError naming the entry."""
    if not isinstance(value, (list, tuple)) or not all(isinstance(entry, Mapping) for entry in value):
        raise TypeError(value)
    names = {field.name for field in dataclasses.fields(Lora)}
    problems = []
    for number, entry in enumerate(value):
        problems += [Problem(str(number), "lora_unknown_key", {"name": name}) for name in entry if name not in names]
        problems += [] if "file" in entry else [Problem(f"{number}/file", "value_needed")]
    if problems:
        raise UserError(problems)
    return tuple(Lora(**{name: _float(part) for name, part in entry.items()}) for entry in value)


def _float(value: Any) -> Any:
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def check_loras(name: str, value: Sequence[Lora], most: int) -> list[Problem]:
    """Return what is wrong with the files of the field `name`, of which there may be `most`."""
    if len(value) > most:
        return [Problem(name, "lora_too_many", {"count": len(value), "max": most})]
    return [problem for number, lora in enumerate(value) for problem in lora.check(f"{name}/{number}")]


def scaled(loras: Sequence[Lora], scale: float) -> tuple[float, ...] | None:
    """Return the strengths multiplied by the scale; None if that changes nothing."""
    return None if scale == 1.0 or not loras else tuple(lora.strength * scale for lora in loras)


def _is_strength(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and math.isfinite(value) and abs(value) <= STRONGEST


def check_scales(loras: Sequence[Lora], scales: Mapping[int, float]) -> list[Problem]:
    """Return a problem for each section whose scale makes a LoRA stronger than `STRONGEST`.

    Strengths and scales that are wrong on their own are reported by their fields' checks and skipped here.
    """
    problems = []
    strengths = [lora.strength for lora in loras if _is_strength(lora.strength)]
    for number, scale in sorted(scales.items()):
        strongest = max((strength * scale for strength in strengths if _is_strength(scale)), key=abs, default=0.0)
        if abs(strongest) > STRONGEST:
            values = {"strength": f"{strongest:g}", "scale": f"{scale:g}", "max": f"{STRONGEST:g}"}
            problems.append(Problem(f"section_lora_scales/{number}", "lora_scale_too_large", values))
    return problems


def layouts(loras: Sequence[Lora], layers: Shapes) -> list[tuple[Header, Layout]]:
    """Return header and layout of each file for a network with these layers.

    Raises UserError with every file that cannot be used.
    """
    found, problems = [], []
    for number, lora in enumerate(loras):
        try:
            header = read_header(lora.path)
            found.append((header, layout_of(lora.path, header, layers)))
        except LoraError as error:
            problems.append(lora_problem(f"loras/{number}", error))
    if problems:
        raise UserError(problems)
    return found


def layout_of(path: Path, header: Header, layers: Shapes) -> Layout:
    """Return how a file's tensors fit these layers.

    Raises LoraError for a file that does not fit, and for one with values that are not finite, which would make a black film.
    """
    layout = analyse(header, layers, str(path))
    check_alphas(path, header, layout)
    used = tuple(key for entry in layout.entries for key in entry.keys.values())
    if name := _first_not_finite(path, file_state(path), used):
        raise LoraError("not_finite", file=str(path), name=name)
    return layout


@lru_cache(maxsize=64)
def _first_not_finite(path: Path, state: tuple, keys: tuple[str, ...]) -> str | None:
    """Return the name of the first tensor with a value that is not finite, or None.

    The result is cached by the file's state: a file of a gigabyte is read once and not at every check of a request.
    """
    return first_not_finite(path, read_header(path), keys)


def file_state(path: Path) -> tuple[tuple[str, int, int], ...]:
    """Return path, size and time of a file and of the PEFT configuration beside it, which change when the files do.

    Raises LoraError ("missing").
    """
    found = []
    for file in filter(None, (path, config_beside(path))):
        try:
            stat = file.stat()
        except (OSError, ValueError):
            raise LoraError("missing", file=str(file)) from None
        found.append((str(file), stat.st_size, stat.st_mtime_ns))
    return tuple(found)
