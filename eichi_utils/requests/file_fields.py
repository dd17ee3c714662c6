"""Change the paths in a request's JSON document: those of its pictures, masks and latents, and those of its LoRA."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from eichi_utils.problems import Problem, UserError
from eichi_utils.requests.compound_kinds import map_entries
from eichi_utils.requests.kinds import Change
from eichi_utils.requests.modes import all_kinds

# Largest number of files that a request may name on a page. The longest film has 200 sections with one picture each.
MOST_NAMED = 1000


def map_pictures(document: Mapping[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    """Return the document with `change(path)` for every path of a picture, mask or latents file.

    Values of a wrong type are left as they are; reading the request reports them.
    """
    return map_files(document, lambda place, path: change(path))


def map_files(document: Mapping[str, Any], change: Change) -> dict[str, Any]:
    """Return the document with `change(place, path)` for every path; places are "image", "keyframes/3", "controls/0/mask"."""
    kinds = all_kinds()
    return {name: kinds[name].map_files(name, value, change) if name in kinds else value for name, value in document.items()}


def map_loras(document: Mapping[str, Any], change: Change) -> dict[str, Any]:
    """Return the document with `change(place, path)` for every LoRA file; places are "loras/0/file"."""
    changed = dict(document)
    if "loras" in changed:
        changed["loras"] = map_entries("loras", changed["loras"], ("file",), change)
    return changed


def with_files(document: Mapping[str, Any], good: Callable[[str], bool]) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Return the document without the files that are not good, and (place, path) of each file left out.

    Raises UserError for more than `MOST_NAMED` files, since each is looked at.
    """
    kinds, places, left_out = all_kinds(), [], []
    map_files(document, lambda place, path: places.append(place) or path)
    if len(places) > MOST_NAMED:
        raise UserError([Problem(places[-1].split("/")[0], "page_too_many_files", {"most": MOST_NAMED})])

    def judged(place: str, path: str) -> bool:
        if good(path):
            return True
        left_out.append((place, path))
        return False

    kept = {name: kinds[name].with_files(name, value, judged) if name in kinds else value for name, value in document.items()}
    return kept, left_out
