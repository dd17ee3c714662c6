"""What surrounds every page: title, links to the other modes, two columns, and the wiring all pages share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from typing import Any

import gradio as gr
from gradio.components import Component
from gradio.themes import Base, Default, colors, sizes

from eichi_utils.requests.film_request import FilmRequest
from eichi_utils.requests.modes import MODES
from locales import Translator
from webui.context import QUIET, Context
from webui.forms import words
from webui.forms.boundary import ErrorBoundary, message_value
from webui.forms.form import Form
from webui.forms.form_updates import FormUpdates
from webui.gradio_compat import CheckedBlocks, IdleBlocks
from webui.http.page_build import HEADER
from webui.live import polling
from webui.panels.metadata_panel import MetadataPanel
from webui.panels.presets_panel import FavouritesPanel
from webui.panels.result_panel import ResultPanel
from webui.panels.sections_panel import SectionsPanel
from webui.panels.settings_panel import SettingsPanel, starting_fields
from webui.panels.start_panel import Follower, StartPanel
from webui.static_files import call

# The system's own fonts: nothing to fetch, and every script of the four languages.
FONT = (
    "system-ui",
    "-apple-system",
    "Segoe UI",
    "Noto Sans",
    "Noto Sans CJK JP",
    "Noto Sans CJK TC",
    "sans-serif",
)

# Tabs whose state is kept. One that is forgotten is shown everything anew at its next look, and has nothing to undo.
# Most cost some kB, but an undo may hold megabytes of prompts.
SESSIONS = 100


# Seconds between two looks of gradio into its queue, in which nothing of ours ever waits (`QUIET`). Its own are 1 and 10 ms:
# three pages then take a twentieth of a processor, and the interpreter from the thread that makes the film.
QUEUE_PAUSE = 0.25


class Page(CheckedBlocks, IdleBlocks, ErrorBoundary):
    """A page that takes no foreign file, costs nothing while nobody clicks, and shows no error but as a sentence."""

    def __init__(self, t: Translator, **settings: Any):
        super().__init__(t=t, sessions=SESSIONS, pause=QUEUE_PAUSE, **settings)


@contextmanager
def page_frame(context: Context) -> Iterator[tuple[gr.Blocks, Form, dict[Component, Follower]]]:
    """A page with header, columns, result and Start; its block puts the inputs into the left column.

    It sets `form.model`, and may add followers (`StartPanel`) for what it shows of the request.
    """
    followers: dict[Component, Follower] = {}
    form = Form(MODES[context.mode], context.t, context.models, context.folders, context.holds)
    title = f"{context.t(f'page.mode.{context.mode}')} - FramePack-eichi"
    settings = {"title": title, "analytics_enabled": False, "fill_width": True}
    with Page(holds=context.holds, t=context.t, **settings) as blocks:
        gr.HTML(header(context), elem_id="header")
        for notice in context.notices:
            gr.HTML(f'<p class="eichi-hint">{escape(words.problem_sentence(context.t, notice))}</p>', elem_id="notice")
        blocks.place()
        with gr.Row(elem_classes="eichi-page"):
            with gr.Column(elem_classes="eichi-form", min_width=0):
                yield blocks, form, followers
                settings = None if context.plain else saving_panels(context, form)
                start = StartPanel(context, form, followers)
            with gr.Column(elem_classes="eichi-result", min_width=0):
                result = ResultPanel(context, form)
        result.wire(blocks)
        start.wire(result.refresh, result.outputs, result.shown)
        form.model.wire(start.on_change, start.outputs)
        form_updates = FormUpdates(form, form.model)
        for wire in form.wirings:
            wire(form_updates)
        if settings:
            settings.wire(form_updates, start.start)
        fill_on_load(context, form, form_updates, settings, blocks)


def saving_panels(context: Context, form: Form) -> SettingsPanel:
    """What can be taken out of the form and put into it, closed."""
    t = context.t
    with gr.Accordion(t("page.exchange"), open=False, elem_id="exchange"):
        if issubclass(form.kind, FilmRequest):
            form.wirings.append(SectionsPanel(context, form).wire)
        form.wirings.append(MetadataPanel(context, form).wire)
    with gr.Accordion(t("page.keeping"), open=False, elem_id="keeping"):
        form.wirings.append(FavouritesPanel(context, form).wire)
        return SettingsPanel(context, form)


def fill_on_load(context: Context, form: Form, form_updates: FormUpdates, settings: SettingsPanel | None, blocks: Page) -> None:
    """On load the form shows the request of the job that the page shows; else what the user begins with."""
    model = form_updates.model
    outputs = [*form_updates.outputs, *(settings.outputs if settings else []), *form.fresh, blocks.message]

    def fill() -> dict[Component, Any]:
        job = context.job_to_fill_from()
        fields, notes = starting_fields(context, form) if settings and job is None else ({}, [])
        said = settings.on_load(notes) if settings else {}
        said |= {component: update() for component, update in form.fresh.items()}
        if damaged := context.damaged.news(notes):
            said[blocks.message] = message_value(context.t, damaged, "note")
        if job is None:
            return form_updates.initial(fields) | said
        return form.write(job.asked) | model.updates_for(job.asked) | said

    # What somebody types before the answer would be lost in it, so the form takes nothing until then.
    blocks.load(None, None, None, js=call("form.close"), **QUIET)
    filled = blocks.load(fill, None, outputs, **QUIET)
    filled.then(None, None, None, js=call("form.open"), **QUIET)
    for then in form.after_load:
        then(filled)


def page_data(context: Context, build: str) -> dict[str, Any]:
    """Return what the browser is told of a page (`static/page.js`). build: see `page_build.build_of`."""
    return {
        "language": context.t.language,
        "build": build,
        "build_header": HEADER,
        "words": {name: context.t(f"page.tab.{name}") for name in ("other", "reload", "silent")},
        "poll_address": f"{context.front}{polling.ADDRESS}/{context.mode}",
        "poll_milliseconds": polling.IDLE,
    }


def header(context: Context) -> str:
    """Return the page's head in HTML: its name, the other modes, and the way out where there is a login."""
    t = context.t
    links = ""
    for mode, address in context.links.items():
        here = ' aria-current="page"' if mode == context.mode else ""
        links += f'<a href="{escape(address)}"{here}>{escape(t(f"page.mode.{mode}"))}</a>'
    leave = ""
    if context.has_login:
        # A form, so that no other site's link ends a session.
        leave = escape(t("page.login.leave"))
        button = f"<button>{leave}</button>"
        leave = f'<form method="post" action="{escape(context.front)}/logout">{button}</form>'
    return f'<header class="eichi-header"><h1>FramePack-eichi</h1><nav>{links}</nav>{leave}</header>'


def theme() -> Base:
    """Return gradio's usual look in our colours and sizes."""
    return Default(
        primary_hue=colors.teal,
        neutral_hue=colors.zinc,
        spacing_size=sizes.spacing_md,
        radius_size=sizes.radius_md,
        font=FONT,
        font_mono=("ui-monospace", "Consolas", "monospace"),
    ).set(
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_600",
        button_primary_text_color="white",
        body_text_color_subdued="*neutral_500",
        color_accent="*primary_600",
        slider_color="*primary_600",
    )
