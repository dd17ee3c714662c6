"""Test that the encoders' results are kept and come back equal to the bit, so that no encoder is loaded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from diffusers_helper.checkpoints.files import SMALL_FILE, folder_identity, identity
from diffusers_helper.encoders.text import TextEmbedding
from eichi_utils.files import paths
from eichi_utils.models.pool import ModelPool
from eichi_utils.problems import UserError
from eichi_utils.render import encoding
from eichi_utils.render.condition_cache import ConditionCache
from eichi_utils.render.conditions import Conditions, fit_pictures
from eichi_utils.render.engine import Engine
from tests.eichi_utils.helpers import carry_out, changed, found, last_preview, names_in, request
from tests.fake_device import FakeDevice

pytestmark = pytest.mark.model

ENCODERS = ("text", "vision", "vae")


@pytest.fixture
def copy(checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint, tmp_path / "models"))


def keeping(folder: Path, gigabytes: float = 1.0, card: FakeDevice | None = None) -> ModelPool:
    return ModelPool(folder, device="cpu", cache_gb=gigabytes, card=card, reserve_gb=0)


def conditions(pool: ModelPool, it) -> tuple[Conditions, set[str]]:
    """Encode a request; return its conditions, and the encoders that were lent for them."""
    lent = set()
    for name in ENCODERS:
        loan = getattr(type(pool), name)

        def counted(*values, name=name, loan=loan):
            lent.add(name)
            return loan(pool, *values)

        setattr(pool, name, counted)
    plan = it.plan()
    *_, made = encoding.encode_conditions(it, plan, fit_pictures(plan, it.size), pool)
    for name in ENCODERS:
        delattr(pool, name)
    return made, lent


def same(one: Conditions, other: Conditions) -> bool:
    """Return whether two conditions are equal to the bit, with dtypes and counts."""
    prompts = [*one.prompts.items(), ("", one.negative)], [*other.prompts.items(), ("", other.negative)]
    tensors = [one.image, *one.latents.values()], [other.image, *other.latents.values()]
    pairs = list(zip(*tensors, strict=True))
    for (text, a), (text_b, b) in zip(*prompts, strict=True):
        if text != text_b or (a is None) != (b is None):
            return False
        if a is not None:
            if (a.read, a.written) != (b.read, b.written):
                return False
            pairs += [(a.tokens, b.tokens), (a.pooled, b.pooled)]
    return list(one.latents) == list(other.latents) and all(a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs)


def test_the_second_time_no_encoder_is_loaded(checkpoint: Path, pool: ModelPool, pictures: list[str]) -> None:
    """The second time no encoder is loaded for any prompt or picture of a plan, the negative prompt included, as in another
    process."""
    it = request(
        "reverse", pictures[0], seconds=2, window=4.5, end_image=pictures[1], section_prompts={"1": "and jumps"},
        cfg_scale=2.0, negative_prompt="猫 " * 300,
    )  # fmt: skip
    plain, _ = conditions(pool, it)
    first, lent = conditions(keeping(checkpoint), it)
    assert lent == set(ENCODERS) and same(first, plain)
    again, lent = conditions(keeping(checkpoint), it)
    assert lent == set() and same(again, plain) and again.negative.read < again.negative.written
    assert {path.parent.name for path in paths.CACHE.rglob("*.safetensors")} == {"prompts", "pictures"}


def test_only_what_is_new_is_encoded(checkpoint: Path, pool: ModelPool, pictures: list[str]) -> None:
    it = request("reverse", pictures[0], seconds=0.5, window=4.5)
    keeper = keeping(checkpoint)
    conditions(keeper, it)
    for change, expected in (
        ({"prompt": "a dog runs"}, {"text"}),
        ({"image": pictures[1]}, {"vision", "vae"}),
        ({"end_image": pictures[2]}, {"vae"}),
        ({"seed": 8, "steps": 3}, set()),
    ):
        other = changed(it, **change)
        made, lent = conditions(keeper, other)
        assert lent == expected, change
        assert same(made, conditions(pool, other)[0]), change


@pytest.mark.parametrize("card", [None, FakeDevice()], ids=["cpu", "card"])
def test_the_film_is_the_same(
    card, checkpoint: Path, pool: ModelPool, pictures: list[str], tmp_path: Path, cheap_decode
) -> None:
    it = request("forward", pictures[0], seconds=0.5, window=4.5)
    plain = last_preview(carry_out(it, pool, tmp_path / "plain"))
    for run in ("making", "finding"):
        assert last_preview(carry_out(it, keeping(checkpoint, card=card), tmp_path / run)) == plain


def test_the_same_picture_in_another_file_is_known(checkpoint: Path, pictures: list[str], tmp_path: Path) -> None:
    """Pixels count, as they are encoded; names and places do not."""
    it = request("single", pictures[0])
    keeper = keeping(checkpoint)
    conditions(keeper, it)
    with Image.open(pictures[0]) as picture:
        picture.save(tmp_path / "other.bmp")
    assert conditions(keeper, changed(it, image=str(tmp_path / "other.bmp")))[1] == set()
    # One pixel, by one level.
    with Image.open(pictures[0]) as picture:
        values = numpy.array(picture)
    values[5, 5, 0] ^= 128
    Image.fromarray(values).save(tmp_path / "changed.png")
    assert conditions(keeper, changed(it, image=str(tmp_path / "changed.png")))[1] == {"vision", "vae"}
    # The same picture at another size is another picture.
    assert conditions(keeper, changed(it, size=192))[1] == {"vision", "vae"}


CHANGES: dict[str, Callable[[Path], object]] = {
    "text": lambda folder: double(folder / "text_encoder" / "model.safetensors"),
    "vision": lambda folder: double(folder / "image_encoder" / "model.safetensors"),
    "vae": lambda folder: double(folder / "vae" / "diffusion_pytorch_model.safetensors"),
}


def double(file: Path) -> None:
    """Double the weights in a file without changing its size and time."""
    stat = file.stat()
    save_file({name: tensor * 2 for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"})
    shutil.os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.mark.parametrize("name", CHANGES)
def test_other_weights_under_the_same_name(name: str, copy: Path, pictures: list[str]) -> None:
    """A model is known by its files' content: another one in the same place gets its own entries."""
    it = request("single", pictures[0])
    conditions(keeping(copy), it)
    CHANGES[name](copy)
    assert conditions(keeping(copy), it)[1] == {name}


