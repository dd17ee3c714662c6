"""Read what a picture, film or JSON file says of its making: files of this program, the existing program and others."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from av.error import FFmpegError
from PIL import Image, UnidentifiedImageError

from eichi_utils.exchange.film_texts import SUFFIXES, NoFilmError, film_texts
from eichi_utils.exchange.foreign_texts import said_by, said_by_document
from eichi_utils.exchange.metadata import document_among, is_ours, read_document
from eichi_utils.exchange.named_files import FILES, is_file, with_paths
from eichi_utils.files.exif import COMMENT, TEXTS, read_exif
from eichi_utils.files.film_boxes import FilmLimitError
from eichi_utils.files.picture_files import exif
from eichi_utils.files.png_chunks import MOST_TEXT, is_png, png_texts
from eichi_utils.files.safe_reading import parse_json
from eichi_utils.problems import Problem, UserError
from eichi_utils.requests import modes
from eichi_utils.requests.kinds import MAX_PROMPT_CHARACTERS
from eichi_utils.requests.request import to_json
from eichi_utils.requests.transfer import for_mode, from_the_end, usable

Wanted = Literal["prompt", "seed", "everything"]
# Entries of a document beside the request's fields.
BESIDE = ("mode", FILES)
# Fields that other programs' files may give.
SAID = ("prompt", "seed", "negative_prompt", "seconds")
# Characters: a longer `prompt` text is no prompt, and a longer field is not taken over.
MOST_PROMPT, MOST_TAKEN = 2**20, 20 * MAX_PROMPT_CHARACTERS
# Exceptions that Pillow and its readers of EXIF raise for damaged files.
DAMAGED = (OSError, ValueError, SyntaxError, EOFError, LookupError, TypeError, struct.error, Image.DecompressionBombError)


@dataclass(frozen=True)
class PictureText:
    """Hold what a file says of its making; None for what it does not say. A seed of 0 is a seed.

    document: the whole request, in files of this program. too_large: names of texts that were left out for their size.
    """

    prompt: str | None = None
    seed: int | None = None
    section_prompt: str | None = None
    section_number: int | None = None
    negative_prompt: str | None = None
    seconds: float | None = None
    document: Mapping[str, Any] = field(default_factory=dict)
    too_large: tuple[str, ...] = ()

    def left_out(self, file: str) -> list[Problem]:
        """Return the problem that names the texts which were too large, for the user."""
        if not self.too_large:
            return []
        values = {"file": file, "names": ", ".join(self.too_large)[:200]}
        return [Problem("request", "text_too_large", values)]


def read_picture_text(path: str | Path) -> PictureText:
    """Return the texts of a picture. Raises UserError if it cannot be read, or says neither prompt nor seed."""
    path = Path(path)
    values = {"file": str(path)}
    try:
        chunks, too_large = _png_chunks(path) if is_png(path) else (_exif_texts(exif(path)), ())
    except UnidentifiedImageError:
        raise UserError([Problem("request", "request_not_in_file", values)]) from None
    except DAMAGED as error:
        raise UserError([Problem("request", "picture_damaged", {**values, "reason": str(error)[:200]})]) from None
    text = replace(picture_text(chunks), too_large=tuple(too_large))
    return _something(text, path, Problem("request", "picture_without_text", values))


def read_text(path: str | Path, folders: Iterable[Path] = ()) -> PictureText:
    """Return the texts of a picture, film or JSON file. Raises UserError, as `read_picture_text`.

    folders: where the files are looked for that a request names.
    """
    path = Path(path)
    readers = {".json": _json_text, **dict.fromkeys(SUFFIXES, _film_text)}
    text = readers.get(path.suffix.lower(), read_picture_text)(path)
    return replace(text, document=with_paths(text.document, folders)) if text.document else text


def _something(text: PictureText, path: Path, nothing: Problem) -> PictureText:
    """Return a text that is not empty. Raises UserError with the texts that were too large, or with `nothing`."""
    if replace(text, too_large=()) != PictureText():
        return text
    raise UserError(text.left_out(str(path)) or [nothing])


def _json_text(path: Path) -> PictureText:
    document = read_document(path)
    said = said_by_document(document)
    ours = document if is_ours(document) else {}
    if ours:
        said = {name: value for name in ("prompt", "seed", "negative_prompt") if (value := said.get(name)) is not None}
    nothing = Problem("request", "request_not_in_file", {"file": str(path)})
    return _something(PictureText(**said, document=ours), path, nothing)


def _film_text(path: Path) -> PictureText:
    values = {"file": str(path)}
    if not is_file(path):
        raise UserError([Problem("request", "request_missing", values)])
    try:
        found = film_texts(path)
        text = picture_text(found.texts, found.rate)
    except NoFilmError:
        raise UserError([Problem("request", "request_not_in_file", values)]) from None
    except FilmLimitError as error:
        raise UserError([error.problem("request", str(path))]) from None
    except (OSError, ValueError, FFmpegError) as error:
        raise UserError([Problem("request", "request_damaged", {**values, "reason": str(error)[:200]})]) from None
    text = replace(text, too_large=tuple(found.too_large))
    return _something(text, path, Problem("request", "request_not_in_file", values))


def picture_text(chunks: Mapping[str, str], rate: float = 0.0) -> PictureText:
    """Return what a file's texts say, by keyword. rate: frames per second of a film.

    The existing program's single texts (`prompt`, `seed`, ...) are used only where no other text has the value.
    """
    chunks = {name.lower(): text for name, text in chunks.items()}
    single = {
        "prompt": _text(chunks.get("prompt")),
        "seed": _integer(chunks.get("seed")),
        "section_prompt": _text(chunks.get("section_prompt")),
        "section_number": _integer(chunks.get("section_number")),
    }
    document = _document(chunks)
    others = said_by({name: text for name, text in chunks.items() if name != "comment" or not document}, rate)
    return PictureText(**{**single, **others}, document=document)


def request_fields(text: PictureText, mode: str, wanted: Wanted) -> tuple[dict[str, Any], list[Problem]]:
    """Return fields in JSON form for a request of the mode, and what could not be used.

    wanted: one field, or "everything": the whole request if the file holds one, else all that the file says.
    """
    document = text.document
    kind = modes.MODES.get(str(document.get("mode")))
    if wanted == "everything" and kind:
        fields, notes = usable(kind.mode, {str(name): value for name, value in document.items() if name not in BESIDE})
        whole = from_the_end({**to_json(kind()), **fields})
        fields, lost = for_mode(kind.mode, mode, {name: value for name, value in whole.items() if name != "mode"})
        return _not_too_long(fields, notes + lost)
    known = modes.MODES[mode].__dataclass_fields__
    said = {name: getattr(text, name) for name in SAID if name in known}
    # A `parameters` text loses lines of a prompt that look like its own keywords; the request beside it does not.
    said |= {name: document[name] for name in said if name in document}
    names = said.keys() if wanted == "everything" else {wanted}
    return _not_too_long(*usable(mode, {name: one for name, one in said.items() if name in names and one is not None}))


def _not_too_long(fields: Mapping[str, Any], notes: list[Problem]) -> tuple[dict[str, Any], list[Problem]]:
    """Leave out texts that are far too long to be edited on a page, with a note for each."""
    kept = dict(fields)
    for name, value in fields.items():
        texts = value.values() if isinstance(value, Mapping) else (value,)
        longest = max((len(text) for text in texts if isinstance(text, str)), default=0)
        if longest > MOST_TAKEN:
            notes = [*notes, Problem(name, "text_too_long", {"characters": longest, "limit": MAX_PROMPT_CHARACTERS})]
            del kept[name]
    return kept, notes


def _png_chunks(path: Path) -> tuple[dict[str, str], list[str]]:
    found = png_texts(path)
    return {**_exif_texts(read_exif(found.exif)), **found.texts}, found.too_large


def _exif_texts(found: Mapping[int, int | bytes]) -> dict[str, str]:
    """Return the texts of EXIF tags, which JPEG and WebP files have instead of text chunks."""
    texts = {}
    # ComfyUI's WebP files: "prompt:{...}", "workflow:{...}".
    for tag in TEXTS:
        data = found.get(tag, b"")
        name, colon, text = data.decode("latin-1").partition(":") if isinstance(data, bytes) else ("", "", "")
        if colon and name in ("prompt", "workflow"):
            texts[name] = text.rstrip("\0")
    comment = _comment(found.get(COMMENT))
    return {**texts, "parameters": comment} if comment else texts


def _comment(data: Any) -> str:
    """Return the text of an EXIF comment, in which Stable Diffusion programs write their `parameters` in JPEG and WebP files.

    Its first eight bytes name its encoding (EXIF 2.3, 4.6.5 "UserComment").
    """
    if not isinstance(data, bytes) or len(data) > MOST_TEXT:
        return ""
    kind, text = data[:8].rstrip(b"\0"), data[8:]
    # Both byte orders are in use. In each, the high bytes of "Seed" or of a line's end are 0.
    unicode = "utf-16-le" if text[1::2].count(0) > text[::2].count(0) else "utf-16-be"
    coding = {b"UNICODE": unicode, b"ASCII": "ascii"}.get(kind)
    return text.decode(coding, "replace").strip("\0") if coding else ""


def _text(chunk: str | None) -> str | None:
    """Return a chunk's text, which some programs write as JSON. A ComfyUI graph under the name "prompt" is no prompt."""
    if not chunk or not chunk.strip():
        return None
    # Only a graph is as long as this.
    if len(chunk) > MOST_PROMPT:
        return None
    try:
        value = parse_json(chunk)
    except ValueError:
        # A graph that holds NaN is no JSON, and no prompt either.
        return None if chunk.lstrip().startswith('{"') else chunk
    if isinstance(value, (dict, list)):
        return None
    return value if isinstance(value, str) else chunk


def _integer(chunk: str | None) -> int | None:
    # Limits the digits: Python refuses to convert thousands of them.
    found = re.fullmatch(r'"?(-?\d{1,20})"?', (chunk or "").strip())
    return int(found[1]) if found else None


def _document(texts: Mapping[str, str]) -> Mapping[str, Any]:
    try:
        document = document_among(texts)
    except ValueError:
        return {}
    return document if isinstance(document, Mapping) else {}
