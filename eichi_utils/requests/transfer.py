"""Select the fields from elsewhere (a file, another mode) that a request of a mode can take, and count their sections anew."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from eichi_utils.problems import Problem, UserError
from eichi_utils.requests import modes
from eichi_utils.requests.kinds import kinds_of
from eichi_utils.requests.plan import section_count
from eichi_utils.requests.request import check_fields, to_json


def usable(mode: str, fields: Mapping[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
    """Return the fields (JSON form) that a request of the mode can have, and what is wrong with the others.

    Of pictures, texts and LoRA only the type must be right, since a page shows other errors beside the field.
    """
    good: dict[str, Any] = {}
    problems: list[Problem] = []
    for name, value in fields.items():
        try:
            # The mode is an argument here; a field of that name is unknown.
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
    """Return a film's JSON document with its sections counted from the film's end.

    Only the forward mode counts from the start; its documents are turned, and turning twice gives the first document again.
    Documents without `seconds` and `window` have no sections and are returned unchanged. Section numbers beyond the film stay.
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
    """Return fields of a request of one mode as fields of another, and a note for each changed field that the other lacks.

    `fields`: with sections counted from the film's end; those of a film must include seconds and window. The result counts
    sections as the target mode does.
    """
    known = kinds_of(modes.MODES[target]).keys()
    defaults = to_json(modes.MODES[source]())
    notes = [Problem(name, "field_not_here") for name in sorted(fields.keys() - known) if fields[name] != defaults.get(name)]
    turned = from_the_end({**fields, "mode": target})
    return {name: turned[name] for name in fields if name in known}, notes
