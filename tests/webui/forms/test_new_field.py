"""Test that a new field of a request needs only its line, its texts and its place on a page; all else follows its kind."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar

import gradio as gr
import pytest
from PIL import Image

from eichi_utils.cli.main import make_parser, read_request
from eichi_utils.exchange.metadata import png_info, read_document
from eichi_utils.exchange.video import write_png
from eichi_utils.models.catalogue import Models
from eichi_utils.requests import modes
from eichi_utils.requests.compound_kinds import PerSection
from eichi_utils.requests.file_fields import map_files, with_files
from eichi_utils.requests.kinds import Choice, Number, Picture, content_of, setting
from eichi_utils.requests.request import to_json
from eichi_utils.requests.single import SingleRequest
from eichi_utils.requests.transfer import for_mode, usable
from locales import Translator, table
from tests.eichi_utils.helpers import found
from webui.forms import words
from webui.forms.form import Form


@dataclass(frozen=True, kw_only=True)
class ScratchRequest(SingleRequest):
    """Define a request with new fields, as a developer would add them."""

    mode: ClassVar[str] = "scratch"

    sparkle: float = setting(0.5, Number(0.0, 1.0))
    colour: str = setting("gold", Choice(("gold", "silver")))
    stickers: dict[int, str] = setting({}, PerSection(Picture()))


WORDS = {
    "cli.help.sparkle": "how much it sparkles",
    "cli.help.colour": "of the sparkles",
    "cli.help.stickers": "K=FILE",
    "page.field.sparkle": "Sparkle",
    "page.field.colour": "Colour",
    "page.colour.silver": "Silver",
}


@pytest.fixture
def scratch(monkeypatch: pytest.MonkeyPatch) -> type[ScratchRequest]:
    monkeypatch.setattr(modes, "MODES", MappingProxyType({**modes.MODES, "scratch": ScratchRequest}))
    for key, text in WORDS.items():
        monkeypatch.setitem(table("en"), key, text)
    modes.all_kinds.cache_clear()
    yield ScratchRequest
    modes.all_kinds.cache_clear()


def test_it_is_found_in_flags_json_metadata_and_checks(scratch: type[ScratchRequest], tower: str, tmp_path: Path) -> None:
    """Eight modules had lists of names and kinds of fields, and a new field was forgotten in one of them."""
    given = ["--image", tower, "--prompt", "x", "--sparkle", "0.75", "--colour", "silver"]
    parser = make_parser(Translator("en"))
    options = parser.parse_args(["render", "--mode", "scratch", *given, "--stickers", f"2={tower}"])
    made = read_request(options, {})
    assert (made.sparkle, made.colour, made.stickers) == (0.75, "silver", {2: tower})

    document = json.loads(json.dumps(to_json(made)))
    assert document["stickers"] == {"2": tower} and modes.from_json(document) == made
    write_png(tmp_path / "a.png", Image.new("RGB", (8, 8)), png_info(made))
    assert read_document(tmp_path / "a.png")["sparkle"] == 0.75

    wrong = modes.from_json({**document, "sparkle": 7, "colour": "red", "stickers": {"2": str(tmp_path / "none.png")}})
    assert found(wrong.check()) == {("sparkle", "out_of_range"), ("colour", "not_a_choice"), ("stickers/2", "picture_missing")}

    assert map_files(document, lambda place, path: place)["stickers"] == {"2": "stickers/2"}
    kept, left_out = with_files({**document, "stickers": {"2": "other.png"}}, lambda path: path == tower)
    assert kept == {**document, "stickers": {}} and left_out == [("stickers/2", "other.png")]
    assert "stickers" in content_of(scratch) and not {"sparkle", "colour"} & content_of(scratch)
    # What another mode does not know is named, and nothing else is lost.
    fields, notes = for_mode("scratch", "single", {"sparkle": 0.75, "rope_value": 7})
    assert fields == {"rope_value": 7} and found(notes) == {("sparkle", "field_not_here")}
    assert usable("scratch", {"sparkle": 9})[0] == {} and usable("scratch", {"stickers": {"1": "gone.png"}})[1] == []


def test_it_is_found_in_the_form_and_in_words(scratch: type[ScratchRequest]) -> None:
    """A new field is found in the form and in words by its declaration; only its place on a page is written there."""
    t = Translator("en")
    form = Form(scratch, t, Models())
    with gr.Blocks():
        form.picture("image")
        form.text("prompt")
        slider = form.slider("sparkle", step=0.1)
        form.choice("colour", {"gold": "Gold", "silver": "Silver"})
    assert (slider.minimum, slider.maximum, slider.value, slider.label) == (0.0, 1.0, 0.5, "Sparkle")
    values = {component: component.value for component in form.components} | {slider: 0.25}
    assert form.document(values)["sparkle"] == 0.25
    shown = dict(words.settings_list(t, {"mode": "single", "sparkle": 0.25, "colour": "silver", "stickers": {"1": "/a/b.png"}}))
    assert shown["Sparkle"] == "0.25" and shown["Colour"] == "Silver"
