"""The progress of a job as plain data for the page, and the one HTML element that shows it."""

from __future__ import annotations

from typing import Any

from eichi_utils.jobs.events import StopLevel
from eichi_utils.jobs.queue import Job
from eichi_utils.jobs.view import View
from locales import Translator
from webui.forms import words

HTML = """
<div class="bar" role="progressbar" aria-valuemin="0" aria-valuemax="100"><div class="done"></div></div>
<div class="lines"><span class="percent"></span><span class="where"></span><span class="time"></span></div>
<p class="mode"></p>
<ul class="notices"></ul>
<ul class="problems"></ul>
"""

CSS = """
font-size: 14px;
.bar { height: 8px; border-radius: 4px; overflow: hidden; background: var(--border-color-primary); }
.done { height: 100%; width: 0; border-radius: 4px; background: var(--color-accent);
  transition: width 0.4s linear; }
.lines { display: flex; flex-wrap: wrap; gap: 0 16px; margin-top: 8px; font-variant-numeric: tabular-nums; }
.percent { font-weight: 600; min-width: 40px; }
.where { flex: 1 1 auto; }
.time { color: var(--body-text-color-subdued); }
p, ul { margin: 8px 0 0; padding: 0; }
p:empty, ul:empty, .percent:empty, [hidden] { display: none; }
.mode { color: var(--body-text-color-subdued); }
li { list-style: none; padding: 8px; border-radius: 4px; margin-top: 8px; overflow-wrap: anywhere; }
.notices li { background: var(--background-fill-secondary); }
.problems li { color: var(--error-text-color); background: var(--error-background-fill); }
"""

# A bar of the same job only grows; a new job starts again without sliding back.
JS = """
const find = name => element.querySelector(name);
const list = (name, lines) => find(name).replaceChildren(...(lines || []).map(line => {
  const item = document.createElement('li'); item.textContent = line; return item; }));
let job = '', top = 0, since = 0, value = {};
const two = number => String(number).padStart(2, '0');
function duration(seconds) {
  const all = Math.max(0, Math.floor(seconds)), hours = Math.floor(all / 3600), minutes = Math.floor(all / 60) % 60;
  return (hours ? hours + ':' + two(minutes) : minutes) + ':' + two(all % 60);
}
// Between two looks the clock goes on by itself.
function tick() {
  const { text = '', elapsed = 0, left = 0, runs } = value.time || {};
  const more = runs ? (performance.now() - since) / 1000 : 0;
  const shown = text.replace('{elapsed}', duration(elapsed + more)).replace('{left}', duration(left - more));
  if (find('.time').textContent !== shown) find('.time').textContent = shown;
}
function show(news) {
  value = news;
  since = performance.now();
  const done = find('.done');
  if (value.job !== job) { job = value.job; top = 0; done.style.transition = 'none'; }
  else done.style.transition = '';
  top = Math.max(top, value.fraction || 0);
  done.style.width = (100 * top).toFixed(1) + '%';
  find('.bar').setAttribute('aria-valuenow', Math.round(100 * top));
  find('.bar').hidden = !value.bar;
  find('.percent').textContent = value.bar ? Math.floor(100 * top) + ' %' : '';
  tick();
  for (const name of ['where', 'mode']) find('.' + name).textContent = value[name] || '';
  list('.notices', value.notices);
  list('.problems', value.problems);
  element.dataset.state = value.state || '';
}
document.addEventListener('eichi-news', event => show(event.detail.progress));
setInterval(tick, 250);
"""


def progress_of(t: Translator, job: Job, page_mode: str, now: float) -> dict[str, Any]:
    """What the element shows, in words. now: the present, so that the clock goes on between two events."""
    view = job.view
    mode = job.request.mode
    return {
        "job": job.id,
        "state": view.state,
        "fraction": view.fraction,
        "bar": view.state != "waiting" and (not view.ended or view.state == "finished"),
        "where": where(t.of(mode), view),
        "time": times(t, view, now),
        "mode": "" if mode == page_mode else t("page.progress.mode", mode=t(f"page.mode.{mode}")),
        "notices": [words.notice_sentence(t, notice) for notice in view.notices],
        "problems": [words.problem_sentence(t, problem) for problem in view.problems],
    }


def where(t: Translator, view: View) -> str:
    """How far the job is: "Section 2 of 4, step 11 of 25"."""
    if view.ended:
        return words.end_of(t, view)
    if view.state != "running":
        return t(f"page.state.{view.state}")
    if view.stopping != StopLevel.NONE:
        return t(f"page.stopping.{view.stopping.name.lower()}")
    parts = []
    if view.sections > 1 and view.sampling_since is not None:
        parts.append(t("page.progress.section", section=view.section + 1, sections=view.sections))
    if view.stage == "sample":
        parts.append(t("page.progress.step", step=view.step, steps=view.steps))
    elif view.stage:
        parts.append(t(f"stage.{view.stage}"))
    return t("page.progress.separator").join(parts) or t("page.state.running")


def times(t: Translator, view: View, now: float) -> dict[str, Any]:
    """How long it has taken, and how long it will take if that is known: a text with {elapsed} and {left}, and their seconds.

    runs: whether they go on.
    """
    if view.state == "waiting":
        return {}
    if view.ended:
        return {"text": t("page.progress.took", elapsed="{elapsed}"), "elapsed": view.elapsed, "runs": False}
    clock = {"text": t("page.progress.elapsed", elapsed="{elapsed}"), "elapsed": now - view.started, "runs": True}
    if view.seconds_left is None:
        return clock
    text = t("page.progress.separator").join([clock["text"], t("page.progress.left", left="{left}")])
    return clock | {"text": text, "left": view.seconds_left - (now - view.now)}
