"""Test `eichi lora`: reports without a model, and merged checkpoints written one tensor at a time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from diffusers_helper.checkpoints.checkpoint import check_transformer, load_transformer
from eichi_utils.cli import main
from eichi_utils.models import bake
from eichi_utils.models.hub import ModelFiles
from eichi_utils.models.lora_fit import shapes_in
from eichi_utils.models.pool import ModelPool
from eichi_utils.problems import UserError
from eichi_utils.requests.loras import Lora
from tests.diffusers_helper.inputs import GOLDEN
from tests.lora_files import write_lora

Run = Callable[..., tuple[int, str, str]]
STEM = "diffusion_pytorch_model"
CASES = Path(__file__).parents[2] / "cases" / "hostile"


@pytest.fixture
def lora(checkpoint: Path, capsys: pytest.CaptureFixture) -> Run:
    """Return a function that runs `eichi lora` with the small checkpoint: exit code, stdout, stderr."""

    def run(*words: object) -> tuple[int, str, str]:
        code = main.main(["lora", "--models", str(checkpoint), "--lang", "en", *map(str, words)])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def file(checkpoint: Path, tmp_path: Path) -> Path:
    write_lora(tmp_path / "a.safetensors", "kohya_hunyuan", shapes_in(ModelFiles(checkpoint), "framepack"), size=0.02)
    return tmp_path / "a.safetensors"


def test_a_report_for_every_file(lora: Run, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Good, partly known and bad ones; nothing is loaded. The exit code says whether all can be used."""
    monkeypatch.setattr(torch.nn.Module, "load_state_dict", lambda *a, **k: pytest.fail("a model was loaded"))
    code, out, _ = lora(file)
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == str(file) and "kohya, HunyuanVideo, rank 2" in lines[1] and len(lines) == 4
    extra = {"lora_te_x.lora_up.weight": torch.zeros(2, 2), "lora_unet_no_such.lora_up.weight": torch.zeros(2, 2)}
    save_file({**load_file(file), **extra}, tmp_path / "b.safetensors")
    code, out, _ = lora(tmp_path / "b.safetensors", tmp_path / "gone.safetensors", file)
    assert code == 2
    assert "lora_unet_no_such" in out and "text encoder" in out and "There is no LoRA file" in out
    assert out.count("rank 2") == 2


def test_a_report_as_json(lora: Run, file: Path) -> None:
    code, out, _ = lora(file, GOLDEN / "lora" / "bad_unknown_modules.safetensors", "--json")
    good, bad = json.loads(out)
    assert code == 2
    assert good["file"] == str(file) and good["ranks"] == [2] and good["used"] == good["found"] and good["unknown"] == []
    assert bad["problem"] == "lora_no_modules" and bad["text"]


def test_a_report_takes_files_as_a_bake_does(lora: Run, file: Path, tmp_path: Path) -> None:
    """The usage said FILE=STRENGTH, and the report looked for a file of that name. An equals sign may be in a name too."""
    odd = Path(shutil.copy(file, tmp_path / "mix=0.5.safetensors"))
    code, out, _ = lora(f"{file}=-0.5", odd, f"{odd}=2", "--json")
    assert code == 0
    assert [(one["file"], one["strength"]) for one in json.loads(out)] == [(str(file), -0.5), (str(odd), 0.8), (str(odd), 2.0)]
    code, out, _ = lora(f"{file}=1.25")
    assert code == 0 and "strength 1.25" in out
    for strength in ("7", "nan"):
        code, out, _ = lora(f"{file}={strength}", "--json")
        assert code == 2 and json.loads(out)[0]["problem"] == "out_of_range"
    assert lora("bake", f"{odd}=0.5", "--out", tmp_path / "baked")[0] == 0