def test_another_preprocessing_is_another_encoder(copy: Path, pictures: list[str]) -> None:
    it = request("single", pictures[0])
    conditions(keeping(copy), it)
    file = copy / "feature_extractor" / "preprocessor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "image_mean": [0.4] * 3}))
    assert conditions(keeping(copy), it)[1] == {"vision"}


@pytest.mark.parametrize("name", ["tokenizer", "tokenizer_2"])
def test_another_tokenizer_reads_another_prompt(name: str, copy: Path, pictures: list[str]) -> None:
    it = request("single", pictures[0])
    conditions(keeping(copy), it)
    file = copy / name / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "comment": "another"}))
    assert conditions(keeping(copy), it)[1] == {"text"}


def test_moved_models_are_known(copy: Path, tmp_path: Path, pictures: list[str]) -> None:
    it = request("single", pictures[0])
    conditions(keeping(copy), it)
    assert conditions(keeping(Path(shutil.move(copy, tmp_path / "elsewhere"))), it)[1] == set()


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped", "text", "names", "header"])
def test_damaged_files_are_made_again(damage: str, checkpoint: Path, pool: ModelPool, pictures: list[str]) -> None:
    """The conditions are encoded again, with the right numbers and without a word to the user."""
    it = request("single", pictures[0])
    plain, _ = conditions(pool, it)
    conditions(keeping(checkpoint), it)
    files = sorted(paths.CACHE.rglob("*.safetensors"))
    assert len(files) == 3
    for file in files:
        data = bytearray(file.read_bytes())
        if damage == "names":
            save_file({"other": torch.zeros(1)}, file)
        else:
            flipped = bytearray(data)
            flipped[-50] ^= 1
            header = bytearray(data)
            header[:8] = b"\xff" * 8
            damaged = {"cut": data[:-9], "empty": b"", "flipped": flipped, "text": b"<html>" * 50, "header": header}
            file.write_bytes(damaged[damage])
    made, lent = conditions(keeping(checkpoint), it)
    assert lent == set(ENCODERS) and same(made, plain)
    made, lent = conditions(keeping(checkpoint), it)
    assert lent == set() and same(made, plain)


