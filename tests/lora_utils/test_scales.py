"""Test the scales of LoRA files in the ways in which trainers store them and users set them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_utils.factors import updates
from lora_utils.files import LoraError, read_header
from lora_utils.formats import analyse
from lora_utils.peft import KEY, config_of, first_unread, scaling_metadata
from lora_utils.scales import check_alphas, read_number
from tests.lora_files import peft_metadata, write_lora

CASES = Path(__file__).parents[1] / "cases"
STABILISED = CASES / "lora_musubi_fork_rslora_flag.safetensors"
DORA = CASES / "lora_musubi_fork_dora_layer_not_refused.safetensors"


def shapes_of(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the layers that a file of musubi-tuner changes, by the network's names."""
    tensors = load_file(path)
    names = {key.split(".")[0] for key in tensors if key.endswith(".lora_up.weight")}
    plain = {
        name.replace("lora_unet_", "").replace("_blocks_0_attn_", "_blocks.0.attn.").replace("out_0", "out.0") for name in names
    }
    return dict.fromkeys(plain, (192, 192))


def scales(path: Path, shapes: dict) -> set[float]:
    """Return the scales of all updates, after the file was checked as before a film."""
    header = read_header(path)
    layout = analyse(header, shapes, str(path))
    check_alphas(path, header, layout)
    return {round(update.scale, 6) for update in updates(layout, load_file(path).__getitem__, scaling_metadata(path, header))}


def refused(path: Path, shapes: dict) -> LoraError:
    with pytest.raises(LoraError) as caught:
        scales(path, shapes)
    assert caught.value.values["file"] == str(path)
    return caught.value


def edited(source: Path, target: Path, edit, metadata: dict[str, str] | None = None) -> Path:
    tensors = load_file(source)
    edit(tensors)
    save_file(tensors, target, metadata)
    return target


def test_a_flag_says_that_the_root_of_the_rank_divides(tmp_path: Path) -> None:
    """A branch of musubi-tuner writes it as a tensor; it was called an unknown key, and alpha / rank half the strength."""
    shapes, tensors = shapes_of(STABILISED), load_file(STABILISED)
    alpha = tensors["lora_unet_transformer_blocks_0_attn_to_q.alpha"].item()
    assert len(shapes) == 8 and scales(STABILISED, shapes) == {round(alpha / math.sqrt(4), 6)}
    assert analyse(read_header(STABILISED), shapes).report.unknown == ()
    for value in (torch.tensor(False), torch.tensor([0], dtype=torch.uint8)):
        off = edited(STABILISED, tmp_path / "off.safetensors", lambda t, value=value: t.update(use_rslora_flag=value))
        assert scales(off, shapes) == {round(alpha / 4, 6)}
    two = edited(STABILISED, tmp_path / "two.safetensors", lambda t: t.update(use_rslora_flag=torch.ones(2)))
    assert refused(two, shapes).key == "alpha"


def test_the_flag_is_for_low_rank_products_alone(shapes, tmp_path: Path) -> None:
    """The flag rs_lora counts for low-rank products alone, because its trainer ignores it for LoHa and LoKr."""
    path = tmp_path / "a.safetensors"
    write_lora(path, "loha", shapes, rank=4, alpha=8.0, only=("proj_out",))
    edited(path, path, lambda tensors: tensors.update(use_rslora_flag=torch.tensor(True)))
    assert scales(path, shapes) == {2.0}


def test_lycoris_has_multiplied_its_alpha_already(shapes, tmp_path: Path) -> None:
    """LyCORIS stores alpha * sqrt(rank) if told rs_lora, so that every program that divides by the rank is right."""
    arguments = {"ss_network_module": "lycoris.kohya", "ss_network_args": '{"rs_lora": "True", "rank_stabilized": "True"}'}
    path = tmp_path / "a.safetensors"
    write_lora(path, "kohya_framepack", shapes, rank=4, alpha=6.0 * 2, metadata=arguments)
    assert scales(path, shapes) == {6.0 / 2}


@pytest.mark.parametrize("stabilised", [True, False, None])
def test_peft_says_it_in_its_config(stabilised: bool | None, shapes, tmp_path: Path) -> None:
    config = {**json.loads(peft_metadata(8.0, 4)[KEY]), "transformer.use_rslora": stabilised}
    write_lora(tmp_path / "a.safetensors", "peft", shapes, rank=4, metadata={KEY: json.dumps(config)})
    assert scales(tmp_path / "a.safetensors", shapes) == {4.0 if stabilised else 2.0}


