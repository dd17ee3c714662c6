"""Stopping at once: in the middle of loading, encoding and decoding, and what a stopped run leaves in the pool."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from diffusers_helper.interrupt import Interrupted, between_layers
from eichi_utils import runner
from eichi_utils.events import Ended, Event, Finished, Saved, Share, Stage, Step, StopLevel, Stopped
from eichi_utils.jobs import Stop
from eichi_utils.models import ModelPool
from eichi_utils.paths import Outputs
from eichi_utils.view import View
from tests.eichi_utils.helpers import SHORT, THREE, carry_out, decoded, names_in, request


@pytest.fixture
def loans(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is on loan at this moment, of any pool."""
    lent: list[str] = []
    loan = ModelPool._loan

    @contextmanager
    def noted(self: ModelPool, spec: Any, *rest: Any, **settings: Any) -> Iterator[Any]:
        with loan(self, spec, *rest, **settings) as value:
            lent.append(spec.component)
            try:
                yield value
            finally:
                lent.remove(spec.component)

    monkeypatch.setattr(ModelPool, "_loan", noted)
    return lent


class CountedStop(Stop):
    """A stop that somebody asks for when it was looked at so many times."""

    def __init__(self, looks: int):
        super().__init__()
        self.looks, self.seen = looks, 0

    @property
    def level(self) -> StopLevel:
        self.seen += 1
        return StopLevel.NOW if self.seen > self.looks else StopLevel.NONE


def test_a_stop_at_any_event_leaves_no_more_than_a_finished_run(
    checkpoint: Path, pictures: list[str], tmp_path: Path, loans: list[str], cheap_decode: None
) -> None:
    """A stop while prompts were encoded left 15 GB of text encoder in memory, for good where there is no card."""
    it, pool = request("single", pictures[0], steps=3), ModelPool(checkpoint, device="cpu")
    count = len(carry_out(it, pool, tmp_path, "whole"))
    kept = set(pool._loaded)
    assert "text_encoder" not in kept and loans == []
    for index in range(count):
        stop = Stop()
        for number, event in enumerate(runner.run(it, it.plan(), pool, Outputs(tmp_path, f"{index}"), stop)):
            if number == index:
                stop.request(StopLevel.NOW)
        assert isinstance(event, Ended)
        assert set(pool._loaded) <= kept and loans == [], f"stopped at event {index}"


