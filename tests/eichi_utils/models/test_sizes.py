"""Test how large a model is by the headers of its files alone, and with LoRA beside it."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLHunyuanVideo
from safetensors.torch import load_file, save_file
from transformers import LlamaModel

from diffusers_helper.memory.streaming import tensors_of
from diffusers_helper.models.transformer import PackedTransformer, TransformerConfig
from diffusers_helper.vae.causal_cache import causal_cache_bytes
from diffusers_helper.vae.vae_decode import peak_bytes
from eichi_utils.models.components import pretrained
from eichi_utils.models.hub import PLACES, ModelFiles
from eichi_utils.models.lora_fit import shapes_in, size_with
from eichi_utils.models.pool import ModelPool
from eichi_utils.models.requirements import transformer_needs
from eichi_utils.models.sizes import PUBLISHED, model_size, transformer_size, vae_size
from eichi_utils.requests.loras import Lora
from tests.lora_files import write_lora


def shapes_of(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


@pytest.fixture(scope="module")
def full() -> PackedTransformer:
    with torch.device("meta"):
        return PackedTransformer(TransformerConfig())


def test_the_published_sizes_are_those_of_the_architecture(full: PackedTransformer) -> None:
    """The sizes told before a download equal those that the architecture has after it."""
    assert transformer_size(shapes_of(full)) == PUBLISHED.transformer
    with torch.device("meta"):
        vae = AutoencoderKLHunyuanVideo().half()
    assert vae_size(shapes_of(vae)) == PUBLISHED.vae
    assert abs(2 * 80 * 76 * PUBLISHED.vae.causal_cache / causal_cache_bytes(vae, 80, 76) - 1) < 0.03
    assert peak_bytes(vae, 6, 16, 16) <= 2 * PUBLISHED.vae.work < 1.3 * peak_bytes(vae, 6, 16, 16)
    for name, size in (("text_encoder", PUBLISHED.text), ("image_encoder", PUBLISHED.vision)):
        assert abs(2 * size.whole / 1e9 - PLACES[name].gigabytes) < 0.3


def test_sizes_come_from_the_files_headers(checkpoint: Path) -> None:
    """The headers give the size of every component, and the transformer's parts as the network itself divides them."""
    size = model_size(ModelFiles(checkpoint), "framepack")
    pool = ModelPool(checkpoint, device="cpu")
    with pool.transformer("framepack") as net:
        parts, linears = net.weight_groups(), {id(layer.weight) for layer in net.block_linears().values()}

    def numbers(modules: object, which: object = lambda tensor: True) -> int:
        return sum(t.numel() for t in tensors_of(modules) if which(t))

    blocks = [numbers(modules) for modules in parts.step.values()]
    linear = sum(numbers(modules, lambda t: id(t) in linears) for modules in parts.step.values())
    assert (size.transformer.whole, size.transformer.linear) == (numbers([net]), linear)
    assert size.transformer.linear + size.transformer.rest == sum(blocks)
    assert size.transformer.block_linear + size.transformer.block_rest == max(blocks)
    assert size.transformer.job == max(numbers(modules) for modules in parts.job.values())
    assert size.transformer.always == numbers(parts.always) and size.transformer.width == net.config.dim
    with pool.vision() as encoder:
        assert abs(size.vision.whole - numbers([encoder.model])) <= 0.05 * size.vision.whole
    with pool.text() as encoders:
        assert size.text.card <= size.text.whole and size.text.whole >= numbers([encoders.llama, encoders.clip])


def test_the_prompts_encoder_stays_in_its_files_beside_a_card(checkpoint: Path, tmp_path: Path) -> None:
    """The check before a run assumes that its weights are pages of the file, if that has the type of the computation."""
    folder = tmp_path / "model"
    shutil.copytree(checkpoint, folder)
    LlamaModel.from_pretrained(folder / "text_encoder").half().save_pretrained(folder / "text_encoder")
    size = model_size(ModelFiles(folder), "framepack")
    assert model_size(ModelFiles(checkpoint), "framepack").text.mapped == 0 < size.text.mapped < size.text.whole
    llama = pretrained(LlamaModel, folder / "text_encoder", torch.float16)
    ranges = [line.split()[0].split("-") for line in Path("/proc/self/maps").read_text().splitlines() if str(folder) in line]
    places = [tensor.data_ptr() for tensor in llama.parameters()]
    assert all(any(int(begin, 16) <= place < int(end, 16) for begin, end in ranges) for place in places)


@pytest.mark.parametrize(("dtype", "copied"), [(torch.bfloat16, False), (torch.float16, True), (torch.float32, True)])
def test_a_transformer_of_another_type_is_copied(dtype: torch.dtype, copied: bool, checkpoint: Path, tmp_path: Path) -> None:
    """Beside a card its tables' weights stay in the file only where they need no conversion; 7 GB were left out."""
    folder = tmp_path / "model"
    shutil.copytree(checkpoint, folder)
    (file,) = (folder / "transformer").glob("*.safetensors")
    save_file({name: tensor.to(dtype) for name, tensor in load_file(file).items()}, file)
    size = model_size(ModelFiles(folder), "framepack").transformer
    assert size.copied == (size.whole - size.linear - size.rest if copied else 0)
    plain = dataclasses.replace(size, copied=0)
    beside, without = (transformer_needs(one, "int8", 0, on_card=True).host for one in (size, plain))
    assert beside - without == 2 * size.copied
    assert transformer_needs(size, "int8", 0, on_card=False) == transformer_needs(plain, "int8", 0, on_card=False)


def test_what_is_not_there_is_judged_as_published(tmp_path: Path) -> None:
    assert model_size(ModelFiles(tmp_path), "framepack") is PUBLISHED


@pytest.mark.parametrize("family", ["peft", "kohya_hunyuan", "loha", "lokr", "lokr_hunyuan"])
def test_what_a_lora_takes_is_counted(family: str, checkpoint: Path, tmp_path: Path) -> None:
    """A LoRA's memory is counted exactly from its header; it was forgotten, and a film that was allowed ran out of memory."""
    files, path = ModelFiles(checkpoint), tmp_path / "a.safetensors"
    write_lora(path, family, shapes_in(files, "framepack"))
    pair = Lora(str(path), 0.5), Lora(str(path), -0.5)
    plain = model_size(files, "framepack")
    with ModelPool(checkpoint, device="cpu").transformer("framepack", "auto", pair) as net:
        parts = net.weight_groups()

        def numbers(modules: object) -> int:
            tensors = (buffer for module in modules for buffer in module.buffers())
            return sum(tensor.numel() for tensor in tensors)

        blocks, jobs = ([numbers(modules) for modules in kind.values()] for kind in (parts.step, parts.job))
        always = numbers(parts.always)
    found_size = size_with(plain, pair, False, files, "framepack")
    with_them, without = found_size.transformer, plain.transformer
    assert (found_size.text, found_size.vae) == (plain.text, plain.vae)
    assert with_them.whole - without.whole == sum(blocks) + sum(jobs) + always > 0
    assert with_them.rest - without.rest == sum(blocks) + sum(jobs) and with_them.always - without.always == always
    assert with_them.block_rest - without.block_rest == max(blocks) and with_them.job - without.job == max(jobs)
    merged = size_with(plain, pair, True, files, "framepack").transformer
    assert merged.block_rest == without.block_rest and merged.rest - without.rest == sum(blocks) + sum(jobs) + always
    assert (
        size_with(plain, (Lora("gone"),), False, files, "framepack") is plain is size_with(plain, (), False, files, "framepack")
    )
