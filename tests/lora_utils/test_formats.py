"""Test every family of LoRA files at every layer against its formula, and files that cannot be used."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_utils.factors import Hadamard, Kronecker, merged, updates
from lora_utils.files import LoraError, read_header
from lora_utils.formats import Report, analyse, factor_numbers
from tests.lora_files import FAMILIES, peft_metadata, write_lora

FUSED = {"HunyuanVideo", "ComfyUI"}


def read(path: Path, shapes) -> tuple[dict[str, torch.Tensor], Report]:
    """Return what a file adds to each layer, and its report."""
    header = read_header(path)
    layout = analyse(header, shapes, str(path))
    tensors = load_file(path)
    found: dict[str, torch.Tensor] = {}
    for update in updates(layout, tensors.__getitem__, header.metadata):
        found[update.layer] = found.get(update.layer, 0) + update.delta()
    return found, layout.report


def refused(path: Path, shapes) -> LoraError:
    with pytest.raises(LoraError) as caught:
        analyse(read_header(path), shapes, str(path))
    assert caught.value.values["file"] == str(path)
    return caught.value


def change(path: Path, edit) -> None:
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_adds_what_its_formula_says(family, shapes, tmp_path):
    """Every family adds what its formula says to each layer it has a name for: blocks, modulation, refiner, embedders, head."""
    expected = write_lora(tmp_path / "a.safetensors", family, shapes, rank=3, alpha=2.0)
    found, report = read(tmp_path / "a.safetensors", shapes)
    assert set(found) == set(expected)
    for layer, delta in expected.items():
        assert found[layer].shape == delta.shape == (shapes[layer][0], torch.Size(shapes[layer][1:]).numel())
        assert (found[layer] - delta).abs().max() <= 1e-6, layer
        assert delta.abs().max() > 1e-3
    naming = FAMILIES[family][0]
    # HunyuanVideo has no image projection and no embedder for clean latents.
    without = {"image_projection.up", "image_projection.down", *(name for name in shapes if name.startswith("clean_x"))}
    assert set(expected) == set(shapes) - (without if naming in FUSED else set())
    assert report.ranks == (3,) and report.used == report.found and not report.partial
    assert report.applied == len(expected) and report.layers == len(shapes)


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("kohya_framepack", "kohya, FramePack"),
        ("kohya_hunyuan", "kohya, HunyuanVideo"),
        ("peft", "PEFT, FramePack"),
        ("diffusion_pipe", "diffusion_model, HunyuanVideo"),
        ("dotted", "lora_down/lora_up, FramePack"),
        ("loha", "LoHa, FramePack"),
        ("lokr_hunyuan", "LoKr, HunyuanVideo"),
    ],
)
def test_the_family_is_named(family, name, shapes, tmp_path):
    write_lora(tmp_path / "a.safetensors", family, shapes)
    assert read(tmp_path / "a.safetensors", shapes)[1].format == name


def test_comfyui_is_told_from_hunyuanvideo(shapes, tmp_path):
    """ComfyUI's and HunyuanVideo's names are told apart although both flatten to the same, and the report names the source."""
    write_lora(tmp_path / "a.safetensors", "comfyui", shapes, only=("transformer_blocks.0.attn",))
    assert read(tmp_path / "a.safetensors", shapes)[1].format == "diffusion_model, ComfyUI"


def test_the_alpha_of_diffusers_metadata_counts(shapes, tmp_path):
    """The alpha in diffusers' metadata counts: without it a file with alpha 8 and rank 2 would act with a quarter of its
    strength."""
    plain = write_lora(tmp_path / "a.safetensors", "peft", shapes, rank=2)
    write_lora(tmp_path / "b.safetensors", "peft", shapes, rank=2, metadata=peft_metadata(8.0, 2))
    found, _ = read(tmp_path / "b.safetensors", shapes)
    assert all(torch.allclose(found[layer], 4 * delta) for layer, delta in plain.items())


def test_rslora_divides_by_the_root_of_the_rank(shapes, tmp_path):
    metadata = peft_metadata(8.0, 4)
    config = {**json.loads(metadata["lora_adapter_metadata"]), "transformer.use_rslora": True}
    plain = write_lora(tmp_path / "a.safetensors", "peft", shapes, rank=4)
    write_lora(
        tmp_path / "b.safetensors", "peft", shapes, rank=4, metadata={**metadata, "lora_adapter_metadata": json.dumps(config)}
    )
    found, _ = read(tmp_path / "b.safetensors", shapes)
    assert all(torch.allclose(found[layer], 4 * delta) for layer, delta in plain.items())


@pytest.mark.parametrize("text", ["", "{}", '{"text_encoder.lora_alpha": "x"}', '{"lora_alpha": null, "alpha_pattern": null}'])
def test_metadata_that_says_nothing_changes_nothing(text, shapes, tmp_path):
    plain = write_lora(tmp_path / "a.safetensors", "peft", shapes, metadata={"lora_adapter_metadata": text})
    found, _ = read(tmp_path / "a.safetensors", shapes)
    assert all(torch.equal(found[layer], delta) for layer, delta in plain.items())


def test_lokr_of_two_whole_matrices(shapes, tmp_path):
    """A LoKr of two whole matrices has no rank, so its alpha scales nothing, although LyCORIS writes one."""
    w1, w2 = torch.randn(4, 4), torch.randn(8, 8)
    key = "lycoris_transformer_blocks_0_attn_to_q"
    tensors = {f"{key}.lokr_w1": w1, f"{key}.lokr_w2": w2, f"{key}.alpha": torch.tensor(1e10)}
    save_file(tensors, tmp_path / "a.safetensors")
    found, report = read(tmp_path / "a.safetensors", shapes)
    assert torch.equal(found["transformer_blocks.0.attn.to_q"], torch.kron(w1, w2)) and report.ranks == ()


def test_lokr_stays_small(shapes, tmp_path):
    """The product of LoKr's two matrices, as large as the weight, is made only for merging."""
    write_lora(tmp_path / "a.safetensors", "lokr", shapes, only=("transformer_blocks.0.ff",))
    header = read_header(tmp_path / "a.safetensors")
    tensors = load_file(tmp_path / "a.safetensors")
    for update in updates(analyse(header, shapes), tensors.__getitem__):
        assert isinstance(update, Kronecker)
        assert update.left.numel() + update.right.numel() < torch.Size(shapes[update.layer]).numel() / 2


