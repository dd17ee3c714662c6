"""Test 8-bit weights on the disk: the second start reads them, whatever happened to the file meanwhile."""

from __future__ import annotations

import dataclasses
import errno
import multiprocessing
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffusers_helper.checkpoints import checkpoint as loading
from diffusers_helper.memory import slab_file
from eichi_utils.files import paths
from eichi_utils.models.hub import ModelFiles
from eichi_utils.models.lora_fit import shapes_in
from eichi_utils.models.pool import ModelPool
from eichi_utils.requests.loras import Lora
from tests.eichi_utils.helpers import carry_out, last_preview, names_in, request
from tests.fake_device import FakeDevice
from tests.lora_files import write_lora

pytestmark = pytest.mark.model

CARDS = [None, FakeDevice]
WEIGHT = "single_transformer_blocks.0.attn.to_q.weight"


@pytest.fixture
def quantised(monkeypatch: pytest.MonkeyPatch) -> list:
    """Return a list that grows by one for each weight that is quantised."""
    calls, quantise = [], loading.quantise
    monkeypatch.setattr(loading, "quantise", lambda *given: calls.append(1) or quantise(*given))
    return calls


@pytest.fixture
def copy(checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint, tmp_path / "models"))


def pool_of(folder: Path, gigabytes: float = 1.0, card: FakeDevice | None = None) -> ModelPool:
    return ModelPool(folder, device="cpu", cache_gb=gigabytes, card=card, reserve_gb=0)


def weights(pool: ModelPool, precision: str = "int8", loras: tuple[Lora, ...] = ()) -> dict[str, bytes]:
    """Return the bytes of every tensor in the state dict of a new loan."""
    with pool.transformer("framepack", precision, loras, merge=bool(loras), tokens=10) as net:
        streamer = pool.networks.loaded["transformer"].streamer
        if streamer:
            streamer.leave()
        return {name: tensor.flatten().view(torch.uint8).numpy().tobytes() for name, tensor in net.state_dict().items()}


def files() -> set[str]:
    return names_in(paths.CACHE / "weights")


@pytest.mark.parametrize("precision", ["int8", "float8"])
@pytest.mark.parametrize("card", CARDS)
def test_the_second_start_quantises_nothing(card, precision: str, checkpoint: Path, quantised: list) -> None:
    plain = weights(pool_of(checkpoint, 0, card and card()), precision)
    assert quantised and files() == set()
    quantised.clear()
    assert weights(pool_of(checkpoint, 1, card and card()), precision) == plain
    assert quantised and len(files()) == 1
    quantised.clear()
    assert weights(pool_of(checkpoint, 1, card and card()), precision) == plain
    assert not quantised


@pytest.mark.parametrize("precision", ["auto", "bfloat16"])
def test_wider_weights_are_not_kept(precision: str, checkpoint: Path) -> None:
    """Weights of 16 bits are not kept in the cache, because the model's own files hold them."""
    weights(pool_of(checkpoint), precision)
    assert files() == set()


@pytest.mark.parametrize("card", CARDS)
def test_the_film_is_the_same(card, checkpoint: Path, pictures: list[str], tmp_path: Path, cheap_decode, quantised) -> None:
    it = request("forward", pictures[0], seconds=0.5, window=4.5, precision="int8")
    previews, counts = set(), []
    for gigabytes in (0, 1, 1):
        quantised.clear()
        previews.add(last_preview(carry_out(it, pool_of(checkpoint, gigabytes, card and card()), tmp_path / str(len(counts)))))
        counts.append(len(quantised))
    assert len(previews) == 1
    assert counts[0] == counts[1] > counts[2] == 0


def test_beside_a_card_they_can_be_locked(checkpoint: Path) -> None:
    """The memory is the process's own, and lies part by part at whole pages."""
    for _ in range(2):
        card = FakeDevice()
        pool = pool_of(checkpoint, 1, card)
        with pool.transformer("framepack", "int8", tokens=10):
            streamer = pool.networks.loaded["transformer"].streamer
            assert streamer._arena is None
            assert sum(card.locked.values()) == sum(run.source.numel() for part in streamer._step.values() for run in part.runs)


