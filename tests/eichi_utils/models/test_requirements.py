"""Test that too little memory is named in figures before anything is loaded, and that enough is not refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import psutil
import pytest
import torch

from diffusers_helper.memory.streaming import Streamer
from diffusers_helper.memory.weight_groups import WeightGroups
from diffusers_helper.vae.vae_decode import Decoder
from eichi_utils.exchange.metadata import read_document
from eichi_utils.files.pictures import fitted_size
from eichi_utils.jobs.events import Notice, Stage
from eichi_utils.models import disk_space, requirements
from eichi_utils.models.catalogue import Models
from eichi_utils.models.disk_space import download_bytes, download_problems, gib
from eichi_utils.models.gpus import Card
from eichi_utils.models.host_memory import HostMemory, own_memory
from eichi_utils.models.hub import ModelFiles
from eichi_utils.models.lora_fit import shapes_in
from eichi_utils.models.pool import ModelPool
from eichi_utils.models.requirements import Machine, Needs, choose, needs, transformer_needs
from eichi_utils.models.sizes import PUBLISHED, TransformerSize, model_size, with_film
from eichi_utils.problems import UserError
from eichi_utils.render import engine
from eichi_utils.render.engine import Engine
from eichi_utils.requests.loras import Lora
from locales import LANGUAGES, Translator
from tests.eichi_utils.helpers import carry_out, changed, found, have_memory, request, say_everything
from tests.fake_device import FakeDevice
from tests.lora_files import write_lora

GIB = 2**30
# Tokens of a section of 640 x 608.
TOKENS = 18_300


def test_what_a_film_remembers_is_asked_for(pictures: list[str], tmp_path: Path) -> None:
    """The causal VAE cache was not counted: a film with vae_cache took 6 GiB more than was said at 640x608, beside a full
    card."""
    engine, it = Engine(Models(tmp_path), tmp_path, "cpu"), changed(request("forward", pictures[0], size=640), seconds=1)
    height, width = fitted_size(pictures[0], 640)
    sampling = needs(PUBLISHED, "auto", 1, on_card=False).host
    remembered = with_film(PUBLISHED, height * width // 64).film * 4
    assert remembered > 6 * GIB
    figures = {on: engine.forecast(changed(it, vae_cache=on))[0]["memory"] for on in (False, True)}
    assert figures == {False: gib(sampling), True: gib(sampling + remembered)}


@pytest.mark.parametrize("card", [True, False])
def test_what_the_process_took_is_its_networks(card: bool, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next film has as much memory as the first. Pages of files counted as held, although they are available, and so did
    3 GiB for a card's first use: the second film got 16 bits where the first had room for 8 only."""
    held = [5 * GIB]
    monkeypatch.setattr(requirements, "host_memory", lambda: HostMemory(32 * GIB, 20 * GIB - held[0]))
    monkeypatch.setattr(requirements, "own_memory", lambda: held[0])
    pool = ModelPool(checkpoint, device="cpu", card=FakeDevice() if card else None, reserve_gb=0)
    for taken in (5, 6, 14, 5):
        held[0] = taken * GIB
        assert pool.machine().host == 15 * GIB
    held[0] = GIB
    assert pool.machine().host == 19 * GIB


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="only Linux tells which of a process's pages are files'")
def test_pages_of_files_are_not_this_process_memory(checkpoint: Path) -> None:
    before = own_memory()
    # More than was freed before and is used again.
    block = torch.ones(2**29, dtype=torch.uint8)
    assert 2**28 < own_memory() - before < 2**29 + 2**26
    del block
    info = psutil.Process().memory_info()
    assert own_memory() == pytest.approx(info.rss - info.shared, rel=0.05) and info.shared > 2**26


def test_tiles_remember_what_they_share(pictures: list[str]) -> None:
    """Tiles of 128 pixels overlap by half, so a cell is cached in up to four of them: 297 MB were taken where 122 were
    counted."""
    assert Decoder.overlap == requirements.TILE_OVERLAP
    plan = changed(request("forward", pictures[0], size=640), vae_cache=True).plan()
    cells = [requirements.film_cells(plan, 24, 24, tile) for tile in (None, 1024, 192, 128)]
    assert cells == [576, 576, 576, 4 * 576]
    assert requirements.film_cells(plan, 80, 76, 256) == int(80 * 76 * (32 / 24) ** 2)


def test_the_reserve_is_not_the_networks(checkpoint: Path) -> None:
    """The reserve is not given to networks: a preflight that forgot it let films begin that ended for want of memory."""
    card = FakeDevice(capacity=10 * GIB)
    free = [ModelPool(checkpoint, device="cpu", card=card, reserve_gb=gib).machine().card for gib in (0, 3)]
    assert free == [10 * GIB, 7 * GIB]


