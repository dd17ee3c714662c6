"""The files that a request names, with other paths: its pictures, masks and latents, and its LoRA."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from eichi_utils.requests.request import PICTURE_FIELDS

# Fields that name a file other than a picture.
FILE_FIELDS = ("append_latents",)
# Of a control.
CONTROL_FILES = ("image", "mask")


def map_pictures(document: Mapping[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    """A request's JSON document with every path of a picture, mask or file changed; what is no path is left to the reading."""
    return map_files(document, lambda place, path: change(path))


def map_files(document: Mapping[str, Any], change: Callable[[str, str], str]) -> dict[str, Any]:
    """The same with a function of the place too: "image", "keyframes/3", "controls/0/mask"."""
    changed = dict(document)
    for name in (*PICTURE_FIELDS, *FILE_FIELDS):
        value = changed.get(name)
        if isinstance(value, str) and value:
            changed[name] = change(name, value)
    if isinstance(pictures := changed.get("keyframes"), Mapping):
        changed["keyframes"] = {
            key: change(f"keyframes/{key}", path) if isinstance(path, str) and path else path for key, path in pictures.items()
        }
    if isinstance(controls := changed.get("controls"), (list, tuple)):
        changed["controls"] = [_map_entry(f"controls/{n}", one, CONTROL_FILES, change) for n, one in enumerate(controls)]
    return changed


def map_loras(document: Mapping[str, Any], change: Callable[[str, str], str]) -> dict[str, Any]:
    """The same for LoRA: "loras/0/file"."""
    changed = dict(document)
    if isinstance(loras := changed.get("loras"), (list, tuple)):
        changed["loras"] = [_map_entry(f"loras/{number}", one, ("file",), change) for number, one in enumerate(loras)]
    return changed


def _map_entry(place: str, entry: Any, names: tuple[str, ...], change: Callable[[str, str], str]) -> Any:
    if not isinstance(entry, Mapping):
        return entry
    return {
        name: change(f"{place}/{name}", value) if name in names and isinstance(value, str) and value else value
        for name, value in entry.items()
    }
