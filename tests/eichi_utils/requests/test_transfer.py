"""Test which fields from elsewhere a request of a mode can have."""

from __future__ import annotations

import pytest

from eichi_utils.exchange.picture_text import PictureText, request_fields
from eichi_utils.requests import modes
from eichi_utils.requests.request import to_json
from eichi_utils.requests.transfer import for_mode, from_the_end, usable
from tests.eichi_utils.helpers import found


def test_files_may_be_missing() -> None:
    """A LoRA on a drive that is not plugged in is no reason to forget it."""
    fields = {"image": "/gone.png", "loras": [{"file": "gone.safetensors", "strength": 0.5}]}
    assert usable("reverse", fields) == (fields, [])
    good, problems = usable("reverse", {"loras": "all", "keyframes": {"x": "a"}, "steps": 5})
    assert good == {"steps": 5}
    assert found(problems) == {("loras", "wrong_type"), ("keyframes/x", "section_number")}


def test_what_a_page_can_show_is_kept() -> None:
    """A prompt that is too long can be made shorter there; the slider for steps cannot stand at 0."""
    fields = {"prompt": "x" * 6000, "section_prompts": {"7": "y" * 6000}}
    assert usable("forward", {**fields, "steps": 0})[0] == fields


def test_sections_are_counted_from_the_end() -> None:
    """Sections are counted from the end, but from the start in the F1 mode. Converting twice gives the original, and
    sections beyond the film stay."""
    film = {"seconds": 5, "window": 9.0, "section_prompts": {"0": "a", "3": "d", "4": "beyond"}}
    assert from_the_end({"mode": "reverse", **film}) == {"mode": "reverse", **film}
    turned = from_the_end({"mode": "forward", **film})
    assert turned["section_prompts"] == {"3": "a", "0": "d", "4": "beyond"}
    assert from_the_end(turned) == {"mode": "forward", **film}


def test_from_one_mode_to_another() -> None:
    """A change of mode names the settings that the other mode does not have, but only those that somebody had set."""
    film = {"seconds": 5, "window": 9.0, "section_prompts": {"0": "end"}, "padding": None, "end_strength": 0.5}
    fields, notes = for_mode("reverse", "forward", film)
    assert fields == {"seconds": 5, "window": 9.0, "section_prompts": {"3": "end"}}
    assert found(notes) == {("end_strength", "field_not_here")}
    assert for_mode("reverse", "reverse", film) == (film, [])
    fields, notes = for_mode("reverse", "single", film)
    assert fields == {} and ("section_prompts", "field_not_here") in found(notes)


@pytest.mark.parametrize("source", list(modes.MODES))
@pytest.mark.parametrize("target", list(modes.MODES))
def test_a_whole_document_goes_from_any_mode_to_any(source: str, target: str) -> None:
    """A single picture's settings on the page of the F1 mode were the error 'seconds': they have no length to count from."""
    whole = to_json(modes.MODES[source](seed=5, prompt="a cat"))
    fields, notes = for_mode(source, target, {name: value for name, value in whole.items() if name != "mode"})
    assert notes == []
    made = modes.from_json({"mode": target, **fields})
    assert (made.seed, made.prompt) == (5, "a cat")
    text = PictureText(document=whole)
    assert request_fields(text, target, "everything") == (fields, [])


def test_a_mode_among_the_fields_is_none_of_them() -> None:
    """A settings file with such an entry ended in a KeyError."""
    fields, problems = usable("reverse", {"mode": "reverse", "steps": 7})
    assert fields == {"steps": 7} and [(problem.field, problem.key) for problem in problems] == [("mode", "key_unknown")]
