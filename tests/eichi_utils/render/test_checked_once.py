"""Test that a request is checked when it is submitted and once more when its turn comes, by the same functions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from eichi_utils.cli import main
from eichi_utils.jobs.events import Event, Finished
from eichi_utils.models import requirements
from eichi_utils.models.catalogue import Models
from eichi_utils.models.host_memory import HostMemory
from eichi_utils.models.pool import ModelPool
from eichi_utils.problems import UserError
from eichi_utils.render.engine import Engine
from tests.checked import JUDGES, counted
from tests.eichi_utils.helpers import carry_out, found, have_memory, request


def test_a_job_is_judged_once_when_its_turn_comes(
    pool: ModelPool, pictures: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cheap_decode: None
) -> None:
    """Engine, driver and pool each looked at the same things: what the model can do three times, its files twice."""
    counts = counted(monkeypatch)
    assert isinstance(carry_out(request("single", pictures[0]), pool, tmp_path)[-1], Finished)
    assert counts == dict.fromkeys(JUDGES, 1)


def test_the_command_line_judges_once_before_the_job(
    checkpoint: Path, pictures: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """From the flags to the film a request is checked twice only: by the command line's entry and by the driver."""
    counts, at_door = counted(monkeypatch), []

    def see(self: Engine, *_: object) -> Iterator[Event]:
        at_door.append(dict(counts))
        yield from real(self, *_)

    real = Engine.__call__
    monkeypatch.setattr(Engine, "__call__", see)
    where = ["--models", str(checkpoint), "--device", "cpu", "--out", str(tmp_path / "out")]
    flags = ["--mode", "single", "--image", pictures[0], "--prompt", "a cat", "--size", "128", "--steps", "2", *where]
    assert main.main(["render", *flags, "--lang", "en"]) == 0, capsys.readouterr().err
    assert at_door == [dict.fromkeys(JUDGES, 1)]
    assert counts == dict.fromkeys(JUDGES, 2)


def test_the_door_refuses_only_what_never_fits(
    checkpoint: Path, pictures: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second film was to wait for the first one's memory: what is taken just now is no reason to refuse it."""
    engine, it = Engine(Models(checkpoint), tmp_path, "cpu"), request("single", pictures[0])
    needed = requirements.requirements(it, it.plan(), engine.models.files(it.model), requirements.Machine(2**50)).choice.needs
    monkeypatch.setattr(requirements, "own_memory", lambda: 0)
    monkeypatch.setattr(requirements, "host_memory", lambda: HostMemory(needed.host, 0))
    assert engine.never_fits(it) == () and engine.problems(it) == ()
    with pytest.raises(UserError) as error:
        carry_out(it, engine.pool, tmp_path / "out")
    assert found(error.value.problems) == {("", "too_little_memory")}
    have_memory(monkeypatch, needed.host - 1)
    assert found(engine.never_fits(it)) == found(engine.problems(it)) == {("", "too_little_memory")}
    # Without the driver's word nobody but torch knows whether there is a card.
    assert Engine(Models(checkpoint), tmp_path, "auto").never_fits(it) == ()
