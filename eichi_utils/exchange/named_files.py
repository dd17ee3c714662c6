"""Name a request's files by name and content in what is given to others; a path says whose computer they are from.

Such a document has the bare name in a file's field, and beside its fields one entry more:

    "files": {"image": {"name": "cat.jpg", "sha256": "9f86...", "bytes": 81234}, "keyframes/3": {...}, "loras/0/file": {...}}

Where it is read, the files are looked for in folders, and known by their content.
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
# Hashing takes a second for a gigabyte on a slow processor, and a LoRA may have several; larger files are known by their size.
MOST_HASHED = 512 * 2**20
# Files of a folder that are looked at.
MOST_FILES = 100_000
PIECE = 2**20


def without_paths(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return a request's JSON document for a file that others may get. Of what has lost its path already, nothing changes."""
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
    """Return what a LoRA file is called in what is given to others: below the folder of LoRA, names are the same everywhere."""
    return file if _is_below(file) else bare_name(file)


def parts_without_paths(parts: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the parts that a file of latents was made of, likewise."""
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
    """Find files by their entries in folders, whatever they are called there. A folder is read once, and only if needed."""

    def __init__(self, folders: Iterable[Path]):
        self.folders = folders

    def find(self, entry: Any) -> Path | None:
        """Return the file that has an entry's content."""
        name = entry.get("name") if isinstance(entry, Mapping) else None
        if not isinstance(name, str) or not name or _has_folder(name):
            return None
        digest, size = entry.get("sha256"), entry.get("bytes")
        same = self._by_size.get(size, []) if isinstance(size, int) else []
        if isinstance(digest, str):
            return next((file for file in same if identity(file).get("sha256") == digest), None)
        # It was too large to say more than its size.
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
    """Return a document that was read from a file, its files found again where they are.

    folders: where files are looked for, by their entry in `files`. base: the folder that other paths are relative to; without
    it they stay as they are. What is not found keeps a name that no file has, so the request's check names it.
    """
    listed = document.get(FILES)
    entries = listed if isinstance(listed, Mapping) else {}
    places, loras = Folders(tuple(folders)), Folders(_folders_of_loras())

    def entry_of(where: str, name: str) -> Any:
        """Return a file's entry; of a field that somebody changed since, it means another file."""
        entry = entries.get(where)
        return entry if isinstance(entry, Mapping) and entry.get("name") == name and not _has_folder(name) else None

    def place(where: str, path: str) -> str:
        entry = entry_of(where, path)
        if entry and (found := places.find(entry)):
            return str(found)
        if base is None:
            return path
        # A file of that name with another content is not the one that was meant.
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
    """Return a file's name, and what tells its content from others: SHA-256, of what is very large only the size."""
    name = bare_name(str(path))
    try:
        state = Path(path).stat()
        known = {"name": name, "bytes": state.st_size}
        if state.st_size <= MOST_HASHED:
            known["sha256"] = _sha256(str(path), state.st_size, state.st_mtime_ns)
            # The program's own copies have the content's name before the user's.
            known["name"] = name.removeprefix(f"{known['sha256'][:12]}_")
    except (OSError, ValueError):
        return {"name": name}
    return known


def bare_name(path: str) -> str:
    """Return the last part of a path of this system or of another."""
    return re.split(r"[\\/]", path)[-1]


def is_file(path: Path) -> bool:
    """Say whether there is such a file; a name that is too long, or no name, is none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _folders_of_loras() -> Iterator[Path]:
    yield LORAS
    yield from (path for path in islice(LORAS.rglob("*"), MOST_FILES) if path.is_dir())


@lru_cache(maxsize=256)
def _sha256(path: str, size: int, mtime_ns: int) -> str:
    """Kept by file state: a film with all its frames as pictures says this some hundred times."""
    total = hashlib.sha256()
    with open_regular(path) as stream:
        while piece := stream.read(PIECE):
            total.update(piece)
    return total.hexdigest()


def _has_folder(path: str) -> bool:
    return bare_name(path) != path or path in ("..", ".")


def _is_below(path: str) -> bool:
    """Say whether a path is relative and stays below where it is relative to, on every system."""
    absolute = path.startswith(("/", "\\", "~")) or path[1:2] == ":"
    return not absolute and ".." not in re.split(r"[\\/]", path)
