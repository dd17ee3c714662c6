"""What a picture or film says of itself: ours, those of the existing program, and the `parameters` text of others."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from PIL import ExifTags, Image, UnidentifiedImageError

from eichi_utils import modes
from eichi_utils.fields import for_mode, from_the_end, usable
from eichi_utils.metadata import KEY, read_document
from eichi_utils.pictures import opened
from eichi_utils.problems import Problem, UserError
from eichi_utils.request import to_json

Wanted = Literal["prompt", "seed", "everything"]
# "Seed: 7" alone on its line ends the prompt; one inside the prompt has more words after it, or the prompt goes on below.
SEED = re.compile(r"^Seed:[ \t]*(-?\d{1,20})[ \t]*$", re.MULTILINE)
SECTION = re.compile(r"^Section (?:Number:[ \t]*\d+[ \t]*$|Prompt:)", re.MULTILINE)
SECTION_NUMBER = re.compile(r"^Section Number:[ \t]*(\d{1,20})[ \t]*$", re.MULTILINE)
SECTION_PROMPT = re.compile(r"^Section Prompt:[ \t]*(.*?)\s*(?=^Section Number:|\Z)", re.MULTILINE | re.DOTALL)
# The last line that Stable Diffusion programs write: "Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 5, Size: 512x512".
STEPS = re.compile(r"^Steps: \d+, .*\Z", re.MULTILINE)
STEPS_SEED = re.compile(r"\bSeed: (-?\d{1,20})\b")
NEGATIVE = re.compile(r"^Negative prompt:[ \t]*", re.MULTILINE)


@dataclass(frozen=True)
class PictureText:
    """What a picture says of itself; None where it says nothing. A seed of 0 is a seed.

    document: the whole request, in files of this program.
    """

    prompt: str | None = None
    seed: int | None = None
    section_prompt: str | None = None
    section_number: int | None = None
    negative_prompt: str | None = None
    document: Mapping[str, Any] = field(default_factory=dict)


def read_picture_text(path: str | Path) -> PictureText:
    """The texts of a picture. Raises UserError if it cannot be read, or says neither prompt nor seed."""
    path = Path(path)
    values = {"file": str(path)}
    try:
        with opened(path) as picture:
            # Text may stand behind the pixels.
            picture.load()
            chunks = {name: text for name, text in picture.info.items() if isinstance(text, str)}
            comment = _comment(picture.getexif().get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment))
            chunks = {"parameters": comment, **chunks} if comment else chunks
    except UnidentifiedImageError:
        raise UserError([Problem("request", "request_not_in_file", values)]) from None
    except (OSError, ValueError, SyntaxError, EOFError, IndexError, Image.DecompressionBombError) as error:
        raise UserError([Problem("request", "picture_damaged", {**values, "reason": str(error)[:200]})]) from None
    found = picture_text(chunks)
    if found == PictureText():
        raise UserError([Problem("request", "picture_without_text", values)])
    return found


def read_text(path: str | Path) -> PictureText:
    """The same of a picture, or of a film or a JSON file of this program."""
    if Path(path).suffix.lower() not in (".mp4", ".json"):
        return read_picture_text(path)
    document = read_document(path)
    if not isinstance(document, Mapping):
        raise UserError([Problem("request", "request_not_in_file", {"file": str(path)})])
    said = {name: document.get(name) for name in ("prompt", "seed", "negative_prompt")}
    fields, _ = usable("reverse", {name: value for name, value in said.items() if value is not None})
    return PictureText(**fields, document=document)


def picture_text(chunks: Mapping[str, str]) -> PictureText:
    """From a PNG's text chunks; what `parameters` says goes before the single ones."""
    single = {
        "prompt": _text(chunks.get("prompt")),
        "seed": _integer(chunks.get("seed")),
        "section_prompt": _text(chunks.get("section_prompt")),
        "section_number": _integer(chunks.get("section_number")),
    }
    read = {name: value for name, value in parse_parameters(chunks.get("parameters", "")).items() if value is not None}
    return PictureText(**{**single, **read}, document=_document(chunks.get(KEY)))


