"""Read `eichi.json`, in which a models folder describes a model other than the hub's: sizes, settings, preview, examples.

    {"name": "miniature", "sizes": [128, 160, 192], "size": 128, "steps": 15, "checkpoints": ["framepack", "framepack_f1"],
     "preview": {"rows": [[r, g, b], ...], "bias": [r, g, b]}, "examples": [{"picture": "../examples/a.png", "prompt": "..."}]}

Every entry may be missing, and unknown ones are ignored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from diffusers_helper.vae.preview import CHANNELS, HUNYUAN_PREVIEW, PreviewMatrix
from eichi_utils.files.paths import real
from eichi_utils.files.safe_reading import read_json
from eichi_utils.problems import Problem, UserError, shown
from eichi_utils.requests.request import SIZES, check_fields
from eichi_utils.requests.reverse import ReverseRequest

FILE = "eichi.json"
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
# Request fields that a description may recommend a value for.
RECOMMENDED = ("size", "steps", "seconds", "step_cache")


@dataclass(frozen=True)
class Example:
    """Hold the path of a start picture, and a prompt that suits it."""

    picture: str
    prompt: str


@dataclass(frozen=True)
class Description:
    """Hold what a models folder says about its model.

    sizes: size families that the model was made for; empty if it does not say. recommended: request field -> value. preview:
    from latents to colours. checkpoints: names of the checkpoints that its one transformer was trained to serve; empty for a
    published transformer, which serves the one of its folder's name.
    """

    name: str = ""
    sizes: tuple[int, ...] = ()
    recommended: Mapping[str, Any] = field(default_factory=dict)
    preview: PreviewMatrix = HUNYUAN_PREVIEW
    checkpoints: tuple[str, ...] = ()
    examples: tuple[Example, ...] = ()


def read_description(folder: Path) -> Description:
    """Read the description in a models folder; without a file it is empty. Raises UserError if the file cannot be understood.

    Examples whose picture does not exist are left out: a folder may be copied without them.
    """
    path = folder / FILE
    try:
        return _description(read_json(path), folder)
    except FileNotFoundError:
        return Description()
    except (OSError, ValueError, TypeError, LookupError) as error:
        values = {"file": str(path), "reason": str(error)[:200] or type(error).__name__}
        raise UserError([Problem("models", "description_damaged", values)]) from None


def _description(document: Any, folder: Path) -> Description:
    entries = _typed(document, dict, "the whole")
    sizes = tuple(_typed(entries.get("sizes", []), list, "sizes"))
    if not all(type(size) is int and size in SIZES for size in sizes):
        raise ValueError(f"sizes: {sizes} are not all of {SIZES}")
    recommended = {name: entries[name] for name in RECOMMENDED if name in entries}
    wrong = [problem for problem in check_fields(ReverseRequest(**recommended)) if problem.field in recommended]
    if wrong:
        raise ValueError(f"{wrong[0].field}: {wrong[0].key}")
    if sizes and recommended.setdefault("size", sizes[0]) not in sizes:
        raise ValueError(f"size: {recommended['size']} is not one of {sizes}")
    preview = entries.get("preview")
    checkpoints = _typed(entries.get("checkpoints", []), list, "checkpoints")
    return Description(
        name=_typed(entries.get("name", ""), str, "name"),
        sizes=sizes,
        recommended=recommended,
        preview=HUNYUAN_PREVIEW if preview is None else _preview(_typed(preview, dict, "preview")),
        checkpoints=tuple(_typed(name, str, "checkpoints") for name in checkpoints),
        examples=tuple(_examples(_typed(entries.get("examples", []), list, "examples"), folder)),
    )


def _preview(entries: dict[str, Any]) -> PreviewMatrix:
    rows = tuple(_colour(row) for row in entries["rows"])
    if len(rows) != CHANNELS:
        raise ValueError(f"preview: {len(rows)} rows instead of {CHANNELS}")
    return PreviewMatrix(rows, _colour(entries["bias"]))


def _colour(values: Any) -> tuple[float, float, float]:
    red, green, blue = (float(_typed(value, (int, float), "preview")) for value in values)
    if not all(map(math.isfinite, (red, green, blue))):
        raise ValueError("preview: numbers must be finite")
    return red, green, blue


def _examples(entries: list[Any], folder: Path) -> list[Example]:
    examples = []
    for entry in entries:
        texts = {item.name: _typed(entry[item.name], str, "examples") for item in fields(Example)}
        picture = real(folder / texts["picture"])
        # Pictures are served to browsers, so only those in the model's folder or the folder `examples` beside it are allowed.
        inside = any(picture.is_relative_to(real(place)) for place in (folder, folder.parent / "examples"))
        if inside and picture.suffix.lower() in PICTURE_SUFFIXES and picture.is_file():
            examples.append(Example(str(picture), texts["prompt"]))
    return examples


def _typed(value: Any, kind: type | tuple[type, ...], name: str) -> Any:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError(f"{name}: {shown(value)!r} is not possible")
    return value