def test_what_the_published_model_needs() -> None:
    """The published model needs 18.1 GB for sampling in 16 bits, 9.1 in 8, about a gigabyte of the card, and 51 GB in 32
    bits on a CPU."""
    size = PUBLISHED.transformer
    wide, narrow = (transformer_needs(size, name, 0, on_card=True) for name in ("bfloat16", "int8"))
    assert round(wide.host / 1e9, 1) == 18.1 and round(narrow.host / 1e9, 1) == 9.1
    assert 0.6 * GIB < narrow.card <= wide.card < 1.4 * GIB
    assert transformer_needs(size, "auto", TOKENS, on_card=False).card == 0
    assert round(transformer_needs(size, "auto", 0, on_card=False).host / 1e9) == 51
    assert transformer_needs(size, "bfloat16", 0, on_card=False).host == 2 * size.whole


def test_the_largest_stage_counts() -> None:
    """The largest stage counts, not the sum, except for the two networks that every section needs. Beside a card the
    prompt's encoder stays in its files: its 15.3 GB were counted, and 8 bits were refused where they had room. A whole film
    in 8 bits was measured to take 11.2 GiB after the check."""
    narrow, wide = (needs(PUBLISHED, name, TOKENS, on_card=True).host for name in ("int8", "bfloat16"))
    beside = requirements.WORKING_BYTES + 2 * PUBLISHED.vae.whole
    assert round((narrow - beside) / 1e9, 1) == 9.1 and 11.2 * GIB < narrow < 11.7 * GIB
    assert round((wide - beside) / 1e9, 1) == 18.1
    copied = dataclasses.replace(PUBLISHED, text=dataclasses.replace(PUBLISHED.text, mapped=0))
    assert round((needs(copied, "int8", TOKENS, on_card=True).host - requirements.WORKING_BYTES) / 1e9, 1) == 15.3
    small = TransformerSize(10, 4, 2, 4, 2, 4, 0, 1)
    stages = requirements.stages(dataclasses.replace(PUBLISHED, transformer=small), "auto", 1, on_card=True)
    assert max(stages, key=lambda name: stages[name].card) == "text_encoder"
    assert stages["vae"].card > 2 * PUBLISHED.vae.whole and stages["image_encoder"].host == 2 * PUBLISHED.vision.whole


@pytest.mark.parametrize(
    ("host", "card", "precision", "chosen"),
    [(20, 6, "auto", "bfloat16"), (16, 6, "auto", "float8"), (16, 6, "int8", "int8"), (20, 6, "int8", "int8")],
)
def test_sixteen_bits_where_they_fit_else_eight(host: int, card: int, precision: str, chosen: str) -> None:
    """The precision "auto" is 16 bits where they fit and 8 otherwise; a precision that was chosen by name is never changed."""
    way = choose(PUBLISHED, precision, TOKENS, Machine(host * GIB, card * GIB, narrow="float8"))
    assert way.precision == chosen and way.chosen is (precision == "auto")
    assert (way.instead is not None) == (precision == "auto" and chosen == "float8")
    assert way.needs.host <= host * GIB and way.needs.card <= card * GIB


@pytest.mark.parametrize(
    ("host", "card", "precision", "keys"),
    [
        (16, 6, "bfloat16", ["too_little_memory"]),
        (11, 6, "auto", ["too_little_memory_narrow"]),
        (20, 3, "auto", ["too_little_card_memory"]),
        (11, 3, "int8", ["too_little_memory_narrow", "too_little_card_memory"]),
        (32, None, "auto", ["too_little_memory"]),
    ],
)
def test_what_fits_no_way_is_refused_with_figures(host: int, card: int | None, precision: str, keys: list[str]) -> None:
    with pytest.raises(UserError) as error:
        choose(PUBLISHED, precision, TOKENS, Machine(host * GIB, None if card is None else card * GIB))
    problems = say_everything(error.value.problems)
    assert [problem.key for problem in problems] == keys
    if precision == "bfloat16":
        assert problems[0].values == {"needed": "19.8", "free": "16.0"}


def test_without_a_card_auto_stays_what_it_is() -> None:
    way = choose(PUBLISHED, "auto", TOKENS, Machine(64 * GIB))
    assert (way.precision, way.chosen, way.needs.card) == ("auto", False, 0)