def parse_parameters(text: str) -> dict[str, Any]:
    """`parameters`: the prompt, of any number of lines, then `Seed: N`, `Section Prompt: ...`, `Section Number: N`."""
    text = text.replace("\r\n", "\n").strip()
    if steps := STEPS.search(text):
        return _parse_stable_diffusion(text[: steps.start()], steps[0])
    seeds = [found for found in SEED.finditer(text) if not (rest := text[found.end() :].strip()) or SECTION.match(rest)]
    section = SECTION.search(text, seeds[0].end()) if seeds else SECTION.search(text)
    tail = text[section.start() :] if section else ""
    end = seeds[0].start() if seeds else section.start() if section else len(text)
    number, prompt = SECTION_NUMBER.search(tail), SECTION_PROMPT.search(tail)
    return {
        "prompt": text[:end].strip() or None,
        "seed": int(seeds[0][1]) if seeds else None,
        "section_prompt": prompt[1] or None if prompt else None,
        "section_number": int(number[1]) if number else None,
    }


def request_fields(text: PictureText, mode: str, wanted: Wanted) -> tuple[dict[str, Any], list[Problem]]:
    """Fields in JSON form for a request of the mode, and what could not be used.

    wanted: "everything" is the whole request where the picture holds one, else all that it says.
    """
    document = text.document
    kind = modes.MODES.get(str(document.get("mode")))
    if wanted == "everything" and kind:
        fields, notes = usable(kind.mode, {str(name): value for name, value in document.items() if name != "mode"})
        whole = from_the_end({**to_json(kind()), **fields})
        fields, lost = for_mode(kind.mode, mode, {name: value for name, value in whole.items() if name != "mode"})
        return fields, notes + lost
    said = {"prompt": text.prompt, "seed": text.seed, "negative_prompt": text.negative_prompt}
    # `parameters` loses lines of a prompt that look like its own; the document beside it does not.
    said |= {name: document[name] for name in said if name in document}
    names = said.keys() if wanted == "everything" else {wanted}
    return usable(mode, {name: value for name, value in said.items() if name in names and value is not None})


def _parse_stable_diffusion(before: str, steps: str) -> dict[str, Any]:
    prompt, negative = before, ""
    if found := NEGATIVE.search(before):
        prompt, negative = before[: found.start()], before[found.end() :]
    seed = STEPS_SEED.search(steps)
    return {
        "prompt": prompt.strip() or None,
        "negative_prompt": negative.strip() or None,
        "seed": int(seed[1]) if seed else None,
    }


def _comment(data: Any) -> str:
    """The text of an EXIF comment, where JPEG and WebP files of Stable Diffusion programs hold their `parameters`.

    Its first eight bytes say how it is written (EXIF 2.3, 4.6.5 "UserComment").
    """
    if not isinstance(data, bytes):
        return ""
    kind, text = data[:8].rstrip(b"\0"), data[8:]
    # Either order of bytes is in use; in both, the high byte of "Seed" or a line's end is 0.
    unicode = "utf-16-le" if text[1::2].count(0) > text[::2].count(0) else "utf-16-be"
    coding = {b"UNICODE": unicode, b"ASCII": "ascii"}.get(kind)
    return text.decode(coding, "replace").strip("\0") if coding else ""


def _text(chunk: str | None) -> str | None:
    """A chunk's text. Some programs write it as JSON; a whole graph of nodes under the name "prompt" is no prompt."""
    if not chunk or not chunk.strip():
        return None
    try:
        value = json.loads(chunk)
    except (ValueError, RecursionError):
        return chunk
    if isinstance(value, (dict, list)):
        return None
    return value if isinstance(value, str) else chunk


def _integer(chunk: str | None) -> int | None:
    # No seed has more digits, and Python refuses thousands of them.
    found = re.fullmatch(r'\s*"?(-?\d{1,20})"?\s*', chunk or "")
    return int(found[1]) if found else None


def _document(chunk: str | None) -> Mapping[str, Any]:
    try:
        document = json.loads(chunk or "null")
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, Mapping) else {}
