"""Test LoRA files that do not fit, hold NaN or infinity, are known in part, or change meanwhile."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffusers_helper.models import linear
from diffusers_helper.models.transformer import PackedTransformer, TransformerConfig
from eichi_utils.models.hub import ModelFiles
from eichi_utils.models.lora_binding import fingerprints, read_updates, shapes_of
from eichi_utils.models.lora_fit import fit_problems, remarks, reports, shapes_in
from eichi_utils.models.pool import ModelPool
from eichi_utils.problems import UserError
from eichi_utils.requests import loras
from eichi_utils.requests.loras import Lora
from tests.eichi_utils.helpers import carry_out, changed, found, notices_of, request
from tests.eichi_utils.render.test_effects import differ, latents_of
from tests.lora_files import write_lora

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("kind", ["shape", "no_modules", "dora", "not_finite"])
def test_a_file_that_does_not_fit_fails_the_job_before_it_starts(
    kind: str, files: dict, pool: ModelPool, pictures: list, tmp_path: Path, loads: list
) -> None:
    """A LoRA that does not fit is named with its slot before anything is loaded or written."""
    path = tmp_path / "bad.safetensors"
    tensors = load_file(files["kohya_framepack"])
    if kind == "shape":
        tensors["lora_unet_proj_out.lora_up.weight"] = torch.zeros(7, 2)
    elif kind == "not_finite":
        tensors["lora_unet_proj_out.alpha"] = torch.tensor(float("nan"))
    elif kind == "dora":
        tensors["lora_unet_proj_out.dora_scale"] = torch.zeros(64, 1)
    else:
        tensors = {f"unknown_{name}": tensor for name, tensor in tensors.items()}
    save_file(tensors, path)
    it = request("single", pictures[0], loras=(Lora(files["peft"]), Lora(str(path))))
    with pytest.raises(UserError) as error:
        carry_out(it, pool, tmp_path / "out")
    assert found(error.value.problems) == {("loras/1/file", f"lora_{kind}")}
    assert error.value.problems[0].values["file"] == str(path)
    assert not (tmp_path / "out").exists() and loads == []


@pytest.mark.parametrize("merge", [False, True])
def test_numbers_that_are_none_are_found_before_the_job_and_read_once(
    merge: bool, files: dict, checkpoint: Path, pictures: list, tmp_path: Path, loads: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NaN in a LoRA file was not found and made every film black. A file is now checked once, however often it is asked
    about."""
    read, look = [], loras.first_not_finite
    monkeypatch.setattr(loras, "first_not_finite", lambda *given: read.append(given[0]) or look(*given))
    path, pool = tmp_path / "a.safetensors", ModelPool(checkpoint, device="cpu")
    shutil.copy(files["peft"], path)
    it = request("single", pictures[0], loras=(Lora(str(path)), Lora(str(path), 0.1)), merge_loras=merge)
    assert fit_problems(it.loras, pool.files, "framepack") == ()
    carry_out(it, pool, tmp_path / "good")
    assert read == [path] and len(loads) == 1
    key = "transformer.single_transformer_blocks.0.attn.to_k.lora_B.weight"
    tensors = load_file(path)
    tensors[key][-1, -1] = float("inf")
    save_file(tensors, path)
    with pytest.raises(UserError) as error:
        carry_out(it, pool, tmp_path / "out")
    assert [problem.values for problem in error.value.problems] == [{"file": str(path), "name": key}] * 2
    assert found(error.value.problems) == {(f"loras/{number}/file", "lora_not_finite") for number in (0, 1)}
    # As a page sees it.
    assert found(it.check()) == set()
    assert found(fit_problems(it.loras, pool.files, "framepack")) == found(error.value.problems)
    assert read == [path, path] and len(loads) == 1 and not (tmp_path / "out").exists()


def test_keys_that_are_not_used_may_hold_anything(files: dict, checkpoint: Path, tmp_path: Path) -> None:
    """A text encoder's factors are passed over, whatever is in them."""
    extra = {"lora_te1_x.lora_up.weight": torch.full((2, 2), float("nan"))}
    save_file({**load_file(files["peft"]), **extra}, tmp_path / "a.safetensors")
    (report,) = reports((Lora(str(tmp_path / "a.safetensors")),), ModelFiles(checkpoint), "framepack")
    assert len(report.text_encoder) == 1


