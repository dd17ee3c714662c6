"""Test which models there are, which is used when none is named, and that two are never mixed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy
import pytest

from eichi_utils.files.paths import MINIATURE
from eichi_utils.jobs.events import Finished
from eichi_utils.jobs.queue import Stop
from eichi_utils.models.catalogue import Models
from eichi_utils.models.hub import HUB_SIZES, PLACES, ModelFiles
from eichi_utils.models.pool import ModelPool
from eichi_utils.problems import UserError
from eichi_utils.render import previews
from eichi_utils.render.engine import Engine
from eichi_utils.requests import modes
from eichi_utils.requests.request import SIZES
from tests.eichi_utils.helpers import SHORTEST, carry_out, changed, found, notices_of, request


@pytest.fixture
def nothing_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Simulate a computer without the real models, by an empty hub cache."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def put_there(checkpoint: Path, cache: Path, *names: str) -> None:
    """Put components with random weights into the hub cache's folders."""
    for name in names:
        place = PLACES[name]
        snapshot = cache / f"models--{place.repository.replace('/', '--')}" / "snapshots" / "0123abcd"
        own = "transformer" if name in ("framepack", "framepack_f1") else name
        shutil.copytree(checkpoint / own, snapshot / place.folder, dirs_exist_ok=True)


@pytest.fixture
def described(checkpoint: Path, tmp_path: Path) -> Path:
    """Return a copy of the random checkpoint with a description."""
    folder = Path(shutil.copytree(checkpoint, tmp_path / "described"))
    rows = [[1.0, 0.0, 0.0]] * 16
    document = {"name": "small", "sizes": [128, 160], "size": 160, "steps": 4, "preview": {"rows": rows, "bias": [0, 0, 1]}}
    (folder / "eichi.json").write_text(json.dumps(document))
    return folder


def test_the_default_follows_what_is_there(checkpoint: Path, nothing_there: Path, tmp_path: Path) -> None:
    """The miniature is the default only if the mode's own checkpoint is incomplete, and never if a folder was named."""
    models = Models()
    assert [models.default(kind.checkpoint) for kind in modes.MODES.values()] == ["miniature"] * 3
    assert Models(checkpoint).default("framepack") == Models(nothing_there).default("framepack") == "framepack"
    assert Models(miniature=tmp_path / "none").default("framepack") == "framepack"
    others = [name for name in PLACES if name != "framepack_f1"]
    put_there(checkpoint, nothing_there, *others[:-1])
    assert models.default("framepack") == "miniature"
    put_there(checkpoint, nothing_there, others[-1])
    assert models.default("framepack") == "framepack" and models.default("framepack_f1") == "miniature"
    (next(nothing_there.glob("*FramePackI2V*/snapshots/*/*.safetensors"))).unlink()
    assert models.default("framepack") == "miniature"


def test_what_is_to_be_downloaded(checkpoint: Path, nothing_there: Path) -> None:
    """Only missing models are counted as downloads: 42 GB at first, then F1's transformer alone beside the standard mode's
    models."""
    models = Models()
    assert 41 < models.gigabytes("framepack") < 44
    put_there(checkpoint, nothing_there, *(name for name in PLACES if name != "framepack_f1"))
    assert models.gigabytes("framepack") == 0
    assert 25 < models.gigabytes("framepack_f1") < 27
    assert Models(checkpoint).gigabytes("framepack") == 0


def test_the_miniature_is_offered_with_its_own_sizes_and_settings(
    nothing_there: Path, pictures: list[str], tmp_path: Path
) -> None:
    """Each model has its own sizes and settings: the miniature makes noise at 640 px, the real model at 128 px."""
    models = Models()
    assert models.names == ("framepack", "miniature")
    assert models.sizes("miniature") == (128, 160, 192)
    assert models.sizes("framepack") == HUB_SIZES and min(HUB_SIZES) == 384
    assert models.recommended("framepack", modes.MODES["reverse"]) == {"model": "framepack"}
    recommended = models.recommended("miniature", modes.MODES["single"])
    assert recommended["model"] == "miniature" and recommended["size"] == 128 and "seconds" not in recommended
    assert {example.prompt for example in models.examples("miniature")} and models.examples("framepack") == ()
    for size in SIZES:
        problems = models.problems(request("reverse", pictures[0], model="miniature", size=size))
        assert found(problems) == (set() if size <= 192 else {("size", "size_not_of_model")})
        problems = models.problems(request("reverse", pictures[0], size=size))
        assert found(problems) == (set() if size >= 384 else {("size", "size_not_of_model")})
        # Nobody knows what a folder of one's own was made for, unless it says so.
        assert Models(tmp_path).problems(request("reverse", pictures[0], size=size)) == ()
    missing = Models(tmp_path / "none").problems(request("reverse", pictures[0]))
    assert found(missing) == {("models", "models_missing")}
    # A size that no model has is the request's own problem, and said once.
    assert models.problems(request("reverse", pictures[0], model="miniature", size=641)) == ()


