"""The files that a request names, with other paths: its pictures, masks and latents."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from eichi_utils.request import PICTURE_FIELDS

# Fields that name a file other than a picture.
FILE_FIELDS = ("append_latents",)


def map_pictures(document: Mapping[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    """A request's JSON document with every path of a picture, mask or file changed; what is no path is left to the reading."""
    changed = dict(document)
    for name in (*PICTURE_FIELDS, *FILE_FIELDS):
        value = changed.get(name)
        if isinstance(value, str) and value:
            changed[name] = change(value)
    if isinstance(pictures := changed.get("keyframes"), Mapping):
        changed["keyframes"] = {key: change(path) if isinstance(path, str) else path for key, path in pictures.items()}
    if isinstance(controls := changed.get("controls"), (list, tuple)):
        changed["controls"] = [map_control(control, change) for control in controls]
    return changed


def map_control(control: Any, change: Callable[[str], str]) -> Any:
    """The same for one control's document."""
    if not isinstance(control, Mapping):
        return control
    return {
        name: change(value) if name in ("image", "mask") and isinstance(value, str) and value else value
        for name, value in control.items()
    }