def test_the_figures_are_those_of_streaming(checkpoint: Path) -> None:
    """The estimate is made of the slots and parts that a card really holds."""
    with ModelPool(checkpoint, device="cpu").transformer("framepack") as net:
        groups = net.weight_groups()
        streamer = Streamer(FakeDevice(), WeightGroups(groups.always, groups.job, groups.step))
    size = model_size(ModelFiles(checkpoint), "framepack").transformer
    estimate = transformer_needs(size, "auto", 0, on_card=True).card
    # The checkpoint is loaded in 32 bits here, the estimate is for the 16 of a card.
    assert 2 * estimate <= streamer.least_bytes + streamer.job_bytes


def test_memory_that_is_enough_without_a_lora(
    checkpoint: Path, pictures: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory that is enough only without the LoRA is told before loading, by a run and by a dry run alike."""
    path = tmp_path / "a.safetensors"
    write_lora(path, "peft", shapes_in(ModelFiles(checkpoint), "framepack"), rank=64)
    it = request("single", pictures[0], size=640)
    with_it = changed(it, loras=(Lora(str(path)),))
    files = ModelFiles(checkpoint)
    enough = needs(model_size(files, "framepack"), "auto", 10_000, on_card=False).host
    have_memory(monkeypatch, enough)
    wanted = Engine(Models(checkpoint), tmp_path, "cpu")
    assert wanted.forecast(it)[1] == ()
    assert found(wanted.forecast(with_it)[1]) == {("", "too_little_memory")}
    pool = ModelPool(checkpoint, device="cpu")
    with pytest.raises(UserError) as error:
        carry_out(with_it, pool, tmp_path / "out")
    assert found(error.value.problems) == {("", "too_little_memory")} and pool.networks.loaded == {}


@pytest.mark.parametrize("room", ["enough", "tight"])
def test_the_choice_is_said_and_goes_into_the_film(
    room: str, checkpoint: Path, pictures: list[str], tmp_path: Path, cheap_decode: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The chosen precision is told and stored in the film, so that its request makes the same film on any machine."""
    pool = ModelPool(checkpoint, device="cpu", card=FakeDevice(), reserve_gb=0)
    pool.placement = dataclasses.replace(pool.placement, transformer=torch.bfloat16)
    if room == "tight":
        narrow = requirements.choose

        def choose_tight(size, precision, tokens, machine):
            wide = needs(size, "bfloat16", tokens, on_card=True).card
            return narrow(size, precision, tokens, dataclasses.replace(machine, card=wide - 1))

        # The encoders are this small model's largest parts, so they are left out: only the transformer's precision matters.
        nothing = Needs(0, 0)
        others = dict.fromkeys(("text_encoder", "image_encoder", "vae"), nothing)
        monkeypatch.setattr(
            requirements,
            "stages",
            lambda size, p, n, on_card: {
                "transformer": transformer_needs(size.transformer, p, n, on_card=on_card),
                **others,
            },
        )
        monkeypatch.setattr(requirements, "choose", choose_tight)
    events = carry_out(request("single", pictures[0]), pool, tmp_path)
    chosen = "bfloat16" if room == "enough" else "int8"
    (notice,) = [event for event in events if isinstance(event, Notice)]
    assert notice.key == ("precision_wide" if room == "enough" else "precision_narrow")
    assert notice.values["precision"] == chosen and float(notice.values["disk_free"]) > 0
    assert {read_document(file)["precision"] for file in events[-1].files} == {chosen}
    with pool.transformer("framepack", chosen) as net:
        assert net.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("card", "precision", "key"),
    [
        (True, "auto", "precision_wide"),
        (True, "int8", "precision_asked"),
        (False, "auto", "processor"),
        (False, "int8", "processor"),
    ],
)
def test_what_is_needed_is_said_before_anything_is_loaded(
    card: bool, precision: str, key: str, checkpoint: Path, pictures: list[str], tmp_path: Path, cheap_decode: None
) -> None:
    """Too little memory was told for "auto" on a card alone; with a chosen precision the system ended the program later."""
    pool = ModelPool(checkpoint, device="cpu", card=FakeDevice() if card else None, reserve_gb=0)
    if card:
        pool.placement = dataclasses.replace(pool.placement, transformer=torch.bfloat16)
    events = carry_out(changed(request("single", pictures[0]), precision=precision), pool, tmp_path)
    (notice,) = [event for event in events if isinstance(event, Notice)]
    (first,) = [number for number, event in enumerate(events) if isinstance(event, Stage) and event.name == "vision"]
    assert notice.key == key and events.index(notice) < first
    for language in LANGUAGES:
        said = Translator(language)(f"notice.{key}", **notice.values)
        assert notice.values["memory"] in said and notice.values["disk_free"] in said and "{" not in said