def test_a_partly_known_file_is_used_as_far_as_it_goes(shapes, tmp_path):
    """A partly known file is used as far as possible; what is left out is counted and named, but keys of text encoders are
    no fault."""
    path = tmp_path / "a.safetensors"
    expected = write_lora(path, "kohya_framepack", shapes, only=("transformer_blocks.0.attn.to_q",))

    def edit(tensors):
        tensors["lora_unet_no_such_block_0.lora_down.weight"] = torch.zeros(2, 32)
        tensors["lora_unet_no_such_block_0.lora_up.weight"] = torch.zeros(32, 2)
        # Half an update is none.
        tensors["lora_unet_transformer_blocks_0_attn_to_k.lora_up.weight"] = torch.zeros(32, 2)
        tensors["something_else"] = torch.zeros(3)
        tensors["lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_up.weight"] = torch.zeros(32, 2)

    change(path, edit)
    found, report = read(path, shapes)
    assert set(found) == set(expected)
    assert (report.used, report.found, report.applied) == (1, 3, 1) and report.partial
    assert len(report.unknown) == 4 and len(report.text_encoder) == 1


def test_two_adapters_of_one_layer_both_count(shapes, tmp_path):
    """The first of them was lost without a word, and the report said that everything fits."""
    path = tmp_path / "a.safetensors"
    layer = "transformer_blocks.0.attn.to_q"
    factors = {
        f"{layer}.lora_{side}.{adapter}.weight": torch.randn(*sides, generator=torch.Generator().manual_seed(seed))
        for seed, (adapter, side, sides) in enumerate(
            (adapter, side, sides) for adapter in ("default", "style") for side, sides in (("A", (2, 32)), ("B", (32, 2)))
        )
    }
    save_file(factors, path)
    found, report = read(path, shapes)
    wanted = sum(factors[f"{layer}.lora_B.{a}.weight"] @ factors[f"{layer}.lora_A.{a}.weight"] for a in ("default", "style"))
    assert torch.allclose(found[layer], wanted, atol=1e-6)
    assert (report.used, report.found, report.applied, report.unknown) == (2, 2, 1, ())


