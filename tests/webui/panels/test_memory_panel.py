"""Test the reserve slider: present with a card, the same on every page, and used by the next job."""

from __future__ import annotations

from pathlib import Path

import gradio as gr
import pytest

from eichi_utils.jobs.queue import Jobs, Stop
from eichi_utils.models.catalogue import Models
from eichi_utils.models.gpus import Card
from eichi_utils.render import engine as engines
from eichi_utils.render.engine import Engine
from locales import LANGUAGES, Translator, table
from tests.eichi_utils.helpers import picture, request
from webui import endframe_ichi, endframe_ichi_f1, oneframe_ichi
from webui.context import Context
from webui.panels.memory_panel import set_reserve

GIB = 2**30
CARD = Card("A card", "580.95", (8, 9), 24 * GIB, 20 * GIB)
pytestmark = pytest.mark.usefixtures("unserved")
PAGES = {"reverse": endframe_ichi.page, "forward": endframe_ichi_f1.page, "single": oneframe_ichi.page}


def slider_of(context: Context) -> gr.Slider | None:
    blocks = PAGES[context.mode](context).blocks.values()
    return next((block for block in blocks if getattr(block, "elem_id", None) == "reserve"), None)


def context_of(jobs: Jobs, folder: Path, mode: str = "reverse", language: str = "en", **fields) -> Context:
    links = {name: f"/{name}" for name in PAGES}
    return Context(jobs, Translator(language), mode, folder, folder / "uploads", links=links, models=Models(folder), **fields)


@pytest.mark.slow
@pytest.mark.parametrize("mode", PAGES)
@pytest.mark.parametrize("found", [(), (CARD,)], ids=["no card", "a card"])
def test_the_slider_is_there_with_a_card(mode, found, jobs, tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "cards", lambda: found)
    slider = slider_of(context_of(jobs, tmp_path, mode, engine=Engine(Models(tmp_path), reserve_gb=2.5)))
    assert (slider is not None) is bool(found)
    if slider:
        assert (slider.minimum, slider.maximum, slider.value) == (0, 23, 2.5)
    assert slider_of(context_of(jobs, tmp_path, mode)) is None
    assert slider_of(context_of(jobs, tmp_path, mode, plain=True, engine=Engine(Models(tmp_path)))) is None
    assert slider_of(context_of(jobs, tmp_path, mode, engine=Engine(Models(tmp_path), device="cpu"))) is None


@pytest.mark.parametrize("language", LANGUAGES)
def test_it_is_named_in_every_language(language, jobs, tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "cards", lambda: (CARD,))
    slider = slider_of(context_of(jobs, tmp_path, language=language, engine=Engine(Models(tmp_path))))
    assert slider.label == table(language)["page.reserve"]


def test_a_page_that_is_loaded_again_shows_what_another_set(jobs, tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "cards", lambda: (CARD,))
    shared = Engine(Models(tmp_path))
    blocks = endframe_ichi.page(context_of(jobs, tmp_path, engine=shared))
    (slider,) = [block for block in blocks.blocks.values() if getattr(block, "elem_id", None) == "reserve"]
    loads = [event for event in blocks.fns.values() if event.outputs == [slider] and event.targets[0][1] == "load"]
    set_reserve(shared, 6)
    assert [event.fn() for event in loads] == [6]


@pytest.mark.parametrize(("typed", "kept"), [(3, 3.0), (0, 0.0), (None, 0.5), (-2, 0.0), (500, 23)])
def test_what_is_typed_stays_within_the_card(typed, kept, tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "cards", lambda: (CARD,))
    engine = Engine(Models(tmp_path))
    set_reserve(engine, typed)
    assert engine.reserve_gb == kept


def test_the_next_job_leaves_that_much_of_the_card(checkpoint, tmp_path):
    """The next job keeps that much of the card free, even if the pool has existed for long."""
    engine = Engine(Models(checkpoint), tmp_path / "out", device="cpu")
    assert engine.pool.budget.reserve == GIB // 2
    set_reserve(engine, 4)
    job = request("single", picture(tmp_path / "a.png"), prompt="")
    with pytest.raises(engines.UserError):
        list(engine(job, "job", Stop()))
    assert engine.pool.budget.reserve == 4 * GIB
    assert engine.pool.budget.for_weights(6 * GIB, GIB) == GIB
