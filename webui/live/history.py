"""The jobs that have ended, the newest first: how each ended and why, and what it left. It stays as long as the server runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from eichi_utils.jobs.queue import Job
from locales import Translator
from webui.forms import words
from webui.live.queue import facts_of, name_of

# Of the newest jobs that ended, those that are listed. One that did not finish is listed after them, too.
MOST, MOST_UNFINISHED = 20, 20
# Before the words, so that an end is seen at a glance without its colour.
MARKS = MappingProxyType({"finished": "\u2713", "stopped": "\u25a0", "failed": "\u2715"})

HTML = "<details hidden><summary></summary><ol></ol></details>"

CSS = """
font-size: 14px;
summary { padding: 4px 0; cursor: pointer; color: var(--body-text-color-subdued); }
ol { display: flex; flex-direction: column; gap: 4px; max-height: 30vh; margin: 0; padding: 0; overflow-y: auto; }
li { display: flex; flex-wrap: wrap; gap: 0 8px; padding: 4px 8px; border-radius: 6px; list-style: none;
  background: var(--background-fill-secondary); border-left: 4px solid transparent; }
li.failed { border-left-color: var(--error-text-color); }
li.stopped { border-left-color: var(--body-text-color-subdued); }
.end { flex: 1 1 100%; font-weight: 600; overflow-wrap: anywhere; }
.failed .end { color: var(--error-text-color); }
.name { flex: 1; min-width: 0; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.facts { color: var(--body-text-color-subdued); font-variant-numeric: tabular-nums; white-space: nowrap; }
.why { flex: 1 1 100%; margin: 0; overflow-wrap: anywhere; }
a { overflow-wrap: anywhere; color: var(--body-text-color); }
[hidden] { display: none !important; }
@media (max-width: 800px) { ol { max-height: 24vh; } summary { font-size: 12px; padding: 0; } }
"""

# It opens by itself where there is room and something did not finish, until somebody has opened or closed it.
JS = """
const details = element.querySelector('details'), summary = element.querySelector('summary');
let chosen = false;
summary.addEventListener('click', () => { chosen = true; });
function line(job) {
  const item = document.createElement('li');
  item.className = job.state;
  const add = (tag, look, text) => { const part = document.createElement(tag); part.className = look;
    part.textContent = text; item.append(part); return part; };
  add('span', 'end', job.mark + ' ' + job.end);
  for (const why of job.why) add('p', 'why', why);
  add('span', 'name', job.name).title = job.name;
  add('span', 'facts', job.facts);
  if (job.file) Object.assign(add('a', 'result', job.file.name), { href: job.file.url, target: '_blank' });
  return item;
}
function show() {
  const value = props.value || {}, jobs = value.jobs || [];
  details.hidden = !jobs.length;
  summary.textContent = value.title || '';
  element.querySelector('ol').replaceChildren(...jobs.map(line));
  if (!chosen) details.open = window.innerWidth > 800 && jobs.some(job => job.state !== 'finished');
}
show();
watch('value', show);
"""


def history_of(t: Translator, jobs: Sequence[Job], shown: Job | None, file: Callable[[str], dict[str, str]]) -> dict[str, Any]:
    """What the element shows of the jobs that have ended, without the one that the page shows large.

    file: path -> address and name of a result.
    """
    ended = [job for job in jobs if job.view.ended and job is not shown]
    ended.sort(key=lambda job: job.view.now, reverse=True)
    counts = Counter(job.view.state for job in ended)
    parts = [t(f"page.history.{state}", jobs=counts[state]) for state in MARKS if counts[state]]
    unfinished = [job for job in ended[MOST:] if job.view.state != "finished"]
    return {
        "title": t("page.history", counts=t("page.progress.separator").join(parts)),
        "jobs": [_entry(t, job, file) for job in [*ended[:MOST], *unfinished[:MOST_UNFINISHED]]],
    }


def _entry(t: Translator, job: Job, file: Callable[[str], dict[str, str]]) -> dict[str, Any]:
    view, own = job.view, t.of(job.request.mode)
    result = view.picture or view.film
    return {
        "id": job.id,
        "state": view.state,
        "mark": MARKS[view.state],
        "end": words.end_of(own, view),
        "why": [words.problem_sentence(own, problem) for problem in view.problems],
        "name": name_of(job),
        "facts": facts_of(t, job),
        "file": file(result) if result and Path(result).is_file() else None,
    }
