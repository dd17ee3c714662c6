"""How a tab learns that there is news: a tiny question to the server, so that only news costs a real look.

A tab that nobody sees asks nothing; it looks when it is seen again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import gradio as gr

from eichi_utils.jobs import Jobs

ADDRESS = "/pulse"
# Milliseconds between two questions while a job runs, and while none does.
BUSY, IDLE = 500, 1000

HTML = "<div hidden></div>"

JS = """
let seen = null, timer = 0;
async function ask() {
  clearTimeout(timer);
  let busy = false;
  if (document.hidden) return;
  try {
    const answer = await (await fetch('ADDRESS')).json();
    busy = answer.busy;
    if (answer.state !== seen && element.isConnected) { seen = answer.state; trigger('click'); }
  } catch (error) {
    // The server starts anew, or the network is gone for a while.
  }
  clearTimeout(timer);
  if (element.isConnected) timer = setTimeout(ask, busy ? BUSY : IDLE);
}
document.addEventListener('visibilitychange', ask);
timer = setTimeout(ask, BUSY);
"""


def pulse() -> gr.HTML:
    """An element that is clicked by itself whenever a job has changed."""
    js = JS.replace("ADDRESS", ADDRESS).replace("BUSY", str(BUSY)).replace("IDLE", str(IDLE))
    return gr.HTML(None, html_template=HTML, js_on_load=js, elem_id="pulse", padding=False)


def route(jobs: Jobs) -> Callable[[], Awaitable[dict[str, Any]]]:
    """What answers at `ADDRESS`; on the server's own thread, for it takes microseconds."""

    async def answer() -> dict[str, Any]:
        return state_of(jobs)

    return answer


def state_of(jobs: Jobs) -> dict[str, Any]:
    """What the server answers: a word that changes whenever anything about the jobs does, and whether one runs or waits."""
    seen = jobs.all()
    return {
        "state": str(hash(tuple((job.id, job.version) for job in seen))),
        "busy": any(job.view.state in ("running", "waiting") for job in seen),
    }
