"""Test stopping at once during loading, encoding and decoding, and what a stopped run leaves in the pool."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from diffusers_helper.interrupt import Interrupted, between_layers
from eichi_utils.files.paths import Outputs
from eichi_utils.jobs.events import DecodeProgress, Ended, Finished, Saved, Stage, StopLevel, Stopped
from eichi_utils.jobs.queue import Stop
from eichi_utils.jobs.view import View
from eichi_utils.models.loaded_networks import LoadedNetworks
from eichi_utils.models.pool import ModelPool
from eichi_utils.render import driver, encoding
from tests.eichi_utils.helpers import SHORT, THREE, carry_out, decoded, names_in, request

pytestmark = pytest.mark.model


@pytest.fixture
def loans(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list of what is on loan at the moment, of any pool."""
    lent: list[str] = []
    loan = LoadedNetworks.loan

    @contextmanager
    def noted(self: LoadedNetworks, spec: Any, *rest: Any, **settings: Any) -> Iterator[Any]:
        with loan(self, spec, *rest, **settings) as value:
            lent.append(spec.component)
            try:
                yield value
            finally:
                lent.remove(spec.component)

    monkeypatch.setattr(LoadedNetworks, "loan", noted)
    return lent


class CountedStop(Stop):
    """Ask to stop when the stop was looked at `looks` times."""

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
    kept = set(pool.networks.loaded)
    assert "text_encoder" not in kept and loans == []
    for index in range(count):
        stop = Stop()
        events = []
        for event in driver.run(it, it.plan(), pool, Outputs(tmp_path, f"{index}"), stop):
            if len(events) == index:
                stop.request(StopLevel.NOW)
            events.append(event)
        assert isinstance(events[-1], Ended)
        assert set(pool.networks.loaded) <= kept and loans == [], f"stopped at event {index}"


@pytest.mark.parametrize("at", ["text", "vision", "encode", "sample", "decode"])
def test_a_run_that_is_dropped_gives_everything_back(
    at: str, checkpoint: Path, pictures: list[str], tmp_path: Path, loans: list[str]
) -> None:
    """A dropped run frees its memory without the garbage collector: an exception in a page or watcher may hold the run for
    long."""
    it, pool = request("single", pictures[0]), ModelPool(checkpoint, device="cpu")
    run = driver.run(it, it.plan(), pool, Outputs(tmp_path, "dropped"), Stop())
    stage = ""
    for event in run:
        stage = event.name if isinstance(event, Stage) else stage
        # The last of these is while the network is on loan, where the stage says anything then.
        if stage == at and (loans or at in ("vision", "encode")):
            break
    run.close()
    assert loans == [] and "text_encoder" not in pool.networks.loaded


