"""Test models in huggingface_hub's cache: found, downloaded when missing, and failed downloads."""

from __future__ import annotations

import shutil
from pathlib import Path

import httpx2
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from eichi_utils.files.paths import Outputs
from eichi_utils.jobs.events import Finished, StopLevel, Stopped
from eichi_utils.jobs.queue import Stop
from eichi_utils.models import hub as places
from eichi_utils.models.hub import HUNYUAN, PLACES, SHARED
from eichi_utils.models.pool import ModelPool
from eichi_utils.problems import UserError
from eichi_utils.render.driver import run
from tests.eichi_utils.helpers import SHORTEST, carry_out, found, have_memory, notices_of, request


@pytest.fixture
def hub(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put the checkpoint into the folders of huggingface_hub's cache; any download fails the test."""

    def forbidden(*args, **settings):
        pytest.fail(f"asks the hub for {args} {settings}")

    monkeypatch.setattr(places, "snapshot_download", forbidden)
    # What is missing is judged as the published model, which this computer need not hold.
    have_memory(monkeypatch, 2**40)
    cache = tmp_path / "hub"
    for name, place in PLACES.items():
        snapshot = cache / f"models--{place.repository.replace('/', '--')}" / "snapshots" / "0123abcd"
        own = "transformer" if name in ("framepack", "framepack_f1") else name
        shutil.copytree(checkpoint / own, snapshot / place.folder, dirs_exist_ok=True)
    return cache


def snapshot_of(cache: Path, name: str) -> Path:
    place = PLACES[name]
    return cache / f"models--{place.repository.replace('/', '--')}" / "snapshots" / "0123abcd" / place.folder


def test_a_complete_cache_is_used_as_it_is(hub: Path, pictures: list[str], tmp_path: Path) -> None:
    """A complete cache is used without asking the hub, so that the program works without a network."""
    pool = ModelPool(hub, device="cpu")
    assert not pool.files.own_folder
    for name in ("framepack", "framepack_f1"):
        assert pool.missing(name) == []
        pool.check(name)
    assert pool.folder("vae") == snapshot_of(hub, "vae")
    events = carry_out(request("single", pictures[0]), pool, tmp_path / "out")
    assert isinstance(events[-1], Finished)
    assert notices_of(events) == []


@pytest.mark.parametrize("variable", ["HF_HUB_CACHE", "HF_HOME"])
def test_the_usual_variables_name_the_cache(variable: str, hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's usual environment variables name the cache, so that models that are there are not downloaded again."""
    for name in ("HF_HUB_CACHE", "HF_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, str(hub if variable == "HF_HUB_CACHE" else hub.parent))
    assert ModelPool(device="cpu").missing("framepack") == []


@pytest.mark.parametrize("name", ["framepack_f1", *SHARED])
def test_a_component_that_is_missing_is_downloaded_alone(
    name: str, hub: Path, pictures: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A missing component alone is downloaded, from its repository, with its pattern, into the same cache; the user is told."""
    shutil.rmtree(snapshot_of(hub, name))
    pool = ModelPool(hub, device="cpu")
    wanted = "framepack_f1" if name == "framepack_f1" else "framepack"
    assert pool.missing(wanted) == [PLACES[name]]
    asked = []
    monkeypatch.setattr(places, "snapshot_download", lambda *a, tqdm_class, **k: asked.append((a, k)))
    assert pool.files.download(PLACES[name])
    pattern = f"{PLACES[name].folder}/*" if PLACES[name].folder else "*"
    assert asked == [((PLACES[name].repository,), {"allow_patterns": [pattern], "cache_dir": hub})]


def test_a_download_stops_when_told(hub: Path, pictures: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop NOW used to be looked at only after all downloads, which are up to 42 GB; now at every piece that arrives."""
    for name in ("vae", "image_encoder"):
        shutil.rmtree(snapshot_of(hub, name))
    stop, asked = Stop(), []

    def fetch(repository: str, tqdm_class: type, **where: object) -> None:
        asked.append(repository)
        with tqdm_class(total=100, disable=True) as progress:
            for piece in range(100):
                if piece == 3:
                    stop.request(StopLevel.NOW)
                progress.update(1)
                assert piece < 3, "the download went on"

    monkeypatch.setattr(places, "snapshot_download", fetch)
    outputs = Outputs(tmp_path / "out", "job")
    wanted = request("single", pictures[0])
    events = list(run(wanted, wanted.plan(), ModelPool(hub, device="cpu"), outputs, stop))
    assert isinstance(events[-1], Stopped)
    assert asked == [HUNYUAN]


def test_one_transformer_for_both_modes_is_said(pool: ModelPool, pictures: list[str], tmp_path: Path) -> None:
    """A folder without transformer_f1 used to run F1 with the standard weights without a word."""
    keys = {
        mode: [notice.key for notice in notices_of(carry_out(request(mode, pictures[0], **SHORTEST[mode]), pool, tmp_path))]
        for mode in ("forward", "single")
    }
    assert keys == {"forward": ["transformer_shared"], "single": []}


def test_a_folder_with_a_few_components_is_no_hub_cache(checkpoint: Path, tmp_path: Path) -> None:
    """A folder with a few components was taken for a hub cache, and the program began to download a transformer into it."""
    for name in ("image_encoder", "tokenizer"):
        shutil.copytree(checkpoint / name, tmp_path / name)
    pool = ModelPool(tmp_path, device="cpu")
    assert pool.files.own_folder and pool.missing("framepack") == []
    with pytest.raises(UserError):
        pool.check("framepack")


def test_a_run_downloads_what_is_missing(
    hub: Path, checkpoint: Path, pictures: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interrupted download (a folder with half of its files) is completed, with a notice, before the check."""
    folder = snapshot_of(hub, "vae")
    (folder / "diffusion_pytorch_model.safetensors").unlink()

    def fetch(repository: str, allow_patterns: list[str], cache_dir: Path, tqdm_class: type) -> None:
        assert (repository, allow_patterns, cache_dir) == (HUNYUAN, ["vae/*"], hub)
        shutil.copytree(checkpoint / "vae", folder, dirs_exist_ok=True)

    monkeypatch.setattr(places, "snapshot_download", fetch)
    events = carry_out(request("single", pictures[0]), ModelPool(hub, device="cpu"), tmp_path / "out")
    assert isinstance(events[-1], Finished)
    said = [(notice.key, dict(notice.values)) for notice in notices_of(events)]
    assert said == [("downloading", {"repository": HUNYUAN, "folder": "vae"})]


def test_what_cannot_run_here_is_not_downloaded(
    hub: Path, pictures: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever had too little memory was told so after 42 GB. The fixture's download fails the test."""
    (snapshot_of(hub, "vae") / "diffusion_pytorch_model.safetensors").unlink()
    have_memory(monkeypatch, 2**30)
    with pytest.raises(UserError) as error:
        carry_out(request("single", pictures[0]), ModelPool(hub, device="cpu"), tmp_path / "out")
    assert found(error.value.problems) == {("", "too_little_memory")}


def test_a_damaged_file_in_the_cache_is_reported_not_downloaded_over(hub: Path) -> None:
    """The user is told which file to delete; 26 GB are not fetched again without a word."""
    file = snapshot_of(hub, "framepack") / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    pool = ModelPool(hub, device="cpu")
    assert pool.missing("framepack") == []
    with pytest.raises(UserError) as error:
        pool.check("framepack")
    assert found(error.value.problems) == {("models", "checkpoint_file_damaged")}


def test_an_empty_cache_misses_everything(tmp_path: Path) -> None:
    """An empty cache, as at the first start, misses every component."""
    pool = ModelPool(tmp_path, device="cpu")
    assert pool.missing("framepack_f1") == [PLACES["framepack_f1"], *(PLACES[name] for name in SHARED)]


@pytest.mark.parametrize(
    "error",
    [
        LocalEntryNotFoundError("offline\nand more lines"),
        OSError(28, "No space left on device"),
        ConnectionError("no route"),
        ValueError("bad answer"),
        OSError(),
        httpx2.ReadTimeout("slow"),
        httpx2.RemoteProtocolError("peer closed connection"),
        httpx2.ProxyError("407"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_download_that_fails(error: Exception, hub: Path, pictures: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the hub's client raises (after its own retries, httpx2's errors as they are), the user reads why."""

    def fail(*args, **settings):
        raise error

    monkeypatch.setattr(places, "snapshot_download", fail)
    with pytest.raises(UserError) as caught:
        ModelPool(hub, device="cpu").files.download(PLACES["vae"])
    assert found(caught.value.problems) == {("models", "download_failed")}
    values = caught.value.problems[0].values
    assert values["reason"]
    assert "\n" not in values["reason"]
    assert (values["repository"], values["folder"]) == (HUNYUAN, str(hub))