@pytest.mark.parametrize("at", ["text", "vision", "encode", "sample", "decode"])
def test_a_run_that_is_abandoned_or_fails_gives_everything_back(
    at: str, checkpoint: Path, pictures: list[str], tmp_path: Path, loans: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever drops a run in the middle need not wait for the garbage collector; neither need one that ran into an error."""
    it, pool = request("single", pictures[0]), ModelPool(checkpoint, device="cpu")
    run = runner.run(it, it.plan(), pool, Outputs(tmp_path, "dropped"), Stop())
    for event in run:
        if isinstance(event, Stage) and event.name == at and (at not in ("text", "sample", "decode") or loans):
            break
        if isinstance(event, (Step, Share)) and at in ("sample", "decode"):
            if (at == "sample") == isinstance(event, Step):
                break
    run.close()
    assert loans == [] and "text_encoder" not in pool._loaded

    def fail(*_: Any) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr(runner, "encode_prompt", fail)
    with pytest.raises(RuntimeError):
        carry_out(it, pool, tmp_path, "failed")
    assert loans == [] and "text_encoder" not in pool._loaded


def test_every_look_at_the_stop_may_be_the_last(
    checkpoint: Path, pictures: list[str], tmp_path: Path, loans: list[str]
) -> None:
    """In loading, in encoders and in the decoder there are hundreds of places where a run ends at once, each in order."""
    it = request("reverse", pictures[0], **SHORT)
    pool, whole = ModelPool(checkpoint, device="cpu"), CountedStop(10**9)
    assert isinstance(carry_out(it, pool, tmp_path, "whole", whole)[-1], Finished)
    assert whole.seen > 500
    for looks in range(0, whole.seen, whole.seen // 12):
        fresh, stop = ModelPool(checkpoint, device="cpu"), CountedStop(looks)
        end = carry_out(it, fresh, tmp_path / f"{looks}", "j", stop)[-1]
        assert isinstance(end, Stopped), f"after {looks} looks"
        assert loans == [] and "text_encoder" not in fresh._loaded
        assert {Path(file).name for file in end.files} == names_in(tmp_path / f"{looks}")
        # A few more: the level that is told, and whether the result is whole.
        assert stop.seen <= looks + 5


def stages_interrupted(stage: str, events: Iterator[Event], stop: Stop, after: Callable[[], None]) -> list[Event]:
    """All events of a run; `after` is called once the stage has begun."""
    seen = []
    for event in events:
        seen.append(event)
        if isinstance(event, Stage) and event.name == stage:
            after()
    return seen


@pytest.mark.parametrize(
    ("stage", "kind"),
    [("text", "LlamaDecoderLayer"), ("vision", "SiglipEncoderLayer"), ("encode", "HunyuanVideoResnetBlockCausal3D")],
)
def test_an_encoder_is_broken_off_between_its_layers(
    stage: str, kind: str, checkpoint: Path, pictures: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a network that was told to stop no further layer computes; without a card each takes seconds."""
    stop, computed = Stop(), []
    call = nn.Module.__call__

    def watched(self: nn.Module, *inputs: Any, **settings: Any) -> Any:
        if type(self).__name__ == kind:
            computed.append(self)
            stop.request(StopLevel.NOW)
        return call(self, *inputs, **settings)

    monkeypatch.setattr(nn.Module, "__call__", watched)
    it = request("single", pictures[0])
    events = carry_out(it, ModelPool(checkpoint, device="cpu"), tmp_path, "j", stop)
    assert isinstance(events[-1], Stopped) and len(computed) == 1
    assert [event.name for event in events if isinstance(event, Stage)][-1] == stage


@pytest.mark.parametrize("vae_cache", [False, True])
def test_a_stop_while_a_section_is_decoded(vae_cache: bool, pool: ModelPool, pictures: list[str], tmp_path: Path) -> None:
    """It waited for the whole decoding, 18 of a film's 22 seconds without a card. The film of the sections before is kept."""
    stop, told = Stop(), []
    it = request("reverse", pictures[0], vae_cache=vae_cache, save_latents=True, **THREE)
    for event in runner.run(it, it.plan(), pool, Outputs(tmp_path, "j"), stop):
        told.append(event)
        if isinstance(event, Share) and any(isinstance(before, Saved) and before.kind == "so_far" for before in told):
            stop.request(StopLevel.NOW)
    assert isinstance(event, Stopped) and event.level == StopLevel.NOW
    late = itertools.dropwhile(lambda one: not (isinstance(one, Share) and stop.level), reversed(told))
    assert sum(1 for _ in late) > 0 and isinstance(told[-2], (Share, Saved))
    (film,) = [file for file in event.files if file.endswith(".mp4")]
    assert len(decoded(film)) == event.frames == 17
    assert {Path(file).name for file in event.files} == names_in(tmp_path) == {"j.png", "j_5.mp4", "j.safetensors"}


@pytest.mark.parametrize("mode", ["single", "reverse"])
def test_decoding_is_seen_to_go_on(mode: str, pool: ModelPool, pictures: list[str], tmp_path: Path) -> None:
    """The bar never falls, and never jumps by more than a third of what decoding has of it."""
    it, view = request(mode, pictures[0], **(SHORT if mode == "reverse" else {})), View()
    fractions = []
    for event in runner.run(it, it.plan(), pool, Outputs(tmp_path, "j"), Stop()):
        view = view.after(event)
        if view.stage == "decode":
            fractions.append(view.fraction)
    assert fractions == sorted(fractions) and len(set(fractions)) > 8
    assert max(after - before for before, after in itertools.pairwise(fractions)) < (fractions[-1] - fractions[0]) / 3


def test_loading_is_broken_off_between_tensors(checkpoint: Path) -> None:
    """26 GB of weights take a quarter of a minute; nothing half loaded is kept, and the next loan loads it whole."""
    for lend in (lambda pool: pool.text(), lambda pool: pool.vision(), lambda pool: pool.transformer("framepack")):
        pool, calls = ModelPool(checkpoint, device="cpu"), itertools.count()

        def tick(calls: Iterator[int] = calls) -> None:
            if next(calls) == 5:
                raise Interrupted

        with pool.broken_off_by(tick), pytest.raises(Interrupted), lend(pool):
            raise AssertionError("it was loaded")
        assert pool._loaded == {}
        with lend(pool) as net:
            assert net is not None


def test_layers_are_let_go(checkpoint: Path) -> None:
    """A network that was on loan is asked nothing more."""
    net, asked = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), []
    with between_layers(lambda: asked.append(1), net):
        net(torch.zeros(1, 2))
    assert len(asked) == 3
    net(torch.zeros(1, 2))
    assert len(asked) == 3