@pytest.mark.parametrize(
    ("extra", "key"),
    [
        (("proj_out.lora_B.bias", "proj_out.diff_b"), "lora_biases"),
        (("proj_out.lora_B.bias", "something"), "lora_others"),
        (("no_such.lora_A.weight", "proj_out.bias"), "lora_partial"),
    ],
)
def test_what_is_left_out_is_called_by_its_name(extra: tuple, key: str, files: dict, checkpoint: Path, tmp_path: Path) -> None:
    """If all updates fit and only biases do not, the report said "52 of 52 updates fit; the rest is left out". Now it names
    what is left out."""
    path = tmp_path / "a.safetensors"
    save_file({**load_file(files["peft"]), **{name: torch.zeros(2, 2) for name in extra}}, path)
    (remark,) = remarks((Lora(str(path)),), ModelFiles(checkpoint), "framepack")
    assert remark.key == key and remark.values["example"] in extra
    if key != "lora_partial":
        assert remark.values["count"] == len(extra)


def test_a_partly_known_file_is_used_and_said(files: dict, pool: ModelPool, pictures: list, tmp_path: Path) -> None:
    path = tmp_path / "partly.safetensors"
    extra = {f"lora_unet_no_such_block.{end}.weight": torch.zeros(2, 2) for end in ("lora_up", "lora_down")}
    extra["lora_te_text_model.lora_up.weight"] = torch.zeros(2, 2)
    save_file({**load_file(files["kohya_framepack"]), **extra}, path)
    it = request("single", pictures[0], loras=(Lora(str(path)),))
    said = {notice.key: notice.values for notice in notices_of(carry_out(it, pool, tmp_path / "out"))}
    assert set(said) == {"lora_partial", "lora_text_encoder"}
    assert said["lora_partial"]["found"] == said["lora_partial"]["used"] + 1
    assert said["lora_text_encoder"] == {"file": str(path), "count": 1}
    whole = changed(it, loras=(Lora(files["kohya_framepack"]),))
    assert torch.equal(latents_of(it, pool), latents_of(whole, pool))
    assert notices_of(carry_out(whole, pool, tmp_path / "out", "other")) == []


def test_a_file_that_vanishes_or_changes_meanwhile(files: dict, checkpoint: Path, tmp_path: Path) -> None:
    """A LoRA file that vanishes between two sections is reported, and another file under the same name is read anew."""
    pool = ModelPool(checkpoint, device="cpu")
    path = tmp_path / "a.safetensors"
    shutil.copy(files["peft"], path)
    with pool.transformer("framepack", "auto", (Lora(str(path)),)) as net:
        first = next(linear.branches(net)).up.clone()
    shutil.copy(files["dotted"], path)
    with pool.transformer("framepack", "auto", (Lora(str(path)),)) as net:
        assert not torch.equal(next(linear.branches(net)).up, first)
    path.unlink()
    with pytest.raises(UserError) as error, pool.transformer("framepack", "auto", (Lora(str(path)),)):
        pass
    assert found(error.value.problems) == {("loras/0/file", "lora_missing")}
    with pool.transformer("framepack") as net:
        assert list(linear.branches(net)) == []


def test_the_alpha_of_peft_lies_beside_the_file(checkpoint: Path, tmp_path: Path) -> None:
    """PEFT saves adapter_model.safetensors with adapter_config.json; without it a strength would be silently another one."""
    shapes = shapes_in(ModelFiles(checkpoint), "framepack")
    path = tmp_path / "adapter_model.safetensors"
    plain = write_lora(path, "peft_default", shapes, rank=2, only=("proj_out",))["proj_out"]
    deltas = {}
    for text in (None, '{"r": 2, "lora_alpha": 6, "alpha_pattern": {}}', '{"r": 2, "lora_alpha": 6, "alpha_pattern": []}'):
        if text is not None:
            (tmp_path / "adapter_config.json").write_text(text)
        ((update,),) = read_updates((Lora(str(path)),), shapes)
        deltas[text] = update.delta()
    scales = [torch.linalg.norm(delta) / torch.linalg.norm(plain) for delta in deltas.values()]
    assert torch.stack(scales).tolist() == pytest.approx([1.0, 3.0, 3.0])