def test_every_way_of_making_them_has_its_own(checkpoint: Path, copy: Path, tmp_path: Path, quantised: list) -> None:
    """Weights of another format, LoRA content or strength, or of other files in the same place, have their own file; the
    same ones moved do not."""
    for number in range(2):
        shapes = shapes_in(ModelFiles(checkpoint), "framepack")
        write_lora(tmp_path / f"{number}.safetensors", "kohya_hunyuan", shapes, size=0.02 * (number + 1))

    def lora(number: int, strength: float = 0.8) -> tuple[Lora, ...]:
        return (Lora(str(tmp_path / f"{number}.safetensors"), strength),)

    seen, ways = set(), [("int8", ()), ("float8", ()), ("int8", lora(0)), ("int8", lora(0, 0.5)), ("int8", lora(1))]
    for number, (precision, loras) in enumerate(ways, 1):
        quantised.clear()
        made = weights(pool_of(copy), precision, loras)
        assert quantised and len(files()) == number
        seen.add(made["single_transformer_blocks.0.attn.to_q.weight"])
    assert len(seen) == len(ways)
    quantised.clear()
    for precision, loras in ways:
        weights(pool_of(copy), precision, loras)
    assert not quantised and len(files()) == len(ways)
    # A LoRA under another name is the same LoRA, one of the same name with other weights is another.
    shutil.copy2(tmp_path / "0.safetensors", tmp_path / "7.safetensors")
    weights(pool_of(copy), "int8", lora(7))
    assert not quantised
    shutil.copy(tmp_path / "1.safetensors", tmp_path / "7.safetensors")
    weights(pool_of(copy), "int8", lora(7))
    assert not quantised and len(files()) == len(ways)
    moved = Path(shutil.move(copy, tmp_path / "elsewhere"))
    weights(pool_of(moved))
    assert not quantised
    file = moved / "transformer" / "diffusion_pytorch_model.safetensors"
    stat = file.stat()
    save_file({name: 2 * tensor for name, tensor in load_file(file).items()}, file)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert weights(pool_of(moved))["proj_out.weight"] != weights(pool_of(checkpoint))["proj_out.weight"]
    assert quantised


def test_a_lora_beside_them_makes_no_other_file(checkpoint: Path, tmp_path: Path, quantised: list) -> None:
    """A LoRA beside the weights, or another strength, makes no other file: the model's 9 GB are kept once."""
    shapes = shapes_in(ModelFiles(checkpoint), "framepack")
    for number in range(2):
        write_lora(tmp_path / f"{number}.safetensors", "kohya_hunyuan", shapes, seed=number)
    ways = [(), *(((number, strength),) for number in range(2) for strength in (0.8, -0.5)), ((0, 0.1), (1, 0.2))]
    for way in ways:
        loras = tuple(Lora(str(tmp_path / f"{number}.safetensors"), strength) for number, strength in way)
        with pool_of(checkpoint).transformer("framepack", "int8", loras, tokens=10):
            assert len(files()) == 1
    with pool_of(checkpoint).transformer("framepack", "int8", tokens=10) as net:
        assert len(quantised) == len(net.block_linears())


