"""Test the program's code against reference vectors, which are numbers of the original FramePack."""

from __future__ import annotations

import fnmatch
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from diffusers_helper.vae.frames import frames_of
from eichi_utils.render import section_loop
from tests.diffusers_helper.inputs import in_slabs
from tests.golden.__main__ import main
from tests.golden.replay import REPLAYS, TinyPool, replay_lora
from tests.golden.replay_loras import EXPECTED

FOLDER = Path(__file__).parent
NETWORKS = {"tiny_transformer.safetensors", "tiny_vae.safetensors"}
LORAS = sorted(path.name for path in (FOLDER / "lora").glob("*.safetensors") if path.name != EXPECTED)
VECTORS = sorted(
    path.name for path in FOLDER.iterdir() if path.suffix in (".safetensors", ".json") and path.name not in NETWORKS
)


@pytest.fixture(scope="module")
def pool() -> TinyPool:
    return TinyPool(FOLDER)


def marked(names: list[str]) -> list:
    """Return test parameters in which whole films, which take seconds, are marked as slow."""
    slow = {name for name in names if name.startswith("film_")}
    return [pytest.param(name, marks=pytest.mark.slow if name in slow else ()) for name in names]


# Longer films of which only the latents are compared: their frames are decoded and blended as those of the other eight.
LATENTS_ALONE = {"film_reverse_6.safetensors", "film_reverse_keyframes.safetensors", "film_forward_strength.safetensors"}


def grey(vae, latents, known, room, side):
    """Replace decoding by grey frames."""
    yield torch.zeros(1, 3, frames_of(latents.shape[2]), 64, 64)


@pytest.mark.parametrize("name", marked(VECTORS))
def test_the_original_made_the_same(pool, name, monkeypatch):
    """The same noise and embeddings give the original program's film, so that old seeds give their old films."""
    if name in LATENTS_ALONE:
        monkeypatch.setattr(section_loop, "decode_frames", grey)
    matching = [replay for pattern, replay in REPLAYS.items() if fnmatch.fnmatch(name, pattern)]
    assert len(matching) == 1, f"{name} is replayed by {len(matching)} functions"
    checks = list(matching[0](FOLDER / name, pool))
    if name in LATENTS_ALONE:
        checks = [check for check in checks if check.name not in ("pixels", "frame means")]
    assert checks
    failed = [f"{check.name}: {check.error:.2e} > {check.tolerance:g}" for check in checks if not check.passed]
    assert not failed, "; ".join(failed)


@pytest.mark.parametrize("name", marked([*fnmatch.filter(VECTORS, "transformer_*"), "film_reverse_1.safetensors"]))
def test_fused_products_make_the_same(name):
    """With weights in slabs q, k and v are computed as one product, and the film has the same numbers."""
    pool = TinyPool(FOLDER)
    in_slabs(pool.net)
    replay = next(replay for pattern, replay in REPLAYS.items() if fnmatch.fnmatch(name, pattern))
    checks = list(replay(FOLDER / name, pool))
    assert checks and all(check.passed for check in checks), checks


def test_every_kind_of_vector_is_there():
    """A vector that was renamed or lost must not make the tests pass by itself."""
    assert len(VECTORS) == 26
    for pattern in REPLAYS:
        assert fnmatch.filter(VECTORS, pattern), f"no file for {pattern}"
    assert len(fnmatch.filter(VECTORS, "film_reverse_*")) == 7 and len(fnmatch.filter(VECTORS, "film_forward_*")) == 4


@pytest.mark.parametrize("name", LORAS)
def test_a_lora_adds_what_its_formula_says(pool, name):
    """Ten formats of one update; whoever reads a format wrong adds something else, or nothing without a word."""
    checks = list(replay_lora(FOLDER / "lora" / name, pool))
    assert checks and all(check.passed for check in checks), checks


def test_every_lora_file_is_there():
    assert len(LORAS) == 13 and len(fnmatch.filter(LORAS, "bad_*")) == 2


def test_main_replays_lora_and_fails_where_a_delta_is_off(tmp_path, capsys):
    """The replay fails for a wrong factor, and for a file that should be refused and is not."""
    shutil.copytree(FOLDER / "lora", tmp_path / "lora")
    assert main([str(tmp_path)]) == 0
    assert capsys.readouterr().out.count("ok   lora/") == 13
    tamper(tmp_path / "lora" / "comfyui_names.safetensors", "diffusion_model.single_blocks.0.linear2.lora_B.weight", add(1e-3))
    shutil.copy(tmp_path / "lora" / "diffusers_peft.safetensors", tmp_path / "lora" / "bad_shape.safetensors")
    lines = lines_of(capsys, tmp_path, 1)
    assert {line.split(":")[0] for line in lines if line.startswith("FAIL")} == {
        "FAIL lora/bad_shape.safetensors",
        "FAIL lora/comfyui_names.safetensors",
    }


