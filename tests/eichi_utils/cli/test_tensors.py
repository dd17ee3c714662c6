"""Test `eichi tensors`: files of latents are described, trimmed, joined and decoded without a page."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
import torch

from diffusers_helper.vae.latents import decode, to_uint8
from eichi_utils.cli import main
from eichi_utils.cli import tensors as cli_tensors
from eichi_utils.exchange.latent_files import read_latents, write_latents
from eichi_utils.exchange.metadata import read_document
from eichi_utils.exchange.video import encode_h264
from eichi_utils.models.hub import ModelFiles, Place
from eichi_utils.models.pool import ModelPool
from eichi_utils.problems import Problem, UserError
from eichi_utils.requests.request import to_json
from locales import LANGUAGES
from tests.diffusers_helper.inputs import GOLDEN
from tests.eichi_utils.helpers import decoded, latent_file, names_in, request

APP, COMBINER = (GOLDEN / "compat" / f"tensor_{name}.safetensors" for name in ("app", "combiner"))
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def tensors(capsys: pytest.CaptureFixture) -> Run:
    """Return a function that runs `eichi tensors`: exit code, stdout, stderr."""

    def run(*words: object, language: str = "en") -> tuple[int, str, str]:
        code = main.main(["tensors", *map(str, words), "--lang", language])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    """Write a file of latents as this program does."""
    torch.manual_seed(0)
    write_latents(
        tmp_path / "ours.safetensors", torch.randn(1, 16, 5, 8, 12), request("reverse", "a.png", prompt="猫", seed=42)
    )
    return tmp_path / "ours.safetensors"


@pytest.mark.parametrize("language", LANGUAGES)
def test_info_of_the_existing_programs_files_and_ours(language: str, tensors: Run, ours: Path) -> None:
    """Info tells sizes, lengths and, for our files, what they were made with; the existing programs' `metadata` are not
    believed."""
    code, out, err = tensors("info", APP, COMBINER, ours, language=language)
    assert (code, err) == (0, "")
    for part in ("96 x 64", "37", "1.23", "33", "1.10", "F32", "42", "猫", str(APP)):
        assert part in out
    app, combiner, own = json.loads(tensors("info", APP, COMBINER, ours, "--json", language=language)[1])
    assert (app["latents"], app["frames"], app["seconds"], app["request"]) == (10, 37, 1.233, None)
    assert (combiner["width"], combiner["height"], combiner["latents"]) == (96, 64, 9)
    assert own["request"]["prompt"] == "猫" and own["model"] == "framepack"


def test_trim(tensors: Run, ours: Path, tmp_path: Path) -> None:
    code, out, _ = tensors("trim", ours, "--trim-start", 1, "--trim-end", 2)
    made = tmp_path / "ours_trimmed.safetensors"
    assert (code, out) == (0, f"{made}\n")
    info, latents = read_latents(made)
    assert torch.equal(latents, read_latents(ours)[1][:, :, 1:3])
    (part,) = info.parts
    assert (part["file"], part["trim_start"], part["trim_end"], part["request"]["seed"]) == ("ours.safetensors", 1, 2, 42)
    # The next result takes no name that is taken.
    assert tensors("trim", ours, "--trim-end", 1)[1] == f"{tmp_path / 'ours_trimmed_2.safetensors'}\n"


def test_join(tensors: Run, ours: Path, tmp_path: Path) -> None:
    """Files in their order, with latents in between at both places; every file is read as float32."""
    whole = tmp_path / "sub" / "whole.safetensors"
    code, out, _ = tensors("join", ours, APP, COMBINER, "--join-latents", 2, "--out", whole, "--json")
    assert code == 0 and json.loads(out) == {"files": [str(whole)]}
    info, latents = read_latents(whole)
    assert info.latents == 5 + 2 + 10 + 2 + 9 and [part.get("between") for part in info.parts] == [None, 2, 2]
    for begin, file in ((0, ours), (7, APP), (19, COMBINER)):
        part = read_latents(file)[1]
        assert torch.equal(latents[:, :, begin : begin + part.shape[2]], part)
    third = (latents[:, :, 7] - latents[:, :, 4]) / 3
    torch.testing.assert_close(latents[:, :, 5], latents[:, :, 4] + third)
    torch.testing.assert_close(latents[:, :, 6], latents[:, :, 4] + 2 * third)
    # A part of a part is still named, and so is its request.
    again = tmp_path / "again.safetensors"
    assert tensors("trim", whole, "--trim-end", 1, "--out", again)[0] == 0
    assert read_latents(again)[0].requests[0]["seed"] == 42


def test_decode_loads_the_vae_and_nothing_else(
    tensors: Run, ours: Path, checkpoint: Path, pool: ModelPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """4 T - 3 frames, those of all latents decoded in one go; the request comes along, and the progress goes to stderr."""
    for name in ("transformer", "text", "vision"):
        monkeypatch.delattr(ModelPool, name)
    code, out, err = tensors("decode", ours, "--models", checkpoint, "--device", "cpu", "--crf", 0)
    assert (code, out) == (0, f"{tmp_path / 'ours.mp4'}\n") and "17 of 17" in err
    with pool.vae() as vae:
        encode_h264(tmp_path / "expected.mp4", to_uint8(decode(vae, read_latents(ours)[1])).numpy(), crf=0)
    frames = decoded(tmp_path / "ours.mp4")
    assert len(frames) == 4 * 5 - 3 and numpy.array_equal(frames, decoded(tmp_path / "expected.mp4"))
    assert read_document(tmp_path / "ours.mp4") == to_json(request("reverse", "a.png", prompt="猫", seed=42))


def test_a_vae_that_is_damaged_or_missing(tensors: Run, ours: Path, checkpoint: Path, tmp_path: Path) -> None:
    """Exit code 2 and the file that is meant, before anything is loaded; nothing is written."""
    models = tmp_path / "models"
    (models / "vae").mkdir(parents=True)
    for name in ("config.json", "diffusion_pytorch_model.safetensors"):
        data = (checkpoint / "vae" / name).read_bytes()
        (models / "vae" / name).write_bytes(data[: len(data) // 2] if name.endswith("safetensors") else data)
    code, out, err = tensors("decode", ours, "--models", models, "--model", "framepack", "--device", "cpu")
    assert code == 2 and "is damaged" in err and out == "" and not (tmp_path / "ours.mp4").exists()


def test_a_vae_that_is_not_there_is_fetched(
    tensors: Run, ours: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The VAE of the file's model is used, or the real one where the file names none; the miniature's would make noise."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    wanted = []

    def download(files: ModelFiles, place: Place, *_: object) -> bool:
        wanted.append((place.repository, place.folder))
        folder = files.cache / f"models--{place.repository.replace('/', '--')}" / "snapshots" / "a" / place.folder
        shutil.copytree(checkpoint / place.folder, folder)
        return True

    monkeypatch.setattr(ModelFiles, "download", download)
    for file in (ours, APP):
        code, _, err = tensors("decode", file, "--device", "cpu", "--out", tmp_path / "a.mp4")
        assert code == 0, err
    assert wanted == [("hunyuanvideo-community/HunyuanVideo", "vae")] and len(decoded(tmp_path / "a.mp4")) == 37

    def offline(*_: object) -> None:
        raise UserError([Problem("models", "download_failed", {"repository": "r", "folder": "f", "reason": "offline"})])

    shutil.rmtree(tmp_path / "hub")
    monkeypatch.setattr(ModelFiles, "download", offline)
    code, _, err = tensors("decode", ours, "--device", "cpu", "--out", tmp_path / "b.mp4")
    assert code == 1 and "offline" in err and not (tmp_path / "b.mp4").exists()


def test_what_runs_out_while_decoding(
    tensors: Run, ours: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 1 and a sentence; half a film is not left."""

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("eichi_utils.render.joined_film.decode_frames", full)
    code, out, _ = tensors("decode", ours, "--models", checkpoint, "--device", "cpu", "--json")
    assert code == 1 and json.loads(out)["problems"][0]["key"] == "out_of_card_memory"
    assert names_in(tmp_path) == {"ours.safetensors"}


