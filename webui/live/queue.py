"""The jobs that wait: one HTML element with a line for each, which says what was clicked on which job."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from eichi_utils.jobs.queue import Job
from eichi_utils.requests.plan import FPS
from locales import Translator

NAME_LENGTH = 80
# What a button asks for -> places the job moves, or None to remove it.
ACTIONS = {"up": -1, "down": 1, "remove": None}

HTML = '<p class="title"></p><ol></ol>'

CSS = """
font-size: 14px;
.title { margin: 8px 0 4px; color: var(--body-text-color-subdued); }
ol { display: flex; flex-direction: column; gap: 4px; max-height: 30vh; margin: 0; padding: 0; overflow-y: auto; }
li { display: flex; align-items: center; gap: 8px; padding: 4px 8px; border-radius: 6px; list-style: none;
  background: var(--background-fill-secondary); }
.name { flex: 1; min-width: 0; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.facts { color: var(--body-text-color-subdued); font-variant-numeric: tabular-nums; white-space: nowrap; }
button { min-width: 32px; min-height: 32px; margin: 0 !important; padding: 0; border: none; border-radius: 4px; cursor: pointer;
  background: none; color: var(--body-text-color); font-size: 14px; }
button:hover:enabled, button:focus-visible { background: var(--background-fill-primary); }
button:disabled { opacity: 0.3; cursor: default; }
[hidden] { display: none !important; }
"""

JS = """
const signs = { up: '\u2191', down: '\u2193', remove: '\u00d7' };
function line(job, place, count, labels) {
  const item = document.createElement('li');
  for (const name of ['name', 'facts']) { const part = document.createElement('span'); part.className = name;
    part.textContent = job[name]; item.append(part); }
  for (const action of Object.keys(signs)) {
    const button = document.createElement('button');
    button.type = 'button'; button.className = action; button.textContent = signs[action];
    button.title = labels[action]; button.setAttribute('aria-label', labels[action] + ': ' + job.name);
    button.disabled = (action === 'up' && place === 0) || (action === 'down' && place === count - 1);
    button.addEventListener('click', () => trigger('click', { job: job.id, action }));
    item.append(button);
  }
  return item;
}
function show() {
  const value = props.value || {}, jobs = value.jobs || [];
  element.querySelector('.title').hidden = !jobs.length;
  element.querySelector('.title').textContent = value.title || '';
  element.querySelector('ol').replaceChildren(...jobs.map((job, place) => line(job, place, jobs.length, value.labels)));
}
show();
watch('value', show);
"""


def queue_of(t: Translator, jobs: Sequence[Job]) -> dict[str, Any]:
    """What the element shows of the jobs that wait."""
    waiting = [job for job in jobs if job.view.state == "waiting"]
    return {
        "title": t("page.progress.waiting", jobs=len(waiting)),
        "labels": {action: t(f"page.queue.{action}") for action in ACTIONS},
        "jobs": [{"id": job.id, "name": name_of(job), "facts": facts_of(t, job)} for job in waiting],
    }


def name_of(job: Job) -> str:
    """Return the beginning of a job's prompt, by which its user knows it."""
    text = " ".join(job.request.prompt.split())
    return text if len(text) <= NAME_LENGTH else f"{text[: NAME_LENGTH - 1]}\u2026"


def facts_of(t: Translator, job: Job) -> str:
    """Return a job's page and length in words."""
    mode = t(f"page.mode.{job.request.mode}")
    plan = job.request.plan()
    return mode if plan.output == "picture" else f"{mode}, {t('page.seconds', seconds=f'{plan.frames / FPS:.1f}')}"
