"""Write a film's request as the text of a section ZIP, in the existing program's format, and read it back.

That format numbers sections from the film's end, whatever the mode, and its values are words of a page's language. Our own key
beside the old ones holds the whole request; where an old value was changed by hand, that change wins.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

from eichi_utils.exchange.legacy import LANGUAGES, NO_LORA, label_of, length_label, loras_of, seconds_of, value_of
from eichi_utils.exchange.named_files import FILES, lora_name, without_paths
from eichi_utils.files.paths import KEY
from eichi_utils.files.safe_reading import UnsafeError, parse_yaml
from eichi_utils.problems import Problem, UserError, shown
from eichi_utils.requests import modes
from eichi_utils.requests.compound_kinds import SECTION_NUMBER
from eichi_utils.requests.film_request import FilmRequest
from eichi_utils.requests.loras import Lora
from eichi_utils.requests.plan import section_count
from eichi_utils.requests.request import to_json
from eichi_utils.requests.transfer import from_the_end, usable

SLOTS = ("lora1", "lora2", "lora3")
# Padding that the existing page shows for a film without padding of its own.
IDLE_PADDING = 1.0
NEXT_LINE = "\x85"


class _Dumper(yaml.SafeDumper):
    """Write YAML in such a way that every text is read back unchanged."""


def _quoted(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    # PyYAML reads this line break of YAML 1.1 back as another one, unless it is written as \\N in double quotes.
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if NEXT_LINE in text else None)


_Dumper.add_representer(str, _quoted)


def parse(data: bytes, file: str) -> Mapping[str, Any]:
    """Return the document in `sections.yaml`. Raises UserError if it is no plain YAML mapping."""
    try:
        document = parse_yaml(data)
    except UnsafeError as error:
        raise UserError([Problem("sections", "sections_damaged", {"file": file, "reason": str(error)})]) from None
    if not isinstance(document, Mapping):
        raise UserError([Problem("sections", "sections_damaged", {"file": file, "reason": str(shown(document))})])
    return document


def text_of(request: FilmRequest, names: Mapping[str, Any], language: str) -> str:
    """Return the YAML text for a request.

    names: the pictures' names in the ZIP: field -> name, or section -> name for keyframes.
    language: of the existing program's page that shall read it.
    """
    # Files that are not in the ZIP are named by name and content.
    own = without_paths({name: value for name, value in to_json(request).items() if name not in names}) | dict(names)
    document = {**old_document(request, language), KEY: own}
    return yaml.dump(document, Dumper=_Dumper, allow_unicode=True, sort_keys=True, default_flow_style=False)


def old_document(request: FilmRequest, language: str) -> dict[str, Any]:
    """Return the values of a film that the existing program knows, with its keys and labels."""
    document = to_json(request)
    count = section_count(request.seconds, request.window)
    prompts = from_the_end(document)["section_prompts"]
    numbers = sorted({*range(count), *map(int, prompts)})
    old: dict[str, Any] = {
        "SEED": request.seed,
        "section_info": [{"section": number, "prompt": prompts.get(str(number), "")} for number in numbers],
        "video_settings": {
            "expected_sections": count,
            "frame_size": label_of("frame_size", request.window, language),
            "padding_mode": document.get("padding") is not None,
            "padding_value": IDLE_PADDING if document.get("padding") is None else document["padding"],
            "resolution": request.size,
            "video_length": length_label(request.seconds, language),
        },
    }
    if request.prompt:
        old["default_prompt"] = request.prompt
    if request.loras:
        slots = dict(zip(SLOTS, request.loras, strict=False))
        none = NO_LORA[LANGUAGES.index(language)]
        old["lora_settings"] = {
            "mode": label_of("lora_mode", "directory", language),
            "scales": ",".join(f"{slots[slot].strength if slot in slots else Lora.strength:g}" for slot in SLOTS),
            "selections": {slot: lora_name(slots[slot].file) if slot in slots else none for slot in SLOTS},
            "use_lora": True,
        }
    return old


def fields_of(document: Mapping[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
    """Return the request fields that the old keys give, and notes on what is not understood.

    Sections are counted from the film's end.
    """
    fields: dict[str, Any] = {}
    notes: list[Problem] = []
    for name, value in document.items():
        if name in _READERS and value is not None:
            found, bad = _READERS[name](value)
            fields |= found
            notes += bad
        elif name not in _READERS and name != KEY:
            notes.append(Problem("sections", "legacy_unknown", {"name": str(name)[:80]}))
    return fields, notes


def own_fields(document: Mapping[str, Any]) -> tuple[str, dict[str, Any], list[Problem]]:
    """Return mode, fields and notes of our own key; mode is "" if there is no usable one."""
    own = document.get(KEY)
    if own is None:
        return "", {}, []
    mode = own.get("mode") if isinstance(own, Mapping) else None
    kind = modes.MODES.get(mode) if isinstance(mode, str) else None
    if kind is None or not issubclass(kind, FilmRequest):
        return "", {}, [not_understood(KEY, own)]
    fields, notes = usable(kind.mode, {str(name): value for name, value in own.items() if name not in ("mode", FILES)})
    return kind.mode, fields, notes


def not_understood(name: str, value: Any) -> Problem:
    """Return the note that the value of a key has no meaning here."""
    return Problem("sections", "legacy_value", {"name": name, "value": shown(value)})


def _prompts(value: Any) -> tuple[dict[str, Any], list[Problem]]:
    prompts: dict[str, str] = {}
    notes = []
    entries = value if isinstance(value, list) else [value]
    for entry in entries:
        number, prompt = (entry.get("section"), entry.get("prompt")) if isinstance(entry, Mapping) else (None, None)
        digits = "" if isinstance(number, bool) else str(number)
        if not SECTION_NUMBER.fullmatch(digits) or not isinstance(prompt, str | None):
            notes.append(not_understood("section_info", entry))
        elif prompt and prompt.strip():
            prompts[str(int(digits))] = prompt
    return {"section_prompts": prompts}, notes


def _prompt(value: Any) -> tuple[dict[str, Any], list[Problem]]:
    return ({"prompt": value}, []) if isinstance(value, str) else ({}, [not_understood("default_prompt", value)])


def _seed(value: Any) -> tuple[dict[str, Any], list[Problem]]:
    return usable("reverse", {"seed": int(value) if isinstance(value, str) and re.fullmatch("[0-9]{1,20}", value) else value})


def _loras(value: Any) -> tuple[dict[str, Any], list[Problem]]:
    if not isinstance(value, Mapping):
        return {}, [not_understood("lora_settings", value)]
    if value.get("use_lora", True) is False:
        return {"loras": []}, []
    notes = [not_understood(f"lora_settings: {name}", value[name]) for name in value.keys() - _LORA_KEYS]
    selections = value.get("selections") or {}
    if not isinstance(selections, Mapping):
        return {}, [*notes, not_understood("selections", selections)]
    notes += [not_understood(f"selections: {name}", selections[name]) for name in selections.keys() - set(SLOTS)]
    loras, bad = loras_of([selections.get(slot) for slot in SLOTS], value.get("scales"))
    if not loras:
        # LoRA that were uploaded to the existing page are not named in the file.
        notes.append(not_understood("lora_settings: mode", value.get("mode")))
    return {"loras": loras}, notes + bad


def _video(value: Any) -> tuple[dict[str, Any], list[Problem]]:
    if not isinstance(value, Mapping):
        return {}, [not_understood("video_settings", value)]
    fields: dict[str, Any] = {}
    notes = []
    for name, entry in value.items():
        try:
            if name in _VIDEO:
                fields[_VIDEO[name][0]] = _VIDEO[name][1](entry)
            elif name == "padding_mode" and isinstance(entry, bool):
                fields["padding"] = value.get("padding_value", IDLE_PADDING) if entry else None
            # The number of sections follows from the length and the section's size.
            elif name not in ("padding_value", "expected_sections"):
                notes.append(not_understood(f"video_settings: {name}", entry))
        except ValueError:
            notes.append(not_understood(name, entry))
    fields, bad = usable("reverse", fields)
    return fields, notes + bad


_LORA_KEYS = {"mode", "scales", "selections", "use_lora"}
_VIDEO = {
    "video_length": ("seconds", seconds_of),
    "frame_size": ("window", lambda label: value_of("frame_size", label)),
    "resolution": ("size", lambda size: size),
}
_READERS = {
    "SEED": _seed,
    "default_prompt": _prompt,
    "lora_settings": _loras,
    "section_info": _prompts,
    "video_settings": _video,
}
