"""Test what Start checks before it submits a job."""

from __future__ import annotations

import dataclasses

from eichi_utils.models import requirements
from eichi_utils.models.host_memory import HostMemory
from eichi_utils.render.engine import Engine
from tests.checked import counted
from tests.webui.forms.test_form import page as page
from webui.forms import words


def test_start_judges_once(page, jobs, tower, tmp_path, monkeypatch):
    """Start read the form twice, and asked nobody whether the machine can make the film: it failed when its turn came."""
    built = page("reverse")
    built.start.context = dataclasses.replace(built.context, engine=Engine(built.context.models, tmp_path, "cpu"))
    values = built.values(image=tower, prompt="a cat")
    counts = counted(monkeypatch)
    monkeypatch.setattr(requirements, "host_memory", lambda: HostMemory(2**50, 0))
    monkeypatch.setattr(requirements, "download_problems", lambda *_: ())
    built.start.submit(values)
    assert counts == {"fields": 1, "files": 1, "machine": 1}
    assert len(jobs.all()) == 1


def test_a_machine_that_is_too_small_is_said_at_start(page, jobs, tower, tmp_path, monkeypatch):
    """A machine that is too small is told at Start without making a job; Start can be pressed again with another precision."""
    built = page("reverse")
    built.start.context = dataclasses.replace(built.context, engine=Engine(built.context.models, tmp_path, "cpu"))
    monkeypatch.setattr(requirements, "host_memory", lambda: HostMemory(2**30, 2**30))
    monkeypatch.setattr(requirements, "download_problems", lambda *_: ())
    said = built.start.submit(built.values(image=tower, prompt="a cat"))
    (problem,) = built.start.context.engine.never_fits(built.form.read(built.values(image=tower, prompt="a cat"))[0])
    assert problem.key == "too_little_memory" and jobs.all() == ()
    assert words.problem_sentence(built.form.t, problem) in said[built.start.problems]
    assert said[built.start.start]["interactive"] is True