@pytest.mark.parametrize(
    "family", ["kohya_framepack", "kohya_hunyuan", "peft", "peft_default", "diffusion_pipe", "loha", "lokr"]
)
@pytest.mark.parametrize(
    "end",
    [
        "dora_scale", "dora_layer.weight", "lora_magnitude_vector", "lora_magnitude_vector.weight", "magnitude",
        "lora_magnitude_vector.default.weight", "lora_magnitude_vector.default", "dora_magnitude", "DoRA.weight",
    ],
)  # fmt: skip
def test_a_dora_is_refused_by_any_name_in_any_family(family: str, end: str, shapes, tmp_path: Path) -> None:
    """`dora_layer.weight` was unknown, and the rest acted like a LoRA. One such layer among many is enough: a film of half an
    update is nobody's."""
    path = tmp_path / "a.safetensors"
    write_lora(path, family, shapes, only=("proj_out", "single_transformer_blocks.0"))
    name = next(key for key in load_file(path) if "proj_out" in key or "linear2" in key).split(".lora_")[0].split(".hada_")[0]
    name = name.split(".lokr_")[0].removesuffix(".alpha")
    edited(path, path, lambda tensors: tensors.update({f"{name}.{end}": torch.ones(64, 1)}))
    error = refused(path, shapes)
    assert error.key == "dora" and error.values["example"] == f"{name}.{end}"


def test_what_says_that_it_is_a_dora_is_refused(shapes, tmp_path: Path) -> None:
    """A file whose config or metadata says DoRA is refused, even if somebody removed the magnitudes."""
    assert refused(DORA, shapes_of(DORA)).key == "dora"
    bare = tmp_path / "bare.safetensors"
    edited(DORA, bare, lambda tensors: [tensors.pop(key) for key in list(tensors) if "dora_layer" in key])
    assert (refused(bare, shapes_of(DORA)).key, refused(bare, shapes_of(DORA)).values["example"]) == ("dora", "use_dora_flag")
    path = tmp_path / "a.safetensors"
    write_lora(path, "peft", shapes, metadata={KEY: '{"lora_alpha": 4, "use_dora": true}'})
    assert refused(path, shapes).key == "dora"
    write_lora(path, "peft", shapes, metadata={KEY: '{"lora_alpha": 4, "use_dora": false}'})
    assert scales(path, shapes) == {2.0}


def test_a_text_encoders_dora_is_passed_over(shapes, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_lora(path, "kohya_framepack", shapes)
    edited(path, path, lambda tensors: tensors.update({"lora_te1_x.dora_scale": torch.ones(4, 1)}))
    assert scales(path, shapes) == {0.5}


CONFIG = (CASES / "adapter_config_with_bom.json").read_bytes()


@pytest.mark.parametrize(
    "data",
    [
        CONFIG,
        CONFIG[3:],
        *(CONFIG[3:].decode().encode(encoding) for encoding in ("utf-16", "utf-16-le", "utf-16-be", "utf-32")),
    ],
)
def test_a_config_beside_a_file_in_any_encoding(data: bytes, shapes, tmp_path: Path) -> None:
    """A config in any encoding is read: one with a byte order mark was ignored, and alpha 16 at rank 4 acted with a quarter
    of its strength."""
    write_lora(tmp_path / "adapter_model.safetensors", "peft_default", shapes, rank=4)
    (tmp_path / "adapter_config.json").write_bytes(data)
    assert scales(tmp_path / "adapter_model.safetensors", shapes) == {4.0}


WRONG = [
    "", "{", "5", "[]", '{"lora_alpha": "16"}', '{"lora_alpha": true}', '{"lora_alpha": [16]}',
    '{"lora_alpha": 4, "use_rslora": "no"}',
    '{"lora_alpha": 4, "alpha_pattern": ["to_q"]}', '{"lora_alpha": 4, "alpha_pattern": {"to_q": "8"}}', "[" * 100_000,
    '{"lora_alpha": 1' + "0" * 5000 + "}", "\x00\xff", '{"lora_alpha": 4}' + " " * 2**20,
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(WRONG)))
def test_a_config_that_is_not_understood_is_said(number: int, shapes, tmp_path: Path) -> None:
    """A config that is not understood is refused; it was ignored, and the file acted with an arbitrary strength."""
    path = tmp_path / "adapter_model.safetensors"
    write_lora(path, "peft_default", shapes, only=("proj_out",))
    (tmp_path / "adapter_config.json").write_bytes(WRONG[number].encode("latin-1"))
    error = refused(path, shapes)
    assert error.key == "config" and error.values["reason"] and len(error.values["reason"]) <= 200
    # Within the file, an empty text is nothing.
    if WRONG[number] and len(WRONG[number]) < 2**20:
        write_lora(tmp_path / "a.safetensors", "peft", shapes, only=("proj_out",), metadata={KEY: WRONG[number]})
        assert refused(tmp_path / "a.safetensors", shapes).key == "config"


