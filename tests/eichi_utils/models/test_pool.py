"""Test checkpoint folders: missing or damaged parts are named before work starts; loaded networks stay while they can."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from eichi_utils.models import pool as models
from eichi_utils.models.pool import ModelPool
from eichi_utils.models.requirements import ExecutionChoice, Needs
from eichi_utils.problems import Problem, UserError
from tests.eichi_utils.helpers import carry_out, found, request, say_everything

pytestmark = pytest.mark.slow

WEIGHTS = {
    "transformer": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
    "text_encoder_2": "model",
    "image_encoder": "model",
}


@pytest.fixture
def copy(checkpoint: Path, tmp_path: Path) -> Path:
    """Return a copy of the checkpoint to damage."""
    return Path(shutil.copytree(checkpoint, tmp_path / "copy"))


def problems_of(folder: Path, name: str = "framepack") -> tuple[Problem, ...]:
    """Return the problems that check() finds."""
    try:
        ModelPool(folder, device="cpu").check(name)
    except UserError as error:
        return say_everything(error.problems)
    return ()


def only(problems: tuple[Problem, ...]) -> Problem:
    (problem,) = problems
    assert problem.field == "models"
    return problem


def rewrite(path: Path, change: Callable[[dict], object]) -> None:
    """Change the tensors of a safetensors file."""
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def edit(path: Path, change: Callable[[dict], object]) -> None:
    """Change a JSON file."""
    document = json.loads(path.read_text(encoding="utf-8"))
    change(document)
    path.write_text(json.dumps(document), encoding="utf-8")


def test_a_whole_checkpoint_has_no_problem(checkpoint: Path) -> None:
    """A whole checkpoint with both transformers has no problem; one folder may serve both."""
    assert problems_of(checkpoint) == problems_of(checkpoint, "framepack_f1") == ()
    assert ModelPool(checkpoint, device="cpu").missing("framepack") == []


@pytest.mark.parametrize("component", WEIGHTS)
def test_weights_that_are_missing_misshapen_or_cut_off(component: str, copy: Path) -> None:
    """Each is named with file and tensor, from the file's header alone."""
    file = copy / component / f"{WEIGHTS[component]}.safetensors"
    whole = file.read_bytes()
    name = sorted(load_file(file))[3]

    rewrite(file, lambda tensors: tensors.pop(name))
    problem = only(problems_of(copy))
    assert problem.key == "checkpoint_tensor_missing"
    assert problem.values["folder"] == str(copy / component)
    assert name.endswith(problem.values["tensor"])

    file.write_bytes(whole)
    rewrite(file, lambda tensors: tensors.update({name: torch.zeros(3, 7)}))
    problem = only(problems_of(copy))
    assert (problem.key, problem.values["file"]) == ("checkpoint_tensor_shape", str(file))
    assert tuple(problem.values["actual"]) == (3, 7)
    assert name.endswith(problem.values["tensor"])

    for size in (0, 4, 100, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:size])
        problem = only(problems_of(copy))
        assert (problem.key, problem.values["file"], problem.values["actual"]) == ("checkpoint_file_damaged", str(file), size)

    file.write_bytes(b"<html>not found</html>" * 100)
    assert only(problems_of(copy)).key == "checkpoint_file_damaged"
    file.unlink()
    problem = only(problems_of(copy))
    assert (problem.key, problem.values["file"]) == ("checkpoint_file_missing", str(file))


def test_a_transformer_with_weights_of_another_model(copy: Path) -> None:
    """Unknown names mean another model; loading it anyway would make noise."""
    file = copy / "transformer" / "diffusion_pytorch_model.safetensors"
    rewrite(file, lambda tensors: tensors.update({"extra.weight": torch.zeros(1)}))
    problem = only(problems_of(copy))
    assert (problem.key, problem.values["tensor"]) == ("checkpoint_tensor_unknown", "extra.weight")


