"""The LoRA files of a request: where they lie, and what is wrong with them. Reads headers, no tensors."""

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
# As many slots as a page has; what is more would be out of its user's sight.
MOST_LORAS = 12
# Characters; no file system takes longer paths.
LONGEST_SHOWN = 4096


@dataclass(frozen=True)
class Lora:
    """A file and how strongly it acts: 1 as it was trained, 0 not at all, below 0 the other way.

    file: a path, or a name below webui/lora, which is the same on every computer. The default strength is that of the existing
    program.
    """

    file: str
    strength: float = 0.8

    @property
    def path(self) -> Path:
        """A name that leads out of webui/lora, as no request of ours has one, is looked for there by its last part."""
        if is_below(self.file) or Path(self.file).is_absolute():
            return LORAS / self.file
        return LORAS / Path(self.file.replace("\\", "/")).name

    def check(self, field: str) -> list[Problem]:
        """What is wrong with the file by itself, and with the strength."""
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
    """Return what the user is told of a file that cannot be used. field: of the request, with the file's number."""
    values = {name: _short(value) if isinstance(value, str) else value for name, value in error.values.items()}
    return Problem(f"{field}/file", f"lora_{error.key}", values)


def _short(text: str) -> str:
    """A name that no sentence could hold by its beginning and end; what cannot be written is a question mark."""
    text = text.encode(errors="replace").decode()
    return text if len(text) <= LONGEST_SHOWN else f"{text[: LONGEST_SHOWN // 2]} ... {text[-LONGEST_SHOWN // 2 :]}"


def is_below(file: str) -> bool:
    """Whether a request's name of a file can only mean one below webui/lora, wherever links in there lead."""
    # Both kinds of slashes, and a drive such as C:, whatever the system.
    path = PureWindowsPath(file)
    return bool(file) and not path.anchor and ".." not in path.parts


def named(path: str | Path) -> str:
    """How a request names a file: below webui/lora by its name there, elsewhere by its absolute path.

    A relative path is looked for in the current folder first, then below webui/lora.
    """
    absolute = Path(os.path.abspath(path))
    if not os.path.exists(absolute) and is_below(str(path)) and os.path.exists(LORAS / path):
        return Path(path).as_posix()
    return absolute.relative_to(LORAS).as_posix() if absolute.is_relative_to(LORAS) else str(absolute)


def shown_name(file: str | Path) -> str:
    """What a page calls a file: by its name below webui/lora, where two folders may have files of one name; elsewhere a file is
    known by its own name alone."""
    path = Path(file)
    return path.relative_to(LORAS).as_posix() if path.is_relative_to(LORAS) else path.name


def from_flag(text: str) -> dict[str, Any]:
    """`FILE` or `FILE=STRENGTH` as JSON. An equals sign in the name of a file that is there belongs to the name, and so does
    one before something that is no number."""
    if os.path.exists(text) or os.path.exists(LORAS / text):
        return {"file": named(text)}
    file, _, strength = text.rpartition("=")
    try:
        number = float(strength)
    except ValueError:
        return {"file": named(text)}
    # One that is too large for a number is named as it was written.
    return {"file": named(file), "strength": strength if math.isinf(number) else number} if file else {"file": named(text)}


def named_beside(document: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """A request's JSON document whose LoRA files that lie beside it are named by their path."""
    changed = dict(document)
    if isinstance(entries := changed.get("loras"), (list, tuple)):
        changed["loras"] = [_beside(entry, folder) for entry in entries]
    return changed


def _beside(entry: Any, folder: Path) -> Any:
    file = entry.get("file") if isinstance(entry, Mapping) else None
    # Asked so, a name that is too long or holds a NUL is that of no file.
    if isinstance(file, str) and (is_below(file) or Path(file).is_absolute()) and os.path.isfile(folder / file):
        return {**entry, "file": named(folder / file)}
    return entry


def read_loras(value: Any) -> tuple[Lora, ...]:
    """From JSON: a list of {"file": ..., "strength": ...}. Raises TypeError, or UserError naming the entry."""
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
    """Return what is wrong with the files of a field of that name, of which there may be so many."""
    if len(value) > most:
        return [Problem(name, "lora_too_many", {"count": len(value), "max": most})]
    return [problem for number, lora in enumerate(value) for problem in lora.check(f"{name}/{number}")]


def scaled(loras: Sequence[Lora], scale: float) -> tuple[float, ...] | None:
    """Strengths where all are multiplied by the scale; None where that changes nothing."""
    return None if scale == 1.0 or not loras else tuple(lora.strength * scale for lora in loras)


def _is_strength(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and math.isfinite(value) and abs(value) <= STRONGEST


def check_scales(loras: Sequence[Lora], scales: Mapping[int, float]) -> list[Problem]:
    """A section may not make a LoRA stronger than it can be anywhere; what is no such number by itself is said elsewhere."""
    problems = []
    strengths = [lora.strength for lora in loras if _is_strength(lora.strength)]
    for number, scale in sorted(scales.items()):
        strongest = max((strength * scale for strength in strengths if _is_strength(scale)), key=abs, default=0.0)
        if abs(strongest) > STRONGEST:
            values = {"strength": f"{strongest:g}", "scale": f"{scale:g}", "max": f"{STRONGEST:g}"}
            problems.append(Problem(f"section_lora_scales/{number}", "lora_scale_too_large", values))
    return problems


def layouts(loras: Sequence[Lora], layers: Shapes) -> list[tuple[Header, Layout]]:
    """What each file does to a network with these layers. Raises UserError with every file that cannot be used."""
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
    """Raises LoraError for a file that does not fit these layers, and for one that would make every film of it black."""
    layout = analyse(header, layers, str(path))
    check_alphas(path, header, layout)
    used = tuple(key for entry in layout.entries for key in entry.keys.values())
    if name := _first_not_finite(path, file_state(path), used):
        raise LoraError("not_finite", file=str(path), name=name)
    return layout


@lru_cache(maxsize=64)
def _first_not_finite(path: Path, state: tuple, keys: tuple[str, ...]) -> str | None:
    """Kept by file state, so that a file of a gigabyte is read once and not again at every check of a request."""
    return first_not_finite(path, read_header(path), keys)


def file_state(path: Path) -> tuple[tuple[str, int, int], ...]:
    """Tells a file, and what PEFT wrote beside it, from others under the same names. Raises LoraError ("missing")."""
    found = []
    for file in filter(None, (path, config_beside(path))):
        try:
            stat = file.stat()
        except (OSError, ValueError):
            raise LoraError("missing", file=str(file)) from None
        found.append((str(file), stat.st_size, stat.st_mtime_ns))
    return tuple(found)
