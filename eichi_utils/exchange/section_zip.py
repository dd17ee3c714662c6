"""Export and import a film's pictures, prompts and settings as one ZIP, in the existing program's format.

    sections/sections.yaml                 prompts, seed, LoRA, length; and under our own key the whole request
    sections/start.png  sections/end.png   start picture and final frame
    sections/000.png ... sections/NNN.png  keyframes by section; 0 is the end of the film
    sections/append.safetensors            latents that come after the film; only our own

In a ZIP made by hand, pictures may lie in any folder; their names must begin with `start`, `end` or three digits.
"""

from __future__ import annotations

import re
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from PIL.Image import DecompressionBombError

from eichi_utils.exchange.section_yaml import fields_of, old_document, own_fields, parse, text_of
from eichi_utils.files.copies import keep
from eichi_utils.files.latent_header import latents_problem
from eichi_utils.files.paths import DEFAULT_UPLOADS, written_atomically
from eichi_utils.files.picture_files import DAMAGE, picture_format
from eichi_utils.files.picture_files import opened as opened_picture
from eichi_utils.files.pictures import open_picture, picture_problem
from eichi_utils.files.temporary import own_prefix
from eichi_utils.files.zip_reading import MAX_READ, Archive, most_bytes, opened, shown_name
from eichi_utils.problems import Problem, UserError
from eichi_utils.requests import modes
from eichi_utils.requests.film_request import FilmRequest
from eichi_utils.requests.request import Request, to_json
from eichi_utils.requests.reverse import ReverseRequest
from eichi_utils.requests.transfer import for_mode, from_the_end

How = Literal["replace", "merge"]
FOLDER = "sections"
TEXT = f"{FOLDER}/sections.yaml"
# Suffixes that the existing program takes for a picture.
SUFFIXES = (".png", ".jpeg", ".jpg", ".webp")
# Picture field -> its file's name without suffix.
STEMS = {"image": "start", "end_image": "end"}
LATENTS, LATENTS_STEM, LATENTS_SUFFIX = "append_latents", "append", ".safetensors"
# Fields that a ZIP always defines: one that is missing in it is empty, not unknown.
CONTENTS = ("image", "end_image", "keyframes", "section_prompts", "prompt", "loras", "section_lora_scales")
# Files that systems add to archives by themselves.
CLUTTER = re.compile(r"__MACOSX/|(.*/)?(\._[^/]*|\.DS_Store|Thumbs\.db|desktop\.ini)$", re.IGNORECASE | re.DOTALL)
# Largest number of pixels of all pictures together, which take a second and a half to decode, and how many more are allowed for
# each packed byte. A picture of 1920 x 1080 pixels of one colour has 6 kB; a photo has less than 20 pixels per byte.
FREE_PIXELS, MOST_PIXELS_PER_BYTE = 150_000_000, 100
# Largest number of names listed in a note.
MOST_LISTED = 50


@dataclass(frozen=True)
class Contents:
    """Hold what a ZIP says. mode: of the exported film, or "" if the existing program or a person made the file.

    fields: request fields in JSON form, pictures as names of entries, sections counted from the film's end.
    notes: what was not understood or has no place.
    """

    mode: str
    fields: Mapping[str, Any]
    notes: tuple[Problem, ...]