def test_null_says_nothing_of_a_layer(shapes, tmp_path: Path) -> None:
    """A null among the alphas of layers is ignored; it used to make the alpha of the whole file count no more."""
    config = {"lora_alpha": 8, "alpha_pattern": {"proj_out": None, "transformer_blocks.0.attn.to_q": 2}}
    write_lora(tmp_path / "a.safetensors", "peft", shapes, rank=4, metadata={KEY: json.dumps(config)})
    assert scales(tmp_path / "a.safetensors", shapes) == {2.0, 0.5}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_an_alpha_that_makes_everything_infinite(dtype: torch.dtype, shapes, tmp_path: Path) -> None:
    """1e38 is finite, and what is multiplied by it is not: films were black."""
    path = tmp_path / "a.safetensors"
    write_lora(path, "kohya_framepack", shapes, rank=1)
    for value in (1e38, -1e38, 70_000.0):
        key = "lora_unet_proj_out.alpha"
        edited(path, path, lambda tensors, key=key, value=value: tensors.update({key: torch.tensor(value, dtype=dtype)}))
        error = refused(path, shapes)
        assert (error.key, error.values["name"]) == ("scale", key)
    edited(path, path, lambda tensors: tensors.update({key: torch.tensor(1024.0, dtype=dtype)}))
    assert scales(path, shapes) == {1.0, 1024.0}


@pytest.mark.parametrize("text", ['{"lora_alpha": 1e308}', '{"lora_alpha": 1, "alpha_pattern": {"proj_out": -1e300}}'])
def test_an_alpha_of_peft_that_makes_everything_infinite(text: str, shapes, tmp_path: Path) -> None:
    write_lora(tmp_path / "a.safetensors", "peft", shapes, metadata={KEY: text})
    assert refused(tmp_path / "a.safetensors", shapes).key == "scale"


@pytest.mark.parametrize(
    "pattern",
    [
        "a{99999999999}",
        "(a|b){99999}",
        "a{1000}",
        "(?=a)b?",
        r"(a*)\1",
        "(?i)x?",
        "(a*)*",
        "(a+)?{2}",
        ".*.*.*x",
        "a{2,}b{3,}c*d",
    ],
)
def test_an_expression_that_could_take_for_ever_is_not_compiled(pattern: str) -> None:
    """a{99999999999} ended in an OverflowError."""
    assert first_unread({KEY: json.dumps({"lora_alpha": 1, "alpha_pattern": {"to_q": 1, pattern: 2}})}) == pattern


def test_the_hostile_file_is_refused_with_its_expression() -> None:
    path = CASES / "hostile" / "lora_alpha_pattern_repetition_too_large.safetensors"
    error = refused(path, {"transformer_blocks.0.attn.to_q": (192, 192)})
    assert (error.key, error.values["pattern"]) == ("pattern", "a{99999999999}")


def test_the_first_name_or_expression_that_means_a_layer_counts() -> None:
    def alpha(own: dict, name: str = "transformer.transformer_blocks.0.attn.to_q") -> float | None:
        return config_of({KEY: json.dumps({"lora_alpha": 1, "alpha_pattern": own})}).alpha_of(name)

    assert alpha({"to_k": 2}) == 1 and alpha({"to_q": 2, ".*": 3}) == 2 and alpha({".*": 3, "to_q": 2}) == 3
    assert alpha({"attn.to_q": 2, "transformer_blocks.0.attn.to_q": 3}) == 2
    assert alpha({"transformer_blocks.0.attn.to_q": 3, "attn.to_q": 2}) == 3
    assert alpha({r"blocks\.\d{1,2}\.attn": 2, r"transformer_blocks\.\d{1,2}\.attn\.to_[qk]": 3}) == 3
    assert alpha({r"^attn\.to_q": 2}) == 1 and alpha({r"^transformer_blocks.*": 4}) == 4


def test_many_names_and_expressions_take_no_time(shapes, tmp_path: Path) -> None:
    """A list of a hundred thousand alphas was gone through for every layer."""
    own = {f"no.such.layer.{number}": 2 for number in range(50_000)} | {"proj_out": 4}
    write_lora(
        tmp_path / "a.safetensors", "peft", shapes, rank=2, metadata={KEY: json.dumps({"lora_alpha": 2, "alpha_pattern": own})}
    )
    assert scales(tmp_path / "a.safetensors", shapes) == {1.0, 2.0}
    many = {f"x{number}?": 2 for number in range(17)}
    assert first_unread({KEY: json.dumps({"lora_alpha": 2, "alpha_pattern": many})}) == "x16?"


NARROW = (torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("dtype", [*NARROW, torch.float32, torch.float64, torch.int64, torch.int8, torch.uint8, torch.bool])
def test_numbers_of_every_type_are_read_as_torch_reads_them(dtype: torch.dtype, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    for value in (0.0, 1.0, 2.5, 0.015625, -3.0, 100.0):
        tensor = torch.tensor([value]).clamp(0 if dtype in (torch.uint8, torch.bool) else -100).to(dtype)
        save_file({"x": torch.ones(3), "a": tensor}, path)
        assert read_number(path, read_header(path), "a") == float(tensor.item())


def test_factors_are_numbers_with_a_point(shapes, tmp_path: Path) -> None:
    """Factors of integers, as of a file in 8 bits without its scales, were used as they came."""
    path = tmp_path / "a.safetensors"
    write_lora(path, "peft", shapes)
    key = "transformer.proj_out.lora_A.weight"
    edited(path, path, lambda tensors: tensors.update({key: tensors[key].to(torch.int8)}))
    error = refused(path, shapes)
    assert (error.key, error.values["name"], error.values["dtype"]) == ("dtype", key, "I8")