def test_a_miniature_that_is_not_there(tmp_path: Path, pictures: list[str]) -> None:
    """If the miniature's files are missing, nothing from the hub is used in its place."""
    models = Models(miniature=tmp_path / "none")
    assert models.names == ("framepack",)
    wanted = request("single", pictures[0], model="miniature")
    assert found(models.problems(wanted)) == {("model", "miniature_missing")}
    events = Engine(models, tmp_path / "out", "cpu")(wanted, "job", Stop())
    next(events)
    with pytest.raises(UserError) as error:
        next(events)
    assert found(error.value.problems) == {("model", "miniature_missing")}
    assert not (tmp_path / "out").exists()


def test_a_damaged_description_stops_work_not_the_page(described: Path, pictures: list[str], tmp_path: Path) -> None:
    (described / "eichi.json").write_text("{")
    models = Models(described)
    assert models.sizes("framepack") == HUB_SIZES and models.examples("framepack") == ()
    assert models.recommended("framepack", modes.MODES["single"]) == {"model": "framepack"}
    assert found(models.problems(request("single", pictures[0]))) == {("models", "description_damaged")}
    with pytest.raises(UserError) as error:
        carry_out(request("single", pictures[0]), ModelPool(described, device="cpu"), tmp_path / "out")
    assert found(error.value.problems) == {("models", "description_damaged")}


def test_a_described_folder_of_ones_own(described: Path, pictures: list[str], tmp_path: Path) -> None:
    """`--models FOLDER` says for itself what it can do, and no other size begins."""
    models = Models(described)
    assert models.sizes("framepack") == (128, 160)
    assert models.recommended("framepack", modes.MODES["reverse"]) == {"model": "framepack", "size": 160, "steps": 4}
    with pytest.raises(UserError) as error:
        carry_out(request("single", pictures[0], size=384), ModelPool(described, device="cpu"), tmp_path / "out")
    assert found(error.value.problems) == {("size", "size_not_of_model")}
    assert not (tmp_path / "out").exists()


def test_previews_are_made_with_the_models_own_matrix(
    described: Path, pictures: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cheap_decode: None
) -> None:
    """HunyuanVideo's table on other latents shows wrong colours. This one has all channels in red, none in green, full blue."""
    shown = []
    monkeypatch.setattr(previews, "animated_webp", lambda frames: shown.append(frames) or b"")
    carry_out(request("single", pictures[0]), ModelPool(described, device="cpu"), tmp_path)
    assert shown
    for frames in shown:
        assert (frames[..., 1] == 0).all() and (frames[..., 2] == 255).all()
        assert len(numpy.unique(frames[..., 0])) > 1


def test_two_models_in_turn_never_mix(checkpoint: Path, pictures: list[str], tmp_path: Path, cheap_decode: None) -> None:
    """Two models that take turns in one engine make the films that each makes alone, and only one model's bytes are held."""
    engine = Engine(Models(checkpoint), tmp_path, "cpu")
    small = request("single", pictures[0], prompt="The camera zooms in.", model="miniature")
    jobs = [small, changed(small, model="framepack"), small]
    made, kept = [], []
    for number, it in enumerate(jobs):
        *_, last = engine(it, f"job{number}", Stop())
        assert isinstance(last, Finished)
        folders = {loaded.spec.folder.parent for loaded in engine.pool.networks.loaded.values()}
        assert folders == {MINIATURE if it.model == "miniature" else checkpoint}
        made.append([event.preview for event in engine(it, f"again{number}", Stop()) if hasattr(event, "preview")])
        kept.append(sum(loaded.bytes for loaded in engine.pool.networks.loaded.values()))
    assert made[0] == made[2] != made[1]
    assert kept[0] == kept[2] != kept[1]


def test_the_same_model_stays_loaded(checkpoint: Path) -> None:
    pool = ModelPool(checkpoint, device="cpu")
    with pool.vae() as before:
        pass
    pool.use(ModelFiles(checkpoint))
    with pool.vae() as after:
        assert after is before
    pool.use(ModelFiles(MINIATURE))
    assert pool.networks.loaded == {}


@pytest.mark.parametrize("checkpoints", [["framepack"], ["framepack", "framepack_f1"], []])
def test_one_transformer_for_both_is_no_fault_where_it_was_trained_so(
    checkpoints: list[str], described: Path, pictures: list[str], tmp_path: Path, cheap_decode: None
) -> None:
    """The notice stays for a folder that lacks F1's weights, and for one that says nothing of them."""
    document = json.loads((described / "eichi.json").read_text())
    (described / "eichi.json").write_text(json.dumps({**document, "checkpoints": checkpoints}))
    pool = ModelPool(described, device="cpu")
    events = carry_out(request("forward", pictures[0], **SHORTEST["forward"]), pool, tmp_path / "out")
    keys = [notice.key for notice in notices_of(events)]
    assert keys == ([] if "framepack_f1" in checkpoints else ["transformer_shared"])
    assert not ModelFiles(MINIATURE).shares_transformer("framepack_f1")
