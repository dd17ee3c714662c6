"""Fields of a request that come from elsewhere (a file, another mode): which of them a request of a mode can have."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from eichi_utils.problems import Problem, UserError
from eichi_utils.requests import modes
from eichi_utils.requests.kinds import kinds_of
from eichi_utils.requests.plan import section_count
from eichi_utils.requests.request import check_fields, to_json


def usable(mode: str, fields: Mapping[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
    """The fields (JSON form) that a request of the mode can have, and what is wrong with the others.

    Of pictures, texts and LoRA only the type must be right: a page shows the rest beside the field.
    """
    good: dict[str, Any] = {}
    problems: list[Problem] = []
    for name, value in fields.items():
        try:
            # A file's own word for the mode is no field.
            if name == "mode":
                raise UserError([Problem(name, "key_unknown", {"name": name, "mode": mode})])
            request = modes.from_json({"mode": mode, name: value})
            found: Iterable[Problem] = () if kinds_of(type(request))[name].shown_wrong else check_fields(request)
        except UserError as error:
            found = error.problems
        own = [problem for problem in found if problem.field.split("/")[0] == name]
        problems += own
        if not own:
            good[name] = value
    return good, problems


def from_the_end(document: Mapping[str, Any]) -> dict[str, Any]:
    """A film's JSON document with its sections counted from the end, or such a document counted as its mode does again.

    What was no film, such as a single picture's document, has no length and no sections to be counted.
    Numbers beyond the film have no other end to be counted from, and stay.
    """
    if document.get("mode") != "forward" or not {"seconds", "window"} <= document.keys():
        return dict(document)
    last = section_count(document["seconds"], document["window"]) - 1
    turned = {
        name: {str(last - int(key) if int(key) <= last else key): value for key, value in document[name].items()}
        for name, kind in modes.all_kinds().items()
        if kind.per_section and name in document
    }
    return {**document, **turned}


def for_mode(source: str, target: str, fields: Mapping[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
    """Fields of a request of one mode, with sections counted from the film's end, as another mode has and counts them.

    `fields` of a film name seconds and window. The notes are what had a value of its own and has no place now.
    """
    known = kinds_of(modes.MODES[target]).keys()
    defaults = to_json(modes.MODES[source]())
    notes = [Problem(name, "field_not_here") for name in sorted(fields.keys() - known) if fields[name] != defaults.get(name)]
    turned = from_the_end({**fields, "mode": target})
    return {name: turned[name] for name in fields if name in known}, notes