def export_sections(request: Request, path: Path, language: str = "en") -> None:
    """Write a film's ZIP. language: of the existing program's page that shall read it.

    The film need not be complete, but files that it names must be readable. Raises UserError; then nothing is written.
    """
    if not isinstance(request, FilmRequest):
        raise UserError([Problem("mode", "sections_need_film")])
    files = dict(_files(request))
    problems = [problem for place, file in files.items() if (problem := _export_problem(place, file))]
    if problems:
        raise UserError(problems)
    names = {place: _entry_name(place, file) for place, file in files.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_atomically(path) as temporary, zipfile.ZipFile(temporary, "w", strict_timestamps=False) as archive:
            archive.writestr(TEXT, text_of(request, _nested(names), language))
            for place, name in names.items():
                _write(archive, files[place], name)
    except OSError as error:
        values = {"folder": str(path.parent), "reason": error.strerror or str(error)}
        raise UserError([Problem("out", "folder_not_writable", values)]) from None


def import_sections(
    path: Path, onto: Request | None = None, how: How = "replace", uploads: Path = DEFAULT_UPLOADS
) -> tuple[Request, tuple[Problem, ...]]:
    """Return the request that results from a ZIP and `onto`, and notes on what had no place in it.

    onto: the request to change; None is a new one of the ZIP's mode. how: "replace" takes pictures, prompts and LoRA from the
    ZIP even where it has none; "merge" adds the ZIP's to those of `onto`, and the ZIP wins where both have one.
    Files are copied to `uploads`. Raises UserError before anything is copied.
    """
    with tempfile.TemporaryDirectory(prefix=own_prefix()) as folder:
        with opened(path) as archive:
            contents = _contents(archive, path)
            onto = onto or modes.MODES[contents.mode or ReverseRequest.mode]()
            if not isinstance(onto, FilmRequest):
                raise UserError([Problem("mode", "sections_need_film")])
            length = {"seconds": onto.seconds, "window": onto.window}
            fields, notes = for_mode(contents.mode or ReverseRequest.mode, onto.mode, {**length, **contents.fields})
            files = _unpacked(archive, fields, Path(folder), path)
        kept = _kept(files, uploads)
    fields = _renamed(fields, kept)
    document = _merged(to_json(onto), fields) if how == "merge" else _replaced(onto, fields)
    return modes.from_json(document), (*contents.notes, *notes)


def _contents(archive: Archive, path: Path) -> Contents:
    useful = sorted(name for name in archive.entries if not CLUTTER.match(name))
    texts = [name for name in useful if PurePosixPath(name).name.lower().endswith(("sections.yaml", "sections.yml"))]
    if not texts:
        raise UserError([Problem("sections", "zip_without_sections", {"file": str(path)})])
    # Prefers the exact name to "mysections.yaml", and outer folders to inner ones.
    text = min(texts, key=lambda name: (len(PurePosixPath(name).stem), name.count("/"), name))
    if (size := archive.entries[text].file_size) > MAX_READ:
        sizes = {"size": size // 2**20, "limit": MAX_READ // 2**20}
        raise UserError([Problem("sections", "zip_entry_size", {"file": str(path), "name": text, **sizes})])
    document = parse(archive.read(text), text)
    fields, notes = fields_of(document)
    found, unused = _found_files([name for name in useful if name != text])
    mode, own, bad = own_fields(document)
    fields = {**fields, **found}
    if mode:
        fields = _edited(mode, own, fields)
    if (named := fields.get(LATENTS)) and named != found.get(LATENTS):
        fields = {**fields, LATENTS: ""}
        notes.append(Problem("sections", "zip_latents_missing", {"file": PurePosixPath(named.replace("\\", "/")).name}))
    if unused:
        notes.append(Problem("sections", "zip_unused", {"names": _listed(unused)}))
    return Contents(mode, fields, tuple(notes + bad))


def _listed(names: Sequence[str]) -> str:
    """Return the first `MOST_LISTED` names as text, and the number of the others."""
    shown = names[:MOST_LISTED]
    more = f", \u2026 (+{len(names) - len(shown)})" if len(names) > len(shown) else ""
    return ", ".join(shown_name(name)[-100:] for name in shown) + more


def _found_files(entries: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Return the entries of pictures and latents by field, and the entries that are neither."""
    found: dict[str, Any] = {}
    keyframes: dict[str, str] = {}
    unused = []
    for entry in entries:
        base = PurePosixPath(entry).name.lower()
        field = next((field for field, stem in STEMS.items() if base.startswith(stem)), "")
        # If several entries fit one field, the last in alphabetical order counts.
        if base == LATENTS_STEM + LATENTS_SUFFIX:
            unused += [found[LATENTS]] if LATENTS in found else []
            found[LATENTS] = entry
        elif not base.endswith(SUFFIXES):
            unused.append(entry)
        elif base[:3].isascii() and base[:3].isdecimal() and len(base) > 3:
            unused += [keyframes[number]] if (number := str(int(base[:3]))) in keyframes else []
            keyframes[number] = entry
        elif field:
            unused += [found[field]] if field in found else []
            found[field] = entry
        else:
            unused.append(entry)
    return found | ({"keyframes": keyframes} if keyframes else {}), unused


def _edited(mode: str, own: Mapping[str, Any], old: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of our own key, with each old key's value that differs from the one exported beside it.

    Such a value was changed by hand.
    """
    document = {**to_json(modes.MODES[mode]()), **own, "mode": mode}
    request = modes.from_json(document)
    if not isinstance(request, FilmRequest):
        raise UserError([Problem("mode", "sections_need_film")])
    written, _ = fields_of(old_document(request, "en"))
    ours = from_the_end(document)
    written |= {name: ours[name] for name in (*STEMS, LATENTS, "keyframes") if ours.get(name)}
    changed = {name: value for name, value in old.items() if written.get(name, ...) != value}
    gone = [name for name in written if name not in old and name in CONTENTS]
    kept = {name: value for name, value in ours.items() if name not in gone and name != "mode"}
    return {**kept, **changed}


def _unpacked(archive: Archive, fields: Mapping[str, Any], folder: Path, path: Path) -> dict[str, Path]:
    """Return entry -> unpacked file for all files that the fields name. Raises UserError with all that cannot be read."""
    entries, places, problems = {}, {}, []
    pixels, most = 0, FREE_PIXELS
    for place, entry in _named(fields):
        if entry in entries:
            continue
        entries[entry], places[entry] = folder / f"{len(entries)}{PurePosixPath(entry).suffix.lower()}", place
        archive.unpack(entry, entries[entry])
        pixels += 0 if place == LATENTS else _pixels(entries[entry])
        most += MOST_PIXELS_PER_BYTE * archive.entries[entry].compress_size
    if pixels > most:
        sizes = {"size": pixels * 3 // 2**20, "limit": most * 3 // 2**20}
        raise UserError([Problem("sections", "zip_total_size", {"file": str(path), **sizes})])
    for entry, file in entries.items():
        problem = _file_problem(places[entry], file)
        if problem:
            problems.append(replace(problem, values={**problem.values, "file": entry}))
    if problems:
        raise UserError(problems)
    return entries


def _pixels(file: Path) -> int:
    """Return the number of pixels of a decoded picture, 0 if the file is no picture."""
    try:
        with opened_picture(file) as picture:
            return picture.width * picture.height
    except (*DAMAGE, DecompressionBombError):
        return 0


def _kept(files: Mapping[str, Path], uploads: Path) -> dict[str, str]:
    """Return entry -> path of its copy in the uploads folder. Raises UserError; then no copy is left."""
    before = set(uploads.iterdir()) if uploads.is_dir() else set()
    kept: dict[str, str] = {}
    try:
        for entry, file in files.items():
            kept[entry] = str(keep(file, uploads, entry))
    except OSError as error:
        for path in {Path(path) for path in kept.values()} - before:
            path.unlink()
        values = {"folder": str(uploads), "reason": error.strerror or str(error)}
        raise UserError([Problem("sections", "folder_not_writable", values)]) from None
    return kept


def _replaced(onto: FilmRequest, fields: Mapping[str, Any]) -> dict[str, Any]:
    empty = to_json(type(onto)())
    return {**to_json(onto), **{name: empty[name] for name in CONTENTS if name in empty}, **fields}


def _merged(document: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(document)
    for name, value in fields.items():
        if isinstance(value, Mapping):
            merged[name] = {**document[name], **value}
        elif name == "loras":
            files = {lora["file"] for lora in value}
            merged[name] = [lora for lora in document[name] if lora["file"] not in files] + list(value)
        # Empty values and a random seed in the ZIP do not replace the request's.
        elif value not in ("", -1):
            merged[name] = value
    return merged


def _files(request: FilmRequest) -> Iterator[tuple[str, str]]:
    """Yield (place, file) of every file of a request: "image", "keyframes/3". Sections are counted from the film's end."""
    yield from _named(from_the_end(to_json(request)))


def _named(fields: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name in (*STEMS, LATENTS):
        if fields.get(name):
            yield name, fields[name]
    for number, name in fields.get("keyframes", {}).items():
        yield f"keyframes/{number}", name


def _renamed(fields: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    own = {name: names[fields[name]] for name in (*STEMS, LATENTS) if fields.get(name)}
    keyframes = {number: names[entry] for number, entry in fields.get("keyframes", {}).items()}
    return {**fields, **own, **({"keyframes": keyframes} if "keyframes" in fields else {})}


def _nested(names: Mapping[str, str]) -> dict[str, Any]:
    keyframes = {place.partition("/")[2]: name for place, name in names.items() if "/" in place}
    own = {place: name for place, name in names.items() if "/" not in place}
    return own | ({"keyframes": keyframes} if keyframes else {})


def _file_problem(place: str, file: str | Path) -> Problem | None:
    return latents_problem(place, file) if place == LATENTS else picture_problem(place, file)


def _export_problem(place: str, file: str) -> Problem | None:
    problem = _file_problem(place, file)
    if problem is None and (size := Path(file).stat().st_size) > (limit := most_bytes(file)):
        sizes = {"size": size // 2**20, "limit": limit // 2**20}
        return Problem(place, "zip_entry_size", {"file": file, "name": Path(file).name, **sizes})
    return problem


def _entry_name(place: str, file: str) -> str:
    if place == LATENTS:
        return f"{FOLDER}/{LATENTS_STEM}{LATENTS_SUFFIX}"
    suffix = Path(file).suffix.lower()
    number = place.partition("/")[2]
    stem = f"{int(number):03d}" if number else STEMS[place]
    return f"{FOLDER}/{stem}{suffix if _as_it_is(file) else '.png'}"


def _as_it_is(file: str) -> bool:
    """Say whether the existing program reads a picture file: its suffix and its format must be known to it."""
    return Path(file).suffix.lower() in SUFFIXES and picture_format(file) in ("PNG", "JPEG", "WEBP")


def _write(archive: zipfile.ZipFile, file: str, name: str) -> None:
    if name.endswith(LATENTS_SUFFIX) or _as_it_is(file):
        archive.write(file, name)
    else:
        # The existing program does not find pictures of other formats in a ZIP.
        with archive.open(name, "w") as target:
            open_picture(file).save(target, "PNG")