@pytest.mark.parametrize("merge", [False, True])
def test_another_alpha_beside_the_file_is_another_lora(merge: bool, checkpoint: Path, tmp_path: Path) -> None:
    """adapter_config.json was changed, and the old strength acted on until the program was started again; and an alpha in it
    that is no number passed as good."""
    pool = ModelPool(checkpoint, device="cpu")
    path, config = tmp_path / "adapter_model.safetensors", tmp_path / "adapter_config.json"
    write_lora(path, "peft_default", shapes_in(ModelFiles(checkpoint), "framepack"), rank=2, only=("proj_out",))
    chosen, prints, seen = (Lora(str(path), 1.0),), set(), []
    for alpha in (None, 2, 6):
        if alpha:
            config.write_text(f'{{"r": 2, "lora_alpha": {alpha}}}')
        prints.add(fingerprints(chosen))
        with pool.transformer("framepack", "auto", chosen, merge) as net:
            seen.append(net.proj_out(torch.ones(1, net.proj_out.in_features)))
    assert len(prints) == 3 and torch.equal(seen[0], seen[1]) and differ(seen[1], seen[2])
    assert fit_problems(chosen, pool.files, "framepack") == ()
    config.write_text('{"r": 2, "lora_alpha": NaN}')
    with pytest.raises(UserError) as error:
        reports(chosen, pool.files, "framepack")
    assert error.value.problems[0].values == {"file": str(path), "name": "lora_alpha"}
    assert found(fit_problems(chosen, pool.files, "framepack")) == {("loras/0/file", "lora_not_finite")}


def test_before_the_download_files_are_judged_by_the_published_model(files: dict, tmp_path: Path) -> None:
    """40 GB are not fetched for a LoRA that cannot be used."""
    nothing = ModelFiles(tmp_path)
    shapes = shapes_in(nothing, "framepack_f1")
    with torch.device("meta"):
        assert shapes == shapes_of(PackedTransformer(TransformerConfig()))
    assert shapes["single_transformer_blocks.39.proj_out"] == (3072, 15360) and len(shapes) == 553
    with pytest.raises(UserError) as error:
        reports((Lora(files["peft"]),), nothing, "framepack_f1")
    assert found(error.value.problems) == {("loras/0/file", "lora_shape")}


def test_shapes_are_the_same_with_and_without_weights(pool: ModelPool, checkpoint: Path) -> None:
    for precision in ("auto", "int8"):
        with pool.transformer("framepack", precision) as net:
            assert shapes_of(net) == shapes_in(ModelFiles(checkpoint), "framepack")


@pytest.mark.parametrize("merge", [False, True])
def test_a_file_that_becomes_shorter_while_it_is_read(
    merge: bool, files: dict, checkpoint: Path, tmp_path: Path, monkeypatch
) -> None:
    """A mapped one ended the whole program with SIGBUS. It is a problem of its slot, and the network stays usable."""
    path = tmp_path / "a.safetensors"
    shutil.copy(files["peft"], path)
    judge = loras.layouts

    def judged(*given):
        found = judge(*given)
        os.truncate(path, path.stat().st_size // 2)
        return found

    pool = ModelPool(checkpoint, device="cpu")
    with monkeypatch.context() as changed_meanwhile:
        changed_meanwhile.setattr("eichi_utils.models.lora_binding.layouts", judged)
        with pytest.raises(UserError) as error, pool.transformer("framepack", "auto", (Lora(str(path)),), merge):
            pass
    assert found(error.value.problems) == {("loras/0/file", "lora_changed")}
    with pool.transformer("framepack") as net:
        assert list(linear.branches(net)) == []


def test_updates_are_no_windows_into_their_file(files: dict, checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    shutil.copy(files["peft"], path)
    (updates,) = read_updates((Lora(str(path)),), shapes_in(ModelFiles(checkpoint), "framepack"))
    held = list(updates)
    before = [update.delta() for update in held]
    os.truncate(path, 100)
    assert all(torch.equal(update.delta(), delta) for update, delta in zip(held, before, strict=True))