def test_an_alpha_that_is_no_number_is_refused(shapes, tmp_path):
    """An alpha of NaN or infinity was found only when the model was being loaded, with an error that named no file."""
    path = tmp_path / "a.safetensors"
    write_lora(path, "dotted", shapes, only=("proj_out",))
    change(path, lambda tensors: tensors.update({"proj_out.alpha": torch.ones(2)}))
    error = refused(path, shapes)
    assert (error.key, error.values["layer"], error.values["actual"]) == ("alpha", "proj_out.alpha", "2")


@pytest.mark.parametrize("side", ["lora_up", "lora_down"])
def test_a_wrong_shape_is_refused_with_layer_and_sizes(side, shapes, tmp_path):
    """A wrong shape in a file that otherwise fits is refused with its layer and sizes: half of a LoRA would look like a weak
    one."""
    path = tmp_path / "a.safetensors"
    write_lora(path, "kohya_hunyuan", shapes)
    key = f"lora_unet_double_blocks_1_img_attn_qkv.{side}.weight"
    change(path, lambda tensors: tensors.update({key: torch.zeros(3 * 32 + 3, 2) if side == "lora_up" else torch.zeros(2, 64)}))
    error = refused(path, shapes)
    assert error.key == "shape" and "img_attn_qkv" in error.values["layer"]
    assert (error.values["expected"], error.values["actual"]) == ("96x32", "99x32" if side == "lora_up" else "96x64")


def test_factors_that_do_not_fit_each_other(shapes, tmp_path):
    path = tmp_path / "a.safetensors"
    write_lora(path, "dotted", shapes, only=("proj_out",))
    change(path, lambda tensors: tensors.update({"proj_out.lora_down.weight": torch.zeros(5, 32)}))
    error = refused(path, shapes)
    assert (error.key, error.values["layer"]) == ("factors", "proj_out")
    assert set(error.values["factors"].split(", ")) == {"down 5x32", "up 64x2"}


def test_a_file_for_another_model_is_refused(shapes, tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"lora_unet_blocks_0_self_attn_q.lora_up.weight": torch.zeros(8, 2)}, path)
    error = refused(path, shapes)
    assert error.key == "incomplete"
    other = {f"lora_unet_blocks_0_self_attn_q.lora_{end}.weight": torch.zeros(8, 8) for end in ("up", "down")}
    save_file({"lora_te1_x.lora_up.weight": torch.zeros(1), **other}, path)
    error = refused(path, shapes)
    assert error.key == "no_modules" and error.values["example"].startswith("lora_unet_blocks_0")


HALF_LOHA = {f"lycoris_proj_out.hada_w{name}": (32, 32) for name in ("1_a", "1_b", "2_a")}


@pytest.mark.parametrize(
    ("tensors", "key", "said"),
    [
        ({}, "empty", {}),
        ({"lora_te1_x.lora_up.weight": (4, 2), "text_encoder.y.lora_A.weight": (2, 4)}, "text_encoder", {"count": 2}),
        ({"proj_out.lora_A.weight": (2, 32)}, "incomplete", {"absent": "proj_out.lora_B.weight"}),
        ({"up.lora_B.default.weight": (64, 2)}, "incomplete", {"absent": "up.lora_A.default.weight"}),
        ({"lora_unet_proj_out.lora_up.weight": (64, 2)}, "incomplete", {"absent": "lora_unet_proj_out.lora_down.weight"}),
        (HALF_LOHA, "incomplete", {"absent": "lycoris_proj_out.hada_w2_b"}),
        ({"proj_out.lora_A.weight": (0, 32), "proj_out.lora_B.weight": (64, 0)}, "rank_zero", {"layer": "proj_out"}),
        ({"proj_out.weight": (64, 32), "proj_out.bias": (64,)}, "no_factors", {"example": "proj_out.bias"}),
        ({"emb_params": (1, 64)}, "no_factors", {"example": "emb_params"}),
    ],
)
def test_files_of_which_nothing_can_be_used_are_told_apart(tensors, key, said, shapes, tmp_path):
    """Unusable files are told apart: all were "for another kind of model", and those of rank 0 "of another size: proj_out is
    0x0"."""
    path = tmp_path / "a.safetensors"
    save_file({name: torch.zeros(*sides) for name, sides in tensors.items()}, path)
    error = refused(path, shapes)
    assert error.key == key and said.items() <= error.values.items()