def test_many_strengths_do_not_fill_the_disk(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Merged into 8 bits, each strength is a file of its own, 9 GB of the real model: what was used longest ago goes, and the
    limit holds at every moment."""
    write_lora(tmp_path / "a.safetensors", "kohya_hunyuan", shapes_in(ModelFiles(checkpoint), "framepack"))
    pool = pool_of(checkpoint)
    weights(pool, "int8")
    cache = pool.caches.weights
    (size,) = {path.stat().st_size for path in cache.folder.iterdir()}
    pool.caches = dataclasses.replace(pool.caches, weights=dataclasses.replace(cache, limit=int(3.5 * size)))
    there = []
    for strength in (0.1, 0.2, 0.3, 0.4, 0.5, 0.4):
        with pool.transformer("framepack", "int8", (Lora(str(tmp_path / "a.safetensors"), strength),), True, tokens=10):
            there.append(files())
            assert sum(path.stat().st_size for path in cache.folder.iterdir()) <= 3.5 * size
    assert [len(names) for names in there] == [2, 3, 3, 3, 3, 3]
    assert there[-1] == there[-2] and there[0] & there[2] != there[0]


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "other"])
@pytest.mark.parametrize("card", CARDS)
def test_damaged_files_are_made_again(card, damage: str, checkpoint: Path, quantised: list) -> None:
    """The numbers are right, and the next start has a whole file."""
    plain = weights(pool_of(checkpoint, 1, card and card()))
    (name,) = files()
    file = paths.CACHE / "weights" / name
    data = bytearray(file.read_bytes())
    data[-1000] ^= 1
    file.write_bytes({"cut": data[: len(data) // 2], "flipped": data, "empty": b"", "other": b"<html>" * 9}[damage])
    quantised.clear()
    assert weights(pool_of(checkpoint, 1, card and card())) == plain and quantised
    quantised.clear()
    assert weights(pool_of(checkpoint, 1, card and card())) == plain and not quantised


@contextmanager
def a_disk_with(room: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let writing a slab file fail after `room` bytes."""

    def write(path: Path, arena, key: str) -> None:
        whole(path, arena, key)
        with path.open("r+b") as stream:
            stream.truncate(room)
        raise OSError(errno.ENOSPC, "No space left on device")

    whole = slab_file.write
    with monkeypatch.context() as patch:
        patch.setattr(slab_file, "write", write)
        yield


@pytest.mark.parametrize("card", CARDS)
@pytest.mark.parametrize("other", ["int8", "float8"])
def test_a_whole_file_under_anothers_name_is_made_again(card, other: str, checkpoint: Path, tmp_path: Path, quantised) -> None:
    """A restored or copied cache had files of the right layout under wrong names: with a LoRA's weights the film was wrong."""
    write_lora(tmp_path / "a.safetensors", "kohya_hunyuan", shapes_in(ModelFiles(checkpoint), "framepack"), size=0.05)
    plain = weights(pool_of(checkpoint, 1, card and card()))
    (own,) = files()
    weights(pool_of(checkpoint, 1, card and card()), other, (Lora(str(tmp_path / "a.safetensors"), 1.0),))
    (foreign,) = files() - {own}
    (paths.CACHE / "weights" / foreign).replace(paths.CACHE / "weights" / own)
    quantised.clear()
    assert weights(pool_of(checkpoint, 1, card and card())) == plain and quantised


@pytest.mark.parametrize("room", [0, 70_000])
def test_a_disk_that_fills_up(room: int, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, quantised: list, caplog) -> None:
    """If the disk fills up, the film is made all the same, and no partial file is left."""
    plain = weights(pool_of(checkpoint, 0))
    with a_disk_with(room, monkeypatch):
        assert weights(pool_of(checkpoint)) == plain
    assert files() == set() and "No space left" in caplog.text
    assert weights(pool_of(checkpoint)) == plain and len(files()) == 1


def test_too_little_room_is_said_and_nothing_is_written(checkpoint: Path, monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("usage", (), {"free": 2 * 10**9}))
    monkeypatch.setattr(slab_file, "write", lambda *given: pytest.fail("written"))
    weights(pool_of(checkpoint))
    assert files() == set() and "not kept" in caplog.text


def test_an_error_while_quantising_keeps_nothing(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error while quantising keeps no file, because the next start must not find half of a network."""
    quantise, calls = loading.quantise, []

    def fail(*given):
        calls.append(1)
        if len(calls) == 7:
            raise RuntimeError("injected")
        return quantise(*given)

    monkeypatch.setattr(loading, "quantise", fail)
    with pytest.raises(RuntimeError, match="injected"):
        weights(pool_of(checkpoint))
    assert files() == set()


def load_in_another_process(folder: Path, cache: Path, barrier, queue) -> None:
    torch.set_num_threads(1)
    paths.CACHE = cache
    pool = pool_of(folder)
    barrier.wait()
    queue.put(weights(pool)[WEIGHT])


@pytest.mark.process
@pytest.mark.slow
def test_two_processes_at_once(checkpoint: Path, quantised: list) -> None:
    """Two processes, one of them this test's, load at once and leave one whole file, whichever comes second."""
    context = multiprocessing.get_context("spawn")
    barrier, queue = context.Barrier(2), context.Queue()
    other = context.Process(target=load_in_another_process, args=(checkpoint, paths.CACHE, barrier, queue))
    other.start()
    pool = pool_of(checkpoint)
    barrier.wait(120)
    made = weights(pool)[WEIGHT]
    assert queue.get(timeout=120) == made
    quantised.clear()
    other.join(60)
    assert other.exitcode == 0 and len(files()) == 1
    assert weights(pool_of(checkpoint))[WEIGHT] == made
    assert not quantised