def copy(folder: Path, *names: str) -> Path:
    for name in names:
        shutil.copy(FOLDER / name, folder / name)
    return folder


def tamper(file: Path, tensor: str, change) -> None:
    """Change one tensor of a file, and keep the file's metadata."""
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    tensors = load_file(file)
    change(tensors[tensor].view(-1))
    save_file(tensors, file, metadata=metadata)


def lines_of(capsys, folder: Path, code: int) -> list[str]:
    assert main([str(folder)]) == code
    return capsys.readouterr().out.splitlines()


def test_main_prints_a_line_for_every_file_and_succeeds(tmp_path, capsys):
    copy(tmp_path, "preview.safetensors", "crossfade.safetensors", "schedule.json")
    lines = lines_of(capsys, tmp_path, 0)
    assert [line.split(":")[0] for line in lines] == [
        "ok   crossfade.safetensors",
        "ok   preview.safetensors",
        "ok   schedule.json",
    ]


def add(value: float):
    def change(numbers):
        numbers[0] += value

    return change


@pytest.mark.parametrize(
    ("name", "tensor", "value"),
    [
        ("preview.safetensors", "rgb", 2e-4),
        ("preview.safetensors", "rgb", float("nan")),
        ("crossfade.safetensors", "overlap_9", 3e-3),
        ("unipc.safetensors", "n25_shift7.0.result", 2e-5),
    ],
)
def test_main_fails_where_one_number_is_off(tmp_path, capsys, name, tensor, value):
    """A replay that cannot fail proves nothing; NaN compares false with everything and must not count as small."""
    copy(tmp_path, name, "schedule.json")
    tamper(tmp_path / name, tensor, add(value))
    lines = lines_of(capsys, tmp_path, 1)
    assert [line[:5] for line in lines if name in line] == ["FAIL "]
    assert [line[:5] for line in lines if "schedule" in line] == ["ok   "]


def test_main_fails_where_a_velocity_is_off(tmp_path, capsys):
    """A wrong number is found in a replay through the networks too."""
    name = "transformer_single_no_context.safetensors"
    copy(tmp_path, *NETWORKS, name)
    assert lines_of(capsys, tmp_path, 0)[0].startswith("ok ")
    tamper(tmp_path / name, "out.velocity", add(3e-4))
    assert lines_of(capsys, tmp_path, 1)[0].startswith("FAIL")


def test_main_fails_where_a_schedule_is_off(tmp_path, capsys):
    document = json.loads((FOLDER / "schedule.json").read_text())
    next(iter(document.values()))["sigmas"]["25"][3] += 1e-4
    (tmp_path / "schedule.json").write_text(json.dumps(document))
    assert lines_of(capsys, tmp_path, 1)[0].startswith("FAIL")


def test_main_fails_where_there_is_nothing_to_replay(tmp_path, capsys):
    """The wrong folder is not a success."""
    assert lines_of(capsys, tmp_path, 1) == ["no vector files found"]


@pytest.mark.parametrize("arguments", [[], ["a", "b"], ["/no/such/folder"]], ids=["none", "two", "missing folder"])
def test_main_explains_itself(capsys, arguments):
    assert main(arguments) == 2
    assert capsys.readouterr().out.startswith("usage:")


def test_a_folder_with_a_few_vectors_brings_no_networks(tmp_path, capsys):
    """Networks that a folder lacks are those of the tests; such a folder ended in a traceback before the first line."""
    copy(tmp_path, "schedule.json", "transformer_half_window.safetensors")
    assert main([str(tmp_path)]) == 0
    assert capsys.readouterr().out.count("ok  ") == 2


def test_a_vector_that_is_not_what_its_name_says_fails_alone(tmp_path, capsys):
    """A vector that is not what its name says fails alone, and the others are replayed."""
    copy(tmp_path, "schedule.json")
    shutil.copy(FOLDER / "preview.safetensors", tmp_path / "crossfade.safetensors")
    shutil.copy(FOLDER / "preview.safetensors", tmp_path / "film_reverse_9.safetensors")
    (tmp_path / "unipc.safetensors").write_bytes(b"cut off")
    assert main([str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert out.count("FAIL") == 3 and out.count("ok  ") == 1
