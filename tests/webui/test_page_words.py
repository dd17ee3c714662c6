"""Test what the pages say: problems, summaries, lengths and labels, in every language."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import webui
from eichi_utils.problems import Problem
from eichi_utils.requests.kinds import Choice
from eichi_utils.requests.modes import MODES, all_kinds
from locales import LANGUAGES, Translator, table
from tests.eichi_utils.requests.test_plan import SECTIONS
from tests.webui.forms.test_form import page as page
from webui.forms import words
from webui.panels.input_panel import QUICK_SECONDS


def test_a_page_names_pictures_without_their_folder(tmp_path):
    """A page names pictures without their folder, because the server's place of an upload tells the user nothing."""
    (tmp_path / "broken.png").write_bytes(b"no picture")
    (problem,) = [p for p in MODES["single"](image=str(tmp_path / "broken.png"), prompt="x").check()]
    sentence = words.problem_sentence(Translator("en"), problem)
    assert "broken.png" in sentence and str(tmp_path) not in sentence


@pytest.mark.parametrize("language", LANGUAGES)
def test_summary_names_what_comes_out(language, tower):
    t = Translator(language)
    request = MODES["reverse"](image=tower, prompt="a cat", seconds=5.0)
    text = words.summary(t, request, ())
    plan = request.plan()
    for part in (len(plan.sections), plan.frames, f"{plan.frames / 30:.2f}", "512 × 768"):
        assert str(part) in text.replace("\u00a0", " ")
    assert words.summary(t, request, (Problem("seconds", "out_of_range"),)) == ""


@pytest.mark.slow
@pytest.mark.parametrize("language", LANGUAGES)
def test_a_length_means_the_same_in_every_language(page, tower, language):
    """The existing program compared words: some of its languages knew no sections of 0.5 s, and offered impossible lengths."""
    built, t = page("reverse", language), Translator(language)
    (quick,) = (block for block in built.blocks.blocks.values() if block.elem_id == "quick")
    assert tuple(seconds for _, seconds in quick.choices) == QUICK_SECONDS
    (window,) = built.form.entries["window"].components
    assert [value for _, value in window.choices] == [9.0, 4.5]
    counts = {seconds: (long, short) for seconds, long, short in SECTIONS}
    for seconds in QUICK_SECONDS:
        for window, count, frames in zip((9.0, 4.5), counts[seconds], (36, 20), strict=True):
            values = built.values(image=tower, prompt="x", seconds=seconds, window=window)
            request, problems = built.form.read(values)
            assert problems == () and len(request.plan().sections) == count
            said = words.summary(t, request, problems)
            assert str(count) in said and str(frames * count + 1) in said


@pytest.mark.slow
@pytest.mark.parametrize("language", LANGUAGES)
def test_pictures_are_not_called_films(page, language):
    """The one-frame page asked for the "Number of films", and so did what it said of the box and what a result told."""
    built = {mode: page(mode, language) for mode in ("reverse", "single")}
    labels = {mode: one.form.entries["batch"].components[0].label for mode, one in built.items()}
    assert labels["reverse"] == table(language)["page.field.batch"]
    assert labels["single"] == table(language)["page.field.batch:single"] != labels["reverse"]
    for mode, one in built.items():
        shown = one.start.on_change(one.values() | {one.form.entries["batch"].components[0]: None})
        assert f"{labels[mode]}:" in shown[one.start.problems].replace("\N{FULLWIDTH COLON}", ":")
        told = words.settings_list(Translator(language), {"mode": mode, "batch": 2})
        assert [labels[mode], "2"] in told


def test_problem_list_escapes_and_names_fields():
    t = Translator("en")
    problem = Problem("controls/0/image", "picture_missing", {"file": "<b>.png"})
    assert words.field_label(t, "controls/0/image") == "Reference 1 Picture"
    assert "<b>" not in words.problem_list(t, (problem,))


@pytest.mark.parametrize("seconds,text", [(0, "0:00"), (-3, "0:00"), (62.9, "1:02"), (3661, "1:01:01")])
def test_duration(seconds, text):
    assert words.duration(seconds) == text


def test_languages_have_the_same_page_keys_and_placeholders():
    english = {key: text for key, text in table("en").items() if key.startswith("page.")}
    for language in LANGUAGES:
        own = {key: text for key, text in table(language).items() if key.startswith("page.")}
        assert set(own) == set(english)
        for key, text in own.items():
            assert sorted(re.findall(r"{(\w+)}", text)) == sorted(re.findall(r"{(\w+)}", english[key])), (
                language,
                key,
            )


def test_every_page_key_is_used_and_exists():
    sources = [path.read_text() for path in Path(webui.__file__).parent.rglob("*.py")]
    used = {key for text in sources for key in re.findall(r'"(page\.[\w.]*\w)"', text)}
    prefixes = {key for text in sources for key in re.findall(r'f"(page\.[\w.]*\.){', text)}
    keys = {key for key in table("en") if key.startswith("page.")}
    assert used <= keys
    # What a choice is called, its kind says.
    choices = {name: kind for name, kind in all_kinds().items() if isinstance(kind, Choice)}
    used |= {kind.word(name, choice) for name, kind in choices.items() for choice in kind.choices}
    assert {key for key in keys - used if not any(key.startswith(prefix) for prefix in prefixes)} == set()