def test_a_card_too_small_ends_a_run_before_it_works(checkpoint: Path, pictures: list[str], tmp_path: Path) -> None:
    card = FakeDevice(capacity=1000)
    pool = ModelPool(checkpoint, device="cpu", card=card, reserve_gb=0)
    with pytest.raises(UserError) as error:
        carry_out(request("single", pictures[0]), pool, tmp_path / "out")
    assert found(error.value.problems) == {("", "too_little_card_memory")}
    assert pool.networks.loaded == {} and card.allocations == 0


def test_what_is_loaded_already_is_not_needed_a_second_time(
    checkpoint: Path, pictures: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, it = ModelPool(checkpoint, device="cpu"), request("single", pictures[0])
    held = pool.networks.memory._began
    enough = needs(model_size(pool.files, "framepack"), "auto", 10_000, on_card=False).host
    monkeypatch.setattr(requirements, "own_memory", lambda: held)
    monkeypatch.setattr(requirements, "host_memory", lambda: HostMemory(enough, 1000))
    with pytest.raises(UserError) as error:
        pool.requirements(it, it.plan())
    assert found(error.value.problems) == {("", "too_little_memory")}
    held += enough
    pool.requirements(it, it.plan())


def test_downloads_need_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Downloads need room on the disk, less what an interrupted download has already left there."""
    files = ModelFiles(tmp_path / "hub")
    monkeypatch.setattr(disk_space, "disk_free", lambda folder: 41 * 10**9)
    missing = files.missing("framepack")
    assert found(download_problems(files, missing)) == {("models", "too_little_disk")}
    blobs = tmp_path / "hub" / "models--lllyasviel--FramePackI2V_HY" / "blobs"
    blobs.mkdir(parents=True)
    with (blobs / "part.incomplete").open("wb") as file:
        file.truncate(2 * 10**9)
    assert download_problems(files, missing) == () and download_problems(files, []) == ()


def test_other_models_in_a_repository_are_not_counted_as_downloaded(tmp_path: Path) -> None:
    """A 20 GB blob of another model in the same repository turned the 42.4 GB that were needed into 22.4."""
    files = ModelFiles(tmp_path / "hub")
    missing = files.missing("framepack")
    needed = download_bytes(files, missing)
    assert needed == int(sum(place.gigabytes for place in missing) * 1e9)
    repository = tmp_path / "hub" / "models--hunyuanvideo-community--HunyuanVideo"

    def put(folder: str, name: str, size: int) -> None:
        """Put a file into the hub's cache as its library does: a blob, and a link to it."""
        (repository / "blobs").mkdir(parents=True, exist_ok=True)
        with (repository / "blobs" / name).open("wb") as file:
            file.truncate(size)
        place = repository / "snapshots" / "0123abcd" / folder
        place.mkdir(parents=True, exist_ok=True)
        (place / name).symlink_to(repository / "blobs" / name)

    put("transformer", "other", 20 * 10**9)
    assert download_bytes(files, missing) == needed
    put("text_encoder", "part-1", 5 * 10**9)
    assert download_bytes(files, missing) == needed - 5 * 10**9
    put("text_encoder", "much", 100 * 10**9)
    rest = sum(int(place.gigabytes * 1e9) for place in missing if place.folder != "text_encoder")
    assert download_bytes(files, missing) == rest


@pytest.mark.parametrize(("device", "expected"), [("auto", "float8"), ("cuda:1", "int8"), ("cpu", "auto")])
def test_a_dry_run_counts_as_the_run_would(
    device: str, expected: str, pictures: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dry run counts card memory as the run would, from the driver's figures less the reserve and without torch; what does
    not fit is named and the figures stay."""
    two = (Card("a", "1", (8, 9), 24 * GIB, 20 * GIB), Card("b", "1", (7, 5), 24 * GIB, 4 * GIB))
    monkeypatch.setattr(engine, "cards", lambda: two)
    have_memory(monkeypatch, 16 * GIB)
    wanted = Engine(Models(tmp_path), tmp_path, device, reserve_gb=3)
    needed, problems = wanted.forecast(changed(request("reverse", pictures[0], size=640), seconds=1))
    assert needed["precision"] == expected
    assert needed["card_free"] == {"auto": "17.0", "cuda:1": "1.0", "cpu": ""}[device]
    keys = {"auto": set(), "cuda:1": {"too_little_card_memory"}, "cpu": {"too_little_memory"}}[device]
    assert {problem.key for problem in say_everything(problems)} - {"too_little_disk"} == keys
    assert json.dumps(needed)
