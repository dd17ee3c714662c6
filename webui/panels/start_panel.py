"""Add the Start button, a summary of what it will make, and the list of problems that prevent it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

import gradio as gr
from gradio.components import Component

from eichi_utils.files.pictures import profile_problem
from eichi_utils.models.disk_space import extra_counts
from eichi_utils.problems import Problem
from eichi_utils.requests.request import Request
from webui.context import QUIET, Context, event_of
from webui.forms import words
from webui.forms.field_problems import field_problems
from webui.forms.form import Form
from webui.forms.uploads import keep_pictures
from webui.gradio_compat import number_of

# Two clicks on Start within this time mean one film.
DOUBLE_CLICK_SECONDS = 1.5

Follower = Callable[[Request | None, tuple[Problem, ...]], dict[Component, Any]]


class StartPanel:
    """Check the form at every change, and submit its request when Start is clicked.

    Start can be clicked only while the request has no problem, and checks again then.
    followers: component of another panel that shows the request -> function of the request and its problems that returns the
    panel's updates.
    """

    def __init__(self, context: Context, form: Form, followers: Mapping[Component, Follower]):
        self.followers = followers
        self.context, self.form, self.t = context, form, context.t
        self._submitting = threading.Lock()
        # The request that was submitted last, and when, in seconds of the monotonic clock.
        self._submitted: tuple[Request | None, float] = (None, 0.0)
        with gr.Column(elem_classes="eichi-start", min_width=0):
            self.problems = gr.HTML(elem_id="problems")
            self.field_problems = field_problems(self.t)
            self.summary = gr.HTML(elem_id="summary")
            self.start = gr.Button(self.t("page.start"), variant="primary", elem_id="start")
        request = form.kind(**form.defaults)
        problems = request.check()
        self.problems.value = words.problem_list(self.t, problems)
        self.summary.value = self._summary(request, problems)
        self.start.interactive = not problems

    @property
    def outputs(self) -> list[Component]:
        """Return the components that `on_change` may change."""
        return [self.summary, self.problems, self.field_problems, self.start, *self.followers]

    def wire(self, after: Callable[..., Any], outputs: Sequence[Component], seen: Component) -> None:
        """Connect the events. after: called with `seen` once a job is submitted, to show it at once. outputs: its outputs."""
        # Typing causes many events; only the newest state is answered, those between are skipped.
        # A change of the model is checked together with the size that comes with it, by an event of the model panel.
        typed = self.form.components - set(self.form.entries["model"].components)
        changes = [event_of(component, "change") for component in sorted(typed, key=number_of)]
        # Any: the types of gradio's `on` and `then` do not accept this set, which works.
        values: Any = self.form.components
        looked = gr.on(changes, self.on_change, values, self.outputs, trigger_mode="always_last", **QUIET)
        # Answers to quick changes can overtake each other, and an old one would stay; so the newest values are checked again.
        # "always_last" here too, or gradio would skip the new check while one of older values is under way.
        looked.then(self.on_change, values, self.outputs, trigger_mode="always_last", **QUIET)
        started = self.start.click(self.submit, self.form.components, self.outputs, **QUIET)
        started.then(after, seen, outputs, **QUIET)

    def on_change(self, values: Mapping[Component, Any]) -> dict[Component, Any]:
        """Return the updates that show what the form's values would make, and what is wrong with them."""
        return self._shown(*self.form.read(values))

    def _shown(self, request: Request | None, problems: tuple[Problem, ...]) -> dict[Component, Any]:
        news = {
            component: value for follow in self.followers.values() for component, value in follow(request, problems).items()
        }
        return news | {
            self.summary: self._summary(request, problems),
            self.start: gr.update(interactive=not problems),
            **self._said(problems, _notes(request, problems)),
        }

    def _said(self, problems: tuple[Problem, ...], notes: tuple[Problem, ...] = ()) -> dict[Component, Any]:
        return {
            self.problems: words.problem_list(self.t, problems, notes),
            self.field_problems: words.problems_by_field(self.t, problems),
        }

    def submit(self, values: Mapping[Component, Any]) -> dict[Component, Any]:
        """Submit the form's request as a job, unless anything is wrong; return the updates."""
        came = time.monotonic()
        request, problems = self.form.read(values)
        shown = self._shown(request, problems)
        if request is None or problems:
            return shown
        if problems := self._found_on_trial(request):
            # Start stays clickable: such a problem, for example a full disk, is solved outside of the page.
            return shown | self._said(problems)
        # Both clicks of a double click come nearly at the same time, and copying a new picture takes a while.
        with self._submitting:
            request = keep_pictures(request, self.context.uploads)
            if not self._just_submitted(request, came):
                self.context.jobs.submit(request)
                self._submitted = request, time.monotonic()
        return shown

    def _found_on_trial(self, request: Request) -> tuple[Problem, ...]:
        """Return the problems that are checked only at Start: writing to the output folder, and the machine's memory."""
        folder = self.context.folders.problem(request.output_folder)
        engine = self.context.engine
        return (*([folder] if folder else ()), *(engine.never_fits(request) if engine else ()))

    def _just_submitted(self, request: Request, came: float) -> bool:
        """Tell whether a click is the second one of a double click, which must not make the film twice.

        came: when the click arrived, in monotonic seconds. The time of arrival counts, because reading the second click's form
        can take seconds while the first film begins.
        """
        before, at = self._submitted
        return before == request and came - at < DOUBLE_CLICK_SECONDS

    def _summary(self, request: Request | None, problems: tuple[Problem, ...]) -> str:
        took = self.context.timings.seconds if self.context.timings else None
        lines = words.summary(self.t, request, problems, took), words.files(self.t, request, problems)
        shown = "".join(f"<span>{escape(line)}</span>" for line in lines if line)
        usual = "" if request is not None and lines[1] and extra_counts(request, request.plan()) else " usual"
        return f'<p class="eichi-summary{usual}">{shown}</p>'


def _notes(request: Request | None, problems: tuple[Problem, ...]) -> tuple[Problem, ...]:
    """Return notes on the request's pictures whose colour profiles cannot be used."""
    if request is None or problems:
        return ()
    paths = dict.fromkeys(request.plan().pictures.values())
    return tuple(problem for path in paths if (problem := profile_problem("image", path)))
