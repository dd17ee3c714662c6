"""The strip of a film's sections in the order they are played, each with its time, its picture, its prompt and its number.

It holds no values of its own: it is drawn from a request, and says which cell was clicked.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from eichi_utils.requests.film_request import FilmRequest
from eichi_utils.requests.plan import FPS
from eichi_utils.requests.reverse import anchor
from locales import Translator

HTML = '<div class="strip" role="listbox"></div>'

CSS = """
.strip { display: flex; gap: 4px; padding: 2px; overflow-x: auto; }
button { display: flex; flex: 1 0 112px; flex-direction: column; gap: 4px; max-width: 240px; margin: 0 !important; padding: 6px;
  border-radius: 8px; cursor: pointer; text-align: left; font-size: 12px; font-weight: 400; line-height: 1.35;
  color: var(--body-text-color); background: var(--background-fill-secondary); border: 1px solid var(--border-color-primary); }
button:hover, button:focus-visible { border-color: var(--color-accent); }
button[aria-selected=true] { border-color: var(--color-accent); box-shadow: 0 0 0 1px var(--color-accent); }
button.gone { border-style: dashed; border-color: var(--error-border-color); }
.top { display: flex; justify-content: space-between; width: 100%; font-variant-numeric: tabular-nums;
  color: var(--body-text-color-subdued); }
.number { padding: 0 6px; border-radius: 4px; }
.even .number { color: #fff; background: #b3264a; }
.odd .number { color: #fff; background: #2559b0; }
.picture { display: flex; align-items: center; gap: 6px; min-height: 36px; width: 100%; color: var(--body-text-color-subdued); }
img { flex: none; width: 48px; height: 36px; object-fit: cover; border-radius: 4px; }
.inherited img { opacity: 0.45; }
.prompt { display: -webkit-box; overflow: hidden;
  -webkit-box-orient: vertical; -webkit-line-clamp: 2; overflow-wrap: anywhere; }
.lora { font-variant-numeric: tabular-nums; }
.prompt.common { color: var(--body-text-color-subdued); }
[hidden] { display: none !important; }
"""

JS = """
const strip = element.querySelector('.strip');
let selected = null;
const part = (cls, text) => { const node = document.createElement('span'); node.className = cls; node.textContent = text;
  return node; };
function draw(cell) {
  const button = document.createElement('button');
  button.type = 'button';
  button.className = cell.tone + (cell.gone ? ' gone' : '');
  button.dataset.section = cell.number;
  button.setAttribute('role', 'option');
  button.setAttribute('aria-selected', cell.number === selected);
  const top = part('top', '');
  top.append(part('time', cell.time), part('number', cell.number));
  button.append(top);
  if (cell.picture !== undefined) {
    const picture = part('picture' + (cell.inherited ? ' inherited' : ''), '');
    if (cell.picture) { const image = document.createElement('img'); image.src = cell.picture; image.alt = '';
      picture.append(image); }
    picture.append(part('note', cell.note));
    button.append(picture);
  }
  button.append(part('prompt' + (cell.own ? '' : ' common'), cell.prompt));
  if (cell.lora) button.append(part('lora', cell.lora));
  button.addEventListener('click', () => { selected = cell.number; show(); trigger('click', { section: cell.number }); });
  return button;
}
function show() {
  const left = strip.scrollLeft, value = props.value || {};
  strip.setAttribute('aria-label', value.label || '');
  const focused = document.activeElement?.closest?.('[data-section]')?.dataset.section;
  strip.replaceChildren(...(value.cells || []).map(draw));
  strip.scrollLeft = left;
  if (focused !== undefined) strip.querySelector(`[data-section="${focused}"]`)?.focus({ preventScroll: true });
}
// An upload takes its time, and another cell may be open when it is there: file -> the cell that it was dropped on.
const dropped = new Map();
let touched = null;
function note(event) {
  if (!event.target.closest?.('#section-picture')) return;
  touched = document.querySelector('#section-title [data-section]')?.dataset.section ?? null;
  for (const file of event.dataTransfer?.files || event.target.files || []) dropped.set(file.name, touched);
}
for (const kind of ['drop', 'change', 'click', 'paste']) document.addEventListener(kind, note, true);
strip.cellOf = name => {
  const cell = dropped.get(name) ?? touched;
  dropped.delete(name);
  return cell; };
show();
watch('value', show);
"""


def strip(request: FilmRequest, t: Translator, url: Callable[[str], str]) -> dict[str, Any]:
    """What the element shows of a request whose length is possible. url: a picture's path -> its address, "" if it has none."""
    plan = request.plan()
    count = len(plan.sections)
    order = range(count) if request.mode == "forward" else range(count - 1, -1, -1)
    keyframes = getattr(request, "keyframes", None)
    # The film's first frame comes before its first section.
    seconds = (plan.frames - 1) / count / FPS
    ranges = {number: f"{place * seconds:.1f}\N{EN DASH}{(place + 1) * seconds:.1f}" for place, number in enumerate(order)}
    times = {number: t("page.timeline.time", seconds=text) for number, text in ranges.items()}
    # What was given to sections that a shorter film does not have stays in reach.
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
    if not hasattr(request, "keyframes"):
        return cell
    tone = ("even", "odd")[number % 2] if number < 2 else ""
    source = anchor(number, request.keyframes)
    if number in request.keyframes:
        return cell | {"tone": tone, "picture": url(request.keyframes[number]), "note": "", "inherited": False}
    if source == "start":
        picture, note = request.image, t("page.timeline.start")
    else:
        other = int(source.removeprefix("section/"))
        picture, note = request.keyframes[other], t("page.timeline.as", section=other)
    return cell | {"tone": tone, "picture": url(picture) if picture else "", "note": note, "inherited": True}