@pytest.mark.parametrize(
    ("words", "field", "key"),
    [
        (("trim", "{ours}", "--trim-start", 3, "--trim-end", 2), "trim_start", "latents_too_few"),
        (("trim", "{ours}", "--trim-start", -1), "trim_start", "out_of_range"),
        (("trim", "{ours}", "--out", "{ours}"), "out", "out_is_input"),
        (("trim", "{ours}", "--out", "x.mp4"), "out", "out_suffix"),
        (("join", "{ours}"), "files", "join_needs_two"),
        (("join", "{ours}", "{wide}"), "files", "latents_differ"),
        (("join", "{ours}", "{small}"), "files", "latents_models_differ"),
        (("join", "{ours}", "{ours}", "--join-latents", 13), "join_latents", "out_of_range"),
        (("join", "{ours}", "gone.safetensors"), "files", "latents_missing"),
        (("decode", "{ours}", "--crf", 52), "crf", "out_of_range"),
        (("decode", "{text}"), "files", "latents_damaged"),
        (("decode", "{ours}", "--out", "/proc/x/a.mp4"), "out", "folder_not_writable"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else str(value),
)
def test_bad_input_is_named_and_nothing_is_written(
    words: tuple, field: str, key: str, tensors: Run, ours: Path, tmp_path: Path
) -> None:
    """Bad input ends with exit code 2, the field, the key and a sentence."""
    small = latent_file(tmp_path / "small.safetensors", 4, 64, 96, eichi=json.dumps({"model": "miniature"}))
    files = {"ours": ours, "wide": latent_file(tmp_path / "wide.safetensors", 3, 64, 128), "small": small}
    (tmp_path / "text.safetensors").write_text("a picture of a cat")
    files["text"] = tmp_path / "text.safetensors"
    before = names_in(tmp_path)
    code, out, err = tensors(*(str(word).format(**files) for word in words), "--json")
    problems = json.loads(out)["problems"]
    assert code == 2 and {(problem["field"], problem["key"]) for problem in problems} == {(field, key)}
    assert problems[0]["text"] in err
    assert names_in(tmp_path) == before


def test_info_names_what_is_no_file_of_latents(tensors: Run, ours: Path, tmp_path: Path) -> None:
    """Files that hold no latents are named, and the others are still described."""
    code, out, _ = tensors("info", ours, tmp_path / "gone.safetensors", "--json")
    assert code == 2 and [entry.get("problem") for entry in json.loads(out)] == [None, "latents_missing"]
    assert cli_tensors.free_name(tmp_path / "ours", "", ".safetensors") == tmp_path / "ours_2.safetensors"