def test_a_report_finds_numbers_that_are_none(lora: Run, file: Path) -> None:
    """NaN passed as good; the report names file and key, and a bake with it writes nothing."""
    tensors = load_file(file)
    key = next(name for name in tensors if name.endswith("lora_up.weight"))
    tensors[key][0, 0] = float("nan")
    save_file(tensors, file)
    code, out, _ = lora(file)
    assert code == 2 and str(file) in out and key in out and "NaN" in out
    code, _, err = lora("bake", file, "--out", file.parent / "baked")
    assert code == 2 and key in err and not (file.parent / "baked").exists()


def test_a_folder_for_a_report_is_not_passed_over(lora: Run, file: Path, tmp_path: Path) -> None:
    """The flag --out without the word bake is refused: it did nothing. So is bake without files, which was called a missing
    file."""
    code, _, err = lora(file, "--out", tmp_path / "baked")
    assert code == 2 and "bake" in err
    code, _, err = lora("bake", "--out", tmp_path / "baked")
    assert code == 2 and "files: Enter a value" in err


def test_a_sections_scale_has_a_flag(file: Path, checkpoint: Path, pictures: list, capsys: pytest.CaptureFixture) -> None:
    """`--section-lora-scale K=N`: the plan's strengths, for every LoRA; and what is no number is said."""
    words = ["render", "--mode", "forward", "--image", pictures[0], "--prompt", "x", "--seconds", "3", "--lang", "en", "--json"]
    words += ["--models", str(checkpoint), "--lora", f"{file}=0.5", "--lora", f"{file}=-1", "--dry-run"]
    assert main.main([*words, "--section-lora-scale", "1=0.5", "--section-lora-scale", "0=0"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert [section["lora_strengths"] for section in plan["sections"]] == [[0.0, -0.0], [0.25, -0.5]]
    for wrong in ("1=strong", "half", "7=1", "0=3"):
        assert main.main([*words, "--section-lora-scale", wrong]) == 2
        assert "--section-lora-scale" in capsys.readouterr().err


@pytest.mark.parametrize("dry", [True, False])
def test_a_render_with_a_lora_of_another_model_does_not_begin(
    dry: bool, checkpoint: Path, pictures: list, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Said with the file's name, by a dry run too; nothing is loaded and nothing written."""
    bad, out = GOLDEN / "lora" / "bad_unknown_modules.safetensors", tmp_path / "out"
    words = ["render", "--image", pictures[0], "--prompt", "x", "--models", str(checkpoint), "--out", str(out), "--lang", "en"]
    assert main.main([*words, "--device", "cpu", "--lora", str(bad), *["--dry-run"] * dry]) == 2
    assert str(bad) in capsys.readouterr().err and not out.exists()


def test_reports_are_for_the_model_that_is_asked_for(file: Path, capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    """Reports are made for the model that is asked for; without any model on this computer it is the published one."""
    assert main.main(["lora", str(file), "--models", str(tmp_path), "--lang", "en"]) == 2
    assert "3072" in capsys.readouterr().out


@pytest.mark.parametrize("shards", [1, 3])
def test_a_baked_checkpoint_is_the_one_with_the_lora_beside(
    shards: int, lora: Run, file: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A baked checkpoint has the files, names, shapes and dtypes of its source; its weights differ by what the LoRA adds."""
    source = tmp_path / "models" / "transformer"
    shutil.copytree(checkpoint, tmp_path / "models")
    if shards > 1:
        split(source, shards)
    before = {path.name: path.read_bytes() for path in source.iterdir()}
    out = tmp_path / "baked"
    code, _, _ = lora("bake", f"{file}=0.5", f"{file}=0.25", "--out", out, "--models", tmp_path / "models")
    assert code == 0
    assert {path.name for path in out.iterdir()} == set(before)
    assert {path.name: path.read_bytes() for path in source.iterdir()} == before
    check_transformer(out)
    pool = ModelPool(checkpoint, device="cpu")
    made = load_transformer(out, torch.float32).state_dict()
    chosen = main.modes.from_json({"mode": "single", "loras": [{"file": str(file), "strength": 0.75}]}).loras
    with pool.transformer("framepack", "auto", chosen, True) as net:
        wanted = net.state_dict()
    assert all((made[name] - wanted[name]).abs().max() <= 1e-6 for name in wanted)
    original = load_transformer(source, torch.float32).state_dict()
    assert any(not torch.equal(made[name], tensor) for name, tensor in original.items())
    with safe_open(next(out.glob("*.safetensors")), framework="pt") as opened:
        assert json.loads(opened.metadata()["merged_loras"])[0] == {"file": "a.safetensors", "strength": 0.5}


def split(folder: Path, shards: int) -> None:
    """Split one file of weights into several with an index, as the hub has them."""
    whole = folder / f"{STEM}.safetensors"
    tensors = load_file(whole)
    names = sorted(tensors)
    weight_map = {name: f"{STEM}-{number % shards + 1:05}-of-{shards:05}.safetensors" for number, name in enumerate(names)}
    for shard in set(weight_map.values()):
        save_file({name: tensors[name] for name in names if weight_map[name] == shard}, folder / shard, {"format": "pt"})
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / f"{STEM}.safetensors.index.json").write_text(json.dumps(index))
    whole.unlink()


def test_a_tensor_at_a_time(lora: Run, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shard of 10 GB must not be in memory: each tensor is written before the next one is read."""
    alive: list[int] = []
    log: list[str] = []
    real = bake._bytes

    def counted(tensor: torch.Tensor) -> memoryview:
        log.append("read")
        alive.append(tensor.numel())
        return real(tensor)

    stream = bake.write_stream

    def watched(path: Path, header: object, parts: object) -> None:
        def passing():
            for part in parts:
                assert log.pop() == "read" and not log
                yield part

        stream(path, header, passing())

    monkeypatch.setattr(bake, "_bytes", counted)
    monkeypatch.setattr(bake, "write_stream", watched)
    assert lora("bake", file, "--out", tmp_path / "baked")[0] == 0
    assert len(alive) > 100


def test_float8_weights_become_16_bits_where_they_change(file: Path, checkpoint: Path, tmp_path: Path, lora: Run) -> None:
    """Merged into 8 bits without a scale, most of a LoRA would be rounded away."""
    shutil.copytree(checkpoint, tmp_path / "models")
    weights = tmp_path / "models" / "transformer" / f"{STEM}.safetensors"
    narrow = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in load_file(weights).items()}
    save_file(narrow, weights)
    assert lora("bake", file, "--out", tmp_path / "baked", "--models", tmp_path / "models")[0] == 0
    made = load_file(tmp_path / "baked" / f"{STEM}.safetensors")
    assert made["proj_out.weight"].dtype == torch.bfloat16 and made["proj_out.bias"].dtype == torch.float8_e4m3fn
    assert made["image_projection.up.weight"].dtype == torch.float8_e4m3fn


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["bake", "FILE"], "Enter a value"),
        (["bake", "gone.safetensors", "--out", "OUT"], "There is no LoRA file"),
        (["bake", "FILE=3", "--out", "OUT"], "outside"),
        (["bake", "FILE", "--out", "FULL"], "has files in it"),
        (["bake", "BAD", "--out", "OUT"], "another kind of model"),
        (["bake", "FILE", "--out", "OUT", "--models", "EMPTY"], "missing"),
    ],
)
def test_what_keeps_a_bake_from_beginning(words: list[str], sentence: str, lora: Run, file: Path, tmp_path: Path) -> None:
    """Everything that keeps a bake from beginning is told before anything is written."""
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("mine")
    (tmp_path / "empty").mkdir()
    places = {
        "FILE": str(file),
        "OUT": str(tmp_path / "out"),
        "FULL": str(tmp_path / "full"),
        "EMPTY": str(tmp_path / "empty"),
        "BAD": str(GOLDEN / "lora" / "bad_unknown_modules.safetensors"),
    }
    for name, place in places.items():
        words = [word.replace(name, place) for word in words]
    code, _, err = lora(*words)
    assert code == 2 and sentence in err
    assert not (tmp_path / "out").exists() and [path.name for path in (tmp_path / "full").iterdir()] == ["x"]


def test_a_bake_that_fails_half_way_leaves_no_checkpoint(
    lora: Run, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No half file under a good name, and no config.json that would make it look like one."""

    def broken(tensor: torch.Tensor) -> memoryview:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bake, "_bytes", broken)
    code, _, errors = lora("bake", file, "--out", tmp_path / "out")
    assert code == 2 and "disk is full" in errors
    assert not (tmp_path / "out").exists() and [path.name for path in tmp_path.iterdir()] == [Path(file).name]


def test_a_stopped_bake_leaves_nothing(lora: Run, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stopped bake had to be cleared away by hand before the next one could begin. Files of others are never touched."""
    out = tmp_path / "out"
    with monkeypatch.context() as broken:
        broken.setattr(bake.shutil, "copyfile", raise_stop)
        assert lora("bake", file, "--out", out)[0] == 130
    assert [path.name for path in tmp_path.iterdir()] == [Path(file).name]
    for name in (bake.INDEX, f".{STEM}.part.safetensors", f"{STEM}.safetensors"):
        out.mkdir(exist_ok=True)
        (out / name).write_text("mine")
        assert lora("bake", file, "--out", out)[0] == 2 and (out / name).read_text() == "mine"
        (out / name).unlink()
    assert lora("bake", file, "--out", out)[0] == 0
    assert sorted(path.name for path in out.iterdir()) == ["config.json", f"{STEM}.safetensors"]


def test_two_bakes_into_one_folder(checkpoint: Path, file: Path, tmp_path: Path) -> None:
    """The later one wrote into the files of the earlier one, which said that all was well: half a file, or two strengths."""
    out, folder = tmp_path / "out", checkpoint / "transformer"
    bakes = [bake.bake([Lora(str(file), strength)], folder, out) for strength in (1.0, -1.0)]
    next(bakes[0])
    next(bakes[1])
    list(bakes[0])
    before = (out / f"{STEM}.safetensors").read_bytes()
    with pytest.raises(UserError) as error:
        list(bakes[1])
    assert error.value.problems[0].key == "folder_not_empty"
    assert (out / f"{STEM}.safetensors").read_bytes() == before and check_transformer(out)
    assert sorted(path.name for path in tmp_path.iterdir()) == [Path(file).name, "out"]


@pytest.mark.parametrize("place", ["rename", "rmdir"])
def test_a_folder_that_may_not_be_named_is_not_full(
    place: str, checkpoint: Path, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever kept a finished checkpoint from its name was told as "the folder has files in it", which it had not."""
    out = tmp_path / "out"
    out.mkdir()
    monkeypatch.setattr(Path, place, lambda *names: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    with pytest.raises(UserError) as error:
        list(bake.bake([Lora(str(file))], checkpoint / "transformer", out))
    (problem,) = error.value.problems
    assert (problem.key, problem.values["reason"]) == ("folder_not_writable", "Permission denied")
    assert {path.name for path in tmp_path.iterdir()} <= {Path(file).name, "out"}


@pytest.mark.parametrize("name", ["alpha_pattern_repetition_too_large", "shape_1e309", "tensor_name_lone_surrogate"])
def test_hostile_files_end_in_a_sentence(name: str, lora: Run) -> None:
    """A hostile LoRA file ends in a sentence; each of these used to end in a traceback."""
    code, output, errors = lora(CASES / f"lora_{name}.safetensors")
    assert code == 2 and output.count("\n") == 2 and "Traceback" not in errors


def raise_stop(*names: object) -> None:
    raise KeyboardInterrupt