def test_an_encoder_that_fails_does_not_stay(
    checkpoint: Path, pictures: list[str], tmp_path: Path, loans: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If memory ran out while a prompt was encoded, the encoder's 15 GB stayed taken in the next run."""
    pool = ModelPool(checkpoint, device="cpu")

    def fail(*_: Any) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr(encoding, "encode_prompt", fail)
    with pytest.raises(RuntimeError):
        carry_out(request("single", pictures[0]), pool, tmp_path)
    assert loans == [] and pool.networks.loaded == {}


def test_every_look_at_the_stop_may_be_the_last(
    checkpoint: Path, pictures: list[str], tmp_path: Path, loans: list[str]
) -> None:
    """A run ends in order at each of the hundreds of places where it looks for a stop: in loading, encoders and decoder."""
    it = request("reverse", pictures[0], **SHORT)
    pool, whole = ModelPool(checkpoint, device="cpu"), CountedStop(10**9)
    assert isinstance(carry_out(it, pool, tmp_path, "whole", whole)[-1], Finished)
    assert whole.seen > 500
    for looks in range(0, whole.seen, whole.seen // 5):
        fresh, stop = ModelPool(checkpoint, device="cpu"), CountedStop(looks)
        end = carry_out(it, fresh, tmp_path / f"{looks}", "j", stop)[-1]
        assert isinstance(end, Stopped), f"after {looks} looks"
        assert loans == [] and "text_encoder" not in fresh.networks.loaded
        assert {Path(file).name for file in end.files} == names_in(tmp_path / f"{looks}")
        # A few more: the level that is told, and whether the result is whole.
        assert stop.seen <= looks + 5


@pytest.mark.parametrize(
    ("stage", "kind"),
    [("text", "LlamaDecoderLayer"), ("vision", "SiglipEncoderLayer"), ("encode", "HunyuanVideoResnetBlockCausal3D")],
)
def test_an_encoder_is_broken_off_between_its_layers(
    stage: str, kind: str, checkpoint: Path, pictures: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stop ends an encoder after its current layer; without a card each layer takes seconds."""
    stop, computed = Stop(), []
    call = nn.Module.__call__

    def with_previews(self: nn.Module, *inputs: Any, **settings: Any) -> Any:
        if type(self).__name__ == kind:
            computed.append(self)
            stop.request(StopLevel.NOW)
        return call(self, *inputs, **settings)

    monkeypatch.setattr(nn.Module, "__call__", with_previews)
    it = request("single", pictures[0])
    events = carry_out(it, ModelPool(checkpoint, device="cpu"), tmp_path, "j", stop)
    assert isinstance(events[-1], Stopped) and len(computed) == 1
    assert [event.name for event in events if isinstance(event, Stage)][-1] == stage


@pytest.mark.parametrize(("mode", "settings", "latents"), [("reverse", {}, 5), ("forward", {"vae_cache": True}, 6)])
def test_a_stop_while_a_section_is_decoded(
    mode: str, settings: dict, latents: int, pool: ModelPool, pictures: list[str], tmp_path: Path
) -> None:
    """A stop waited for the whole decoding, 18 of a film's 22 seconds without a card. The film of the sections before is
    kept."""
    stop, told = Stop(), []
    it = request(mode, pictures[0], save_latents=True, **settings, **THREE)
    for event in driver.run(it, it.plan(), pool, Outputs(tmp_path, "j"), stop):
        told.append(event)
        if isinstance(event, DecodeProgress) and any(isinstance(before, Saved) and before.kind == "so_far" for before in told):
            stop.request(StopLevel.NOW)
    assert isinstance(event, Stopped) and event.level == StopLevel.NOW
    # After the share at which it was stopped come only the latents that were asked for, and the end.
    assert [type(one) for one in told[-3:]] == [DecodeProgress, Saved, Stopped]
    (film,) = [file for file in event.files if file.endswith(".mp4")]
    assert len(decoded(film)) == event.frames == 4 * latents - 3
    assert {Path(file).name for file in event.files} == names_in(tmp_path) == {"j.png", f"j_{latents}.mp4", "j.safetensors"}


@pytest.mark.parametrize("mode", ["single", "reverse"])
def test_decoding_is_seen_to_go_on(mode: str, pool: ModelPool, pictures: list[str], tmp_path: Path) -> None:
    """The bar never falls, and never jumps by more than a third of what decoding has of it."""
    it, view = request(mode, pictures[0], **(SHORT if mode == "reverse" else {})), View()
    fractions = []
    for event in driver.run(it, it.plan(), pool, Outputs(tmp_path, "j"), Stop()):
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

        with pool.interruptible(tick), pytest.raises(Interrupted), lend(pool):
            raise AssertionError("it was loaded")
        assert pool.networks.loaded == {}
        with lend(pool) as net:
            assert net is not None


def test_layers_are_let_go(checkpoint: Path) -> None:
    """After its loan a network is no longer asked to stop between its layers."""
    net, asked = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), []
    with between_layers(lambda: asked.append(1), net):
        net(torch.zeros(1, 2))
    assert len(asked) == 3
    net(torch.zeros(1, 2))
    assert len(asked) == 3