def test_a_missing_shard(copy: Path) -> None:
    """Files in parts: each part that the index names must be there and whole."""
    folder = copy / "transformer"
    whole = folder / "diffusion_pytorch_model.safetensors"
    tensors = load_file(whole)
    whole.unlink()
    names, index = sorted(tensors), {}
    for part, chosen in (("a", names[::2]), ("b", names[1::2])):
        save_file({name: tensors[name] for name in chosen}, folder / f"{part}.safetensors")
        index |= dict.fromkeys(chosen, f"{part}.safetensors")
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    assert problems_of(copy) == ()
    part = folder / "b.safetensors"
    data = part.read_bytes()
    part.write_bytes(data[: len(data) // 2])
    problem = only(problems_of(copy))
    assert (problem.key, problem.values["file"]) == ("checkpoint_file_damaged", str(part))
    part.unlink()
    problem = only(problems_of(copy))
    assert (problem.key, problem.values["file"]) == ("checkpoint_file_missing", str(part))


@pytest.mark.parametrize("component", WEIGHTS)
@pytest.mark.parametrize("text", ["{", "[]", '"x"', ""])
def test_a_configuration_that_is_not_json(component: str, text: str, copy: Path) -> None:
    """A broken download of a small file is named as readily as one of a large file."""
    (copy / component / "config.json").write_text(text)
    problem = only(problems_of(copy))
    assert (problem.key, problem.values["file"]) == ("checkpoint_config_damaged", str(copy / component / "config.json"))


@pytest.mark.parametrize(
    ("component", "change"),
    [
        ("transformer", {"num_layers": "two"}),
        ("vae", {"latent_channels": None}),
        ("text_encoder", {"hidden_size": "wide"}),
        ("text_encoder_2", {"hidden_size": "wide"}),
        ("image_encoder", {"hidden_act": "no such"}),
    ],
)
def test_a_configuration_with_values_no_model_can_have(component: str, change: dict, copy: Path) -> None:
    """Valid JSON with nonsense in it is a damaged model file, not a defect of the program."""
    edit(copy / component / "config.json", lambda document: document.update(change))
    problem = only(problems_of(copy))
    assert (problem.key, problem.values["file"]) == ("checkpoint_config_damaged", str(copy / component / "config.json"))


@pytest.mark.parametrize("component", [*WEIGHTS, "tokenizer", "tokenizer_2", "feature_extractor"])
def test_a_missing_component(component: str, copy: Path) -> None:
    """The folder of a missing component is named once, and no other problem is."""
    shutil.rmtree(copy / component)
    problem = only(problems_of(copy))
    assert (problem.key, problem.values["file"]) == ("checkpoint_file_missing", str(copy / component))


def test_tokenizers(copy: Path) -> None:
    """A template of other than 95 tokens would shift what is cut off in front of every prompt: said before work starts."""
    file = copy / "tokenizer" / "tokenizer.json"
    whole = file.read_text(encoding="utf-8")
    edit(file, lambda document: document["model"]["merges"].__delitem__(slice(-3, None)))
    problem = only(problems_of(copy))
    assert (problem.key, problem.values["folder"]) == ("checkpoint_tokenizer", str(file.parent))
    assert "95" in problem.values["reason"]
    for text in ("{", "", "{}", whole[: len(whole) // 2]):
        file.write_text(text, encoding="utf-8")
        problem = only(problems_of(copy))
        assert (problem.key, problem.values["folder"]) == ("checkpoint_tokenizer", str(file.parent))
    file.unlink()
    problem = only(problems_of(copy))
    assert (problem.key, problem.values["file"]) == ("checkpoint_file_missing", str(file))


def test_a_damaged_second_tokenizer_is_not_blamed_on_the_first(copy: Path) -> None:
    """A damaged second tokenizer is not blamed on the first, or the user would download the wrong folder again."""
    for file in (copy / "tokenizer_2").iterdir():
        file.write_text("{")
    problem = only(problems_of(copy))
    assert str(copy / "tokenizer_2") in (problem.values.get("folder", ""), problem.values.get("file", ""))


def test_all_problems_of_a_checkpoint_at_once(copy: Path) -> None:
    """All problems of a checkpoint are told at once, because nobody repairs 40 GB one file at a time."""
    shutil.rmtree(copy / "image_encoder")
    (copy / "vae" / "config.json").write_text("{")
    (copy / "tokenizer" / "tokenizer.json").unlink()
    file = copy / "transformer" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    assert {problem.key for problem in problems_of(copy)} == {
        "checkpoint_file_missing", "checkpoint_config_damaged", "checkpoint_file_damaged",
    }  # fmt: skip
    assert len(problems_of(copy)) == 4


def test_mending_is_noticed(copy: Path) -> None:
    """Checks are remembered by the state of the files: a mended checkpoint is good, a newly damaged one is not."""
    pool = ModelPool(copy, device="cpu")
    pool.check("framepack")
    file = copy / "vae" / "config.json"
    good = file.read_text()
    file.write_text("{")
    with pytest.raises(UserError):
        pool.check("framepack")
    file.write_text(good)
    pool.check("framepack")


def test_a_damaged_checkpoint_stops_a_run_before_it_works(copy: Path, pictures: list[str], tmp_path: Path) -> None:
    """The run raises the same problems; nothing was loaded and nothing written."""
    file = copy / "vae" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    pool = ModelPool(copy, device="cpu")
    with pytest.raises(UserError) as error:
        carry_out(request("single", pictures[0]), pool, tmp_path / "out")
    assert found(error.value.problems) == {("models", "checkpoint_file_damaged")}
    assert pool.networks.loaded == {}
    assert not (tmp_path / "out").exists()


def test_folders_devices_and_kernels_that_do_not_exist(checkpoint: Path, tmp_path: Path) -> None:
    """A folder, device or kernel that does not exist is told with the name of its flag."""
    for settings, expected in (
        ({"models": tmp_path / "gone"}, ("models", "models_missing")),
        ({"models": checkpoint, "device": "warp"}, ("device", "device_unknown")),
        ({"models": checkpoint, "device": "cuda:99"}, ("device", "device_unknown")),
        ({"models": checkpoint, "device": "mps"}, ("device", "device_unknown")),
        ({"models": checkpoint, "device": "cpu", "attention": "magic"}, ("attention", "attention_unusable")),
    ):
        with pytest.raises(UserError) as error:
            ModelPool(**settings)
        assert found(error.value.problems) == {expected}


def test_networks_are_loaded_once(checkpoint: Path, monkeypatch: pytest.MonkeyPatch, copy: Path) -> None:
    """A network is loaded again only for another folder or precision, because reading 26 GB takes a minute."""
    loads = []
    monkeypatch.setattr(models, "load_transformer", lambda *a, load=models.load_transformer: loads.append(a) or load(*a))
    monkeypatch.setattr(models, "load_vae", lambda *a, load=models.load_vae: loads.append(a) or load(*a))
    shutil.copytree(copy / "transformer", copy / "transformer_f1")
    pool = ModelPool(copy, device="cpu")
    for _ in range(3):
        with pool.transformer("framepack") as net, pool.vae() as vae:
            kept = net, vae
    assert len(loads) == 2
    with pool.transformer("framepack_f1") as net:
        assert net.proj_out is not kept[0].proj_out
    assert [Path(a[0]).name for a in loads] == ["transformer", "vae", "transformer_f1"]
    # One slot for both transformers.
    assert set(pool.networks.loaded) == {"transformer", "vae"}
    with pool.transformer("framepack"), pool.vae() as vae:
        assert vae is kept[1]
    assert len(loads) == 4
    # Where one folder serves both modes, changing the mode loads nothing.
    pool = ModelPool(checkpoint, device="cpu")
    for name in ("framepack", "framepack_f1", "framepack"):
        with pool.transformer(name):
            pass
    assert len(loads) == 5


def test_what_may_not_stay_is_dropped(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks that may not stay are dropped before another is loaded, so that both are never held together. Until a choice
    is made, all stay."""
    pool = ModelPool(checkpoint, device="cpu")
    transformer = partial(pool.transformer, "framepack")
    for loan in (transformer, pool.vision, pool.vae, transformer):
        with loan():
            pass
    assert list(pool.networks.loaded) == ["image_encoder", "vae", "transformer"]
    beside = {"transformer": frozenset({"vae"}), "image_encoder": frozenset()}
    pool.follow_choice(ExecutionChoice("auto", Needs(0, 0), beside=beside))
    with transformer():
        assert list(pool.networks.loaded) == ["vae", "transformer"]
    load, there = pool._load_vision, []
    monkeypatch.setattr(pool, "_load_vision", lambda: there.append([*pool.networks.loaded]) or load())
    with pool.vision():
        assert list(pool.networks.loaded) == ["image_encoder"] and there == [[]]


def test_the_text_encoder_never_stays(checkpoint: Path) -> None:
    """The text encoder's 15 GB, which only prompts need, stayed for good without a card, beside a transformer of 26 GB."""
    pool = ModelPool(checkpoint, device="cpu")
    with pool.text():
        assert list(pool.networks.loaded) == ["text_encoder"]
    assert pool.networks.loaded == {}