def test_nothing_is_kept_unless_it_is_asked_for(checkpoint: Path, pictures: list[str]) -> None:
    """Without a cache size, conditions are neither read from the disk nor written to it."""
    it = request("single", pictures[0])
    for _ in range(2):
        assert conditions(keeping(checkpoint, 0), it)[1] == set(ENCODERS)
    assert names_in(paths.CACHE) == set()


def test_a_cache_that_cannot_be_written_changes_nothing(
    checkpoint: Path, pool: ModelPool, pictures: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(paths, "CACHE", tmp_path / "file")
    it = request("single", pictures[0])
    made, lent = conditions(keeping(checkpoint), it)
    assert lent == set(ENCODERS) and same(made, conditions(pool, it)[0])


def test_half_the_bytes_where_nothing_is_lost(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A card's encoders compute in 16 bits; only their caller widens. What was wider stays as wide as it was."""
    pool = keeping(checkpoint)
    monkeypatch.setattr(pool, "placement", type(pool.placement)(torch.device("cpu"), torch.float32, torch.float16))
    kept = ConditionCache(pool)
    narrow = torch.randn(1, 5, 64).half().float()
    odd = torch.tensor([[1e-9, 1.0, float("nan")]])
    kept.keep_prompt("a", TextEmbedding(narrow, odd, 5, 7))
    (file,) = (paths.CACHE / "prompts").iterdir()
    stored = load_file(file)
    assert stored["tokens"].dtype == torch.float16 and stored["pooled"].dtype == torch.float32
    again = kept.prompt("a")
    assert torch.equal(again.tokens, narrow) and again.tokens.dtype == torch.float32
    assert again.pooled.numpy().tobytes() == odd.numpy().tobytes() and (again.read, again.written) == (5, 7)


def test_another_dtype_library_or_device_is_another_key(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another dtype, library or device is another key of the cache: they round differently, and a seed must mean one film."""
    keys = {ConditionCache(keeping(checkpoint))._prompt_key("a")}
    pool = keeping(checkpoint)
    monkeypatch.setattr(pool, "placement", type(pool.placement)(torch.device("cpu"), torch.float32, torch.float16))
    keys.add(ConditionCache(pool)._prompt_key("a"))
    monkeypatch.setattr(torch, "__version__", "9.9")
    keys.add(ConditionCache(pool)._prompt_key("a"))
    assert len(keys) == 3


@pytest.mark.parametrize("size", [0, 1000, 40 * 2**20])
def test_a_file_is_known_by_its_content(size: int, tmp_path: Path) -> None:
    """A file is known by its content; a large one by pieces, its size and its time."""
    data = numpy.random.default_rng(0).bytes(size)
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_bytes(data)
    shutil.copy2(one, other)
    assert identity(one) == identity(other)
    for change in (0, size // 2, size - 1) if size == 1000 else (0, size - 1) if size else ():
        flipped = bytearray(data)
        flipped[change] ^= 1
        other.write_bytes(flipped)
        shutil.copystat(one, other)
        assert identity(one) != identity(other)
    other.write_bytes(data + b"x")
    shutil.copystat(one, other)
    assert identity(one) != identity(other)
    if size > SMALL_FILE:
        # Between the pieces that are looked at, the time of change tells.
        other.write_bytes(data[: 2**20] + b"x" + data[2**20 + 1 :])
        shutil.os.utime(other, ns=(1, 1))
        assert identity(one) != identity(other)
    assert folder_identity(tmp_path) != (other.unlink() or folder_identity(tmp_path))


@pytest.mark.parametrize("wrong", [-1, 10_001, float("nan")])
def test_a_size_no_disk_has(wrong: float, checkpoint: Path) -> None:
    with pytest.raises(UserError) as error:
        keeping(checkpoint, wrong)
    assert found(error.value.problems) == {("cache_gb", "out_of_range")}


def test_the_engine_hands_the_size_on() -> None:
    assert Engine(device="cpu", cache_gb=2).pool.caches.weights.limit == 1_800_000_000
    assert Engine(device="cpu").pool.caches.weights.limit == 0