@pytest.mark.parametrize("end", ["dora_scale", "lora_magnitude_vector.weight", "lora_magnitude_vector.default.weight"])
def test_dora_is_refused(end, shapes, tmp_path):
    """DoRA is refused: it normalises the sum of weight and update, so that adding it like a LoRA would give another result."""
    path = tmp_path / "a.safetensors"
    write_lora(path, "peft", shapes)
    change(path, lambda tensors: tensors.update({f"transformer.proj_out.{end}": torch.zeros(64)}))
    assert refused(path, shapes).key == "dora"


@pytest.mark.parametrize("end", ["lora_mid.weight", "lokr_t2", "hada_t1"])
def test_tuckers_core_is_refused(end, shapes, tmp_path):
    """A Tucker core is refused. It was left out and the rest of its layer added, which is another update than the author's."""
    path = tmp_path / "a.safetensors"
    write_lora(path, "kohya_framepack", shapes)
    change(path, lambda tensors: tensors.update({f"lora_unet_proj_out.{end}": torch.zeros(2, 2)}))
    assert refused(path, shapes).key == "tucker"


def test_merging_rounds_once(shapes, tmp_path):
    """Merging adds in float32 and rounds once to the weight's dtype; 8-bit floats without a scale become 16 bits, or most of
    the update would be lost."""
    write_lora(tmp_path / "a.safetensors", "dotted", shapes, only=("proj_out",), size=0.01)
    tensors = load_file(tmp_path / "a.safetensors")
    (update,) = updates(analyse(read_header(tmp_path / "a.safetensors"), shapes), tensors.__getitem__)
    weight = torch.randn(shapes["proj_out"])
    exact = weight + 0.7 * update.delta() - 0.4 * update.delta()
    assert torch.allclose(merged(weight, [(update, 0.7), (update, -0.4)]), exact, atol=1e-6)
    half = merged(weight.bfloat16(), [(update, 0.5)])
    assert torch.equal(half, (weight.bfloat16().float() + 0.5 * update.delta()).bfloat16())
    assert torch.equal(merged(weight, [(update, 0.0)]), weight)
    assert merged(weight.to(torch.float8_e4m3fn), [(update, 1.0)]).dtype == torch.bfloat16


def test_loha_stays_as_small_as_its_file(shapes, tmp_path):
    """LoHa was held as one product of rank * rank: 4.5 times the file at rank 9, and more than the weights from rank 40 on."""
    path = tmp_path / "a.safetensors"
    write_lora(path, "loha", shapes, rank=9)
    header, tensors = read_header(path), load_file(path)
    layout = analyse(header, shapes)
    for update in updates(layout, tensors.__getitem__):
        assert isinstance(update, Hadamard)
    held = sum(f.numel() for u in updates(layout, tensors.__getitem__) for f in (u.up_1, u.down_1, u.up_2, u.down_2))
    assert held == sum(count for _, count in factor_numbers(layout, header.shapes))
    assert held == sum(tensor.numel() for name, tensor in tensors.items() if not name.endswith(".alpha"))


def test_names_are_read_whatever_stands_before_them(shapes, tmp_path):
    """Prefixes pile up as files go from tool to tool."""
    for prefix in (
        "model.diffusion_model.",
        "base_model.model.transformer.",
        "module.",
        "lora_transformer_",
        "unet.",
        "_orig_mod.",
        "base_model.model._orig_mod.",
    ):
        tensors = {f"{prefix}proj_out.lora_A.weight": torch.ones(1, 32), f"{prefix}proj_out.lora_B.weight": torch.ones(64, 1)}
        save_file(tensors, tmp_path / "a.safetensors")
        assert set(read(tmp_path / "a.safetensors", shapes)[0]) == {"proj_out"}


def test_files_are_the_callers(shapes, tmp_path):
    """Judging a file reads its header alone and leaves the file as it was."""
    path = tmp_path / "a.safetensors"
    write_lora(path, "peft", shapes)
    shutil.copy(path, tmp_path / "b.safetensors")
    analyse(read_header(path), shapes)
    assert path.read_bytes() == (tmp_path / "b.safetensors").read_bytes()
