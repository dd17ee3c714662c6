"""Describe the timeline: a strip of a film's sections in playing order, each with its time, picture, prompt and number.

The strip holds no values of its own: it is drawn from a request, and reports which cell was clicked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from eichi_utils.requests.film_request import FilmRequest
from eichi_utils.requests.plan import FPS
from eichi_utils.requests.reverse import anchor
from locales import Translator


def strip(request: FilmRequest, t: Translator, url: Callable[[str], str]) -> dict[str, Any]:
    """Return the value of the strip's element for a request whose length is valid.

    url: path of a picture -> its address, "" if it has none.
    """
    plan = request.plan()
    count = len(plan.sections)
    order = range(count) if request.mode == "forward" else range(count - 1, -1, -1)
    keyframes = getattr(request, "keyframes", None)
    # The film's first frame comes before its first section.
    seconds = (plan.frames - 1) / count / FPS
    ranges = {number: f"{place * seconds:.1f}\N{EN DASH}{(place + 1) * seconds:.1f}" for place, number in enumerate(order)}
    times = {number: t("page.timeline.time", seconds=text) for number, text in ranges.items()}
    # Sections that the user filled but a shorter film does not have keep their cells, so that they can still be edited.
    given = {*request.section_prompts, *request.section_lora_scales, *(keyframes or ())}
    gone = sorted(given - set(order), reverse=request.mode != "forward")
    cells = [_cell(request, number, times.get(number), t, url) for number in (*gone, *order)]
    return {"label": t("page.timeline"), "count": count, "cells": cells}


def _cell(request: FilmRequest, number: int, time: str | None, t: Translator, url: Callable[[str], str]) -> dict[str, Any]:
    own, scale = request.section_prompts.get(number, "").strip(), request.section_lora_scales.get(number, 1.0)
    cell: dict[str, Any] = {
        "number": number,
        "time": t("page.timeline.gone") if time is None else time,
        "gone": time is None,
        "tone": "",
        "own": bool(own),
        "prompt": own or t("page.timeline.common"),
        "lora": t("page.timeline.lora", scale=f"{scale:g}") if request.loras and scale != 1.0 else "",
    }
    keyframes: Mapping[int, str] | None = getattr(request, "keyframes", None)
    if keyframes is None:
        return cell
    tone = ("even", "odd")[number % 2] if number < 2 else ""
    source = anchor(number, keyframes)
    if number in keyframes:
        return cell | {"tone": tone, "picture": url(keyframes[number]), "note": "", "inherited": False}
    if source == "start":
        picture, note = request.image, t("page.timeline.start")
    else:
        other = int(source.removeprefix("section/"))
        picture, note = keyframes[other], t("page.timeline.as", section=other)
    return cell | {"tone": tone, "picture": url(picture) if picture else "", "note": note, "inherited": True}
