"""Build what all pages share: title, links to the other modes, two columns, and the events between the panels."""

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

# The system's own fonts: nothing is downloaded, and they have the characters of all four languages.
FONT = (
    "system-ui",
    "-apple-system",
    "Segoe UI",
    "Noto Sans",
    "Noto Sans CJK JP",
    "Noto Sans CJK TC",
    "sans-serif",
)

# The most tabs whose state is kept. A tab without state gets everything anew at its next poll, and can undo nothing.
# Most states have some kB, but an undo may hold megabytes of prompts.
SESSIONS = 100


# Seconds between two polls of gradio's queue, in which no event here ever waits (`QUIET`). With gradio's 1 and 10 ms, three
# pages take 5 % of a CPU core, and the interpreter lock from the thread that makes the film.
QUEUE_PAUSE = 0.25


class Page(CheckedBlocks, IdleBlocks, ErrorBoundary):
    """Build a page that refuses foreign files, costs nothing while nobody clicks, and shows every error as a sentence."""

    def __init__(self, t: Translator, **settings: Any):
        super().__init__(t=t, sessions=SESSIONS, pause=QUEUE_PAUSE, **settings)


@contextmanager
def page_frame(context: Context) -> Iterator[tuple[gr.Blocks, Form, dict[Component, Follower]]]:
    """Build a page with header, two columns, result and Start; the with block puts the inputs into the left column.

    Yields (page, form, followers). The block has to set `form.model`, and may add followers (`StartPanel`) for components that
    show something of the request.
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
    """Add the closed groups to export, import and save what the form holds; return the panel of settings."""
    t = context.t
    with gr.Accordion(t("page.exchange"), open=False, elem_id="exchange"):
        if issubclass(form.kind, FilmRequest):
            form.wirings.append(SectionsPanel(context, form).wire)
        form.wirings.append(MetadataPanel(context, form).wire)
    with gr.Accordion(t("page.keeping"), open=False, elem_id="keeping"):
        form.wirings.append(FavouritesPanel(context, form).wire)
        return SettingsPanel(context, form)


def fill_on_load(context: Context, form: Form, form_updates: FormUpdates, settings: SettingsPanel | None, blocks: Page) -> None:
    """Fill the form when the page is loaded: with the request of the job shown, else with the user's starting values."""
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

    # The answer would overwrite what the user types before it, so the form is closed until then.
    blocks.load(None, None, None, js=call("form.close"), **QUIET)
    filled = blocks.load(fill, None, outputs, **QUIET)
    filled.then(None, None, None, js=call("form.open"), **QUIET)
    for then in form.after_load:
        then(filled)


def page_data(context: Context, build: str) -> dict[str, Any]:
    """Return the data about a page for its scripts (`static/page.js`). build: see `page_build.build_of`."""
    return {
        "language": context.t.language,
        "build": build,
        "build_header": HEADER,
        "words": {name: context.t(f"page.tab.{name}") for name in ("other", "reload", "silent")},
        "poll_address": f"{context.front}{polling.ADDRESS}/{context.mode}",
        "poll_milliseconds": polling.IDLE,
    }


def header(context: Context) -> str:
    """Return the page's header in HTML: the program's name, links to all modes, and a logout button if there is a login."""
    t = context.t
    links = ""
    for mode, address in context.links.items():
        here = ' aria-current="page"' if mode == context.mode else ""
        links += f'<a href="{escape(address)}"{here}>{escape(t(f"page.mode.{mode}"))}</a>'
    leave = ""
    if context.has_login:
        # A form, because logout takes only POST: another site's link must not end a session.
        leave = escape(t("page.login.leave"))
        button = f"<button>{leave}</button>"
        leave = f'<form method="post" action="{escape(context.front)}/logout">{button}</form>'
    return f'<header class="eichi-header"><h1>FramePack-eichi</h1><nav>{links}</nav>{leave}</header>'


def theme() -> Base:
    """Return gradio's default theme with this program's colours, sizes and fonts."""
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
