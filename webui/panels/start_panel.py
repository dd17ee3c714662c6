"""What will come out, what still stands in the way, the seed, and Start."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
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
    """Start is open to click only while the request has no problem, and checks again when clicked.

    followers: components of other panels that show the request, and what makes their values of it and its problems.
    """

    def __init__(self, context: Context, form: Form, followers: Mapping[Component, Follower]):
        self.followers = followers
        self.context, self.form, self.t = context, form, context.t
        self._submitting = threading.Lock()
        # The request that was submitted last, and when by the monotonic clock.
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
        """What `on_change` returns."""
        return [self.summary, self.problems, self.field_problems, self.start, *self.followers]

    def wire(self, after: Any, outputs: Any, seen: Component) -> None:
        """after: called with `seen` once a job is submitted, to show it at once. outputs: what it returns."""
        # Typing asks often; the page answers the newest state and skips what lies between.
        # Another model is judged together with the size that comes with it: the model panel asks for that.
        typed = self.form.components - set(self.form.entries["model"].components)
        changes = [event_of(component, "change") for component in sorted(typed, key=number_of)]
        # Any: of its events gradio takes any set, of `on` and `then` its types take others.
        values: Any = self.form.components
        looked = gr.on(changes, self.on_change, values, self.outputs, trigger_mode="always_last", **QUIET)
        # Answers to quick changes can overtake each other, and an old one would stay; whatever came last, this one is new.
        # Always last here too, or gradio skips the new look while one at older values is under way.
        looked.then(self.on_change, values, self.outputs, trigger_mode="always_last", **QUIET)
        started = self.start.click(self.submit, self.form.components, self.outputs, **QUIET)
        started.then(after, seen, outputs, **QUIET)

    def on_change(self, values: Mapping[Component, Any]) -> dict[Component, Any]:
        """What the form's values would make, and what is wrong with them."""
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
        """Queue a job, unless anything is wrong."""
        came = time.monotonic()
        request, problems = self.form.read(values)
        shown = self._shown(request, problems)
        if request is None or problems:
            return shown
        if problems := self._found_on_trial(request):
            # Start stays open: such as a full disk is mended outside of the page.
            return shown | self._said(problems)
        # The halves of a double click come at the same time, and keeping a new picture takes a while.
        with self._submitting:
            request = keep_pictures(request, self.context.uploads)
            if not self._just_submitted(request, came):
                self.context.jobs.submit(request)
                self._submitted = request, time.monotonic()
        return shown

    def _found_on_trial(self, request: Request) -> tuple[Problem, ...]:
        """Return what is asked before a job and not at every key that is pressed: of the folder, by writing to it, and of the
        machine."""
        folder = self.context.folders.problem(request.output_folder)
        engine = self.context.engine
        return (*([folder] if folder else ()), *(engine.never_fits(request) if engine else ()))

    def _just_submitted(self, request: Request, came: float) -> bool:
        """Whether a click that came at that time is the second half of a double click.

        A film takes too long to be made twice by accident. While the first film begins, the form of the second half is read
        for seconds: what counts is when it came.
        """
        before, at = self._submitted
        return before == request and came - at < DOUBLE_CLICK_SECONDS

    def _summary(self, request: Any, problems: Any) -> str:
        took = self.context.timings.seconds if self.context.timings else None
        lines = words.summary(self.t, request, problems, took), words.files(self.t, request, problems)
        shown = "".join(f"<span>{escape(line)}</span>" for line in lines if line)
        usual = "" if request is not None and lines[1] and extra_counts(request, request.plan()) else " usual"
        return f'<p class="eichi-summary{usual}">{shown}</p>'


def _notes(request: Request | None, problems: tuple[Problem, ...]) -> tuple[Problem, ...]:
    """What of the request's pictures is left out: profiles that cannot be used."""
    if request is None or problems:
        return ()
    paths = dict.fromkeys(request.plan().pictures.values())
    return tuple(problem for path in paths if (problem := profile_problem("image", path)))
