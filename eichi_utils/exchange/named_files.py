"""Name a request's files by name and content in files for others, since paths would tell of the user's computer.

Such a document has the bare name in a file's field, and one more entry beside its fields:

    "files": {"image": {"name": "cat.jpg", "sha256": "9f86...", "bytes": 81234}, "keyframes/3": {...}, "loras/0/file": {...}}

When it is read, the files are looked for in folders and recognized by their content.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import cached_property, lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from eichi_utils.files.paths import LORAS
from eichi_utils.files.safe_reading import open_regular
from eichi_utils.requests.file_fields import map_files, map_loras
from eichi_utils.requests.loras import named

FILES = "files"
# Largest file that is hashed, which takes a second per gigabyte on a slow processor. A LoRA may have several gigabytes; larger
# files are recognized by name and size.
MOST_HASHED = 512 * 2**20
# Largest number of files of a folder that are looked at.
MOST_FILES = 100_000
PIECE = 2**20


def without_paths(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return a request's JSON document for a file that others may get. Fields without a path stay as they are."""
    before = document.get(FILES)
    files = dict(before) if isinstance(before, Mapping) else {}

    def name(place: str, path: str) -> str:
        if not _has_folder(path):
            return path
        files[place] = identity(path)
        return files[place]["name"]

    def name_lora(place: str, file: str) -> str:
        return name(place, file) if lora_name(file) != file else file

    changed = map_loras(map_files(document, name), name_lora)
    folder = changed.get("output_folder")
    if isinstance(folder, str) and not _is_below(folder):
        changed["output_folder"] = ""
    changed.pop(FILES, None)
    return {**changed, FILES: files} if files else changed


def lora_name(file: str) -> str:
    """Return the name of a LoRA file in files for others: names below the LoRA folder are the same everywhere and stay."""
    return file if _is_below(file) else bare_name(file)


def parts_without_paths(parts: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the parts that a file of latents was made of, with their requests and parts without paths."""
    changed = []
    for part in parts:
        own = dict(part)
        if isinstance(own.get("request"), Mapping):
            own["request"] = without_paths(own["request"])
        if isinstance(own.get("parts"), (list, tuple)):
            own["parts"] = parts_without_paths(one for one in own["parts"] if isinstance(one, Mapping))
        changed.append(own)
    return changed


class Folders:
    """Find files in folders by content, whatever their names are there. A folder is read once, and only if needed."""

    def __init__(self, folders: Iterable[Path]):
        self.folders = folders

    def find(self, entry: Any) -> Path | None:
        """Return the file with the content that an entry describes, or None."""
        name = entry.get("name") if isinstance(entry, Mapping) else None
        if not isinstance(name, str) or not name or _has_folder(name):
            return None
        digest, size = entry.get("sha256"), entry.get("bytes")
        same = self._by_size.get(size, []) if isinstance(size, int) else []
        if isinstance(digest, str):
            return next((file for file in same if identity(file).get("sha256") == digest), None)
        # Without a hash, because the file was too large: name and size must do.
        return next((file for file in same if file.name == name), None)

    @cached_property
    def _by_size(self) -> dict[int, list[Path]]:
        sizes: dict[int, list[Path]] = {}
        for folder in self.folders:
            with suppress(OSError, ValueError), os.scandir(folder) as files:
                for file in islice(files, MOST_FILES):
                    if file.is_file():
                        sizes.setdefault(file.stat().st_size, []).append(Path(file.path))
        return sizes


def with_paths(document: Mapping[str, Any], folders: Iterable[Path], base: Path | None = None) -> dict[str, Any]:
    """Return a document that was read from a file, with the paths of its files on this computer.

    folders: where files are looked for, by their entry in `files`. base: the folder that other paths are relative to; None
    leaves them as they are. A file that is not found gets a path that does not exist, so that the request's check names it.
    """
    listed = document.get(FILES)
    entries = listed if isinstance(listed, Mapping) else {}
    places, loras = Folders(tuple(folders)), Folders(_folders_of_loras())

    def entry_of(where: str, name: str) -> Any:
        """Return the entry of a file, or None; if the field was changed since, its entry describes another file."""
        entry = entries.get(where)
        return entry if isinstance(entry, Mapping) and entry.get("name") == name and not _has_folder(name) else None

    def place(where: str, path: str) -> str:
        entry = entry_of(where, path)
        if entry and (found := places.find(entry)):
            return str(found)
        if base is None:
            return path
        # A file here of this name but other content is not the one that was meant.
        other = entry and "sha256" in entry and is_file(base / path)
        return os.path.abspath(base / (f"{str(entry['sha256'])[:12]}_{path}" if other else path))

    def place_lora(where: str, file: str) -> str:
        entry = entry_of(where, file)
        found = entry and (places.find(entry) or loras.find(entry))
        return named(found) if found else file

    changed = map_loras(map_files(document, place), place_lora)
    changed.pop(FILES, None)
    return changed


def identity(path: str | Path) -> dict[str, Any]:
    """Return a file's name, its size, and the SHA-256 of its content if it is not too large."""
    name = bare_name(str(path))
    try:
        state = Path(path).stat()
        known = {"name": name, "bytes": state.st_size}
        if state.st_size <= MOST_HASHED:
            known["sha256"] = _sha256(str(path), state.st_size, state.st_mtime_ns)
            # The program's own copies have the content's first digits before the user's name.
            known["name"] = name.removeprefix(f"{known['sha256'][:12]}_")
    except (OSError, ValueError):
        return {"name": name}
    return known


def bare_name(path: str) -> str:
    """Return the last part of a path of any system."""
    return re.split(r"[\\/]", path)[-1]


def is_file(path: Path) -> bool:
    """Say whether a file exists; False for a name that is empty, too long or not allowed."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _folders_of_loras() -> Iterator[Path]:
    yield LORAS
    yield from (path for path in islice(LORAS.rglob("*"), MOST_FILES) if path.is_dir())


@lru_cache(maxsize=256)
def _sha256(path: str, size: int, mtime_ns: int) -> str:
    """Return the SHA-256 of a file's content.

    It is cached by the file's state: a film with all frames as PNGs asks some hundred times.
    """
    total = hashlib.sha256()
    with open_regular(path) as stream:
        while piece := stream.read(PIECE):
            total.update(piece)
    return total.hexdigest()


def _has_folder(path: str) -> bool:
    return bare_name(path) != path or path in ("..", ".")


def _is_below(path: str) -> bool:
    """Say whether a path is relative and leads nowhere above its base, on every system."""
    absolute = path.startswith(("/", "\\", "~")) or path[1:2] == ":"
    return not absolute and ".." not in re.split(r"[\\/]", path)
