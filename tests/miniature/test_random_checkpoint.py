"""Test the random checkpoint: the layout of the hub, and loading by the stock classes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLHunyuanVideo, HunyuanVideoFramepackTransformer3DModel
from safetensors.torch import load_file
from transformers import AutoTokenizer, CLIPTextModel, CLIPTokenizer, LlamaModel, SiglipImageProcessor, SiglipVisionModel

from diffusers_helper.checkpoints.checkpoint import check_transformer, quiet
from miniature.random_checkpoint import build

# Folder -> stock class, as in HunyuanVideo's and FLUX Redux's repositories.
NETWORKS = {
    "transformer": HunyuanVideoFramepackTransformer3DModel,
    "vae": AutoencoderKLHunyuanVideo,
    "text_encoder": LlamaModel,
    "text_encoder_2": CLIPTextModel,
    "image_encoder": SiglipVisionModel,
}


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    files = sorted(folder.rglob("*.safetensors"))
    return {
        f"{file.relative_to(folder).as_posix()}/{name}": tensor for file in files for name, tensor in load_file(file).items()
    }


def others_of(folder: Path) -> dict[str, bytes]:
    """Read all files beside the weights: configurations and tokenizers."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".safetensors")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def again(tmp_path_factory) -> tuple[Path, bool]:
    """Build seed 0 a second time; return its folder, and whether the global random state stayed the same."""
    torch.manual_seed(1234)
    state = torch.get_rng_state()
    folder = build(tmp_path_factory.mktemp("again") / "checkpoint", seed=0)
    return folder, torch.equal(torch.get_rng_state(), state)


def test_the_same_seed_makes_the_same_files(checkpoint, again):
    """Films in tests are compared between runs; the checkpoint must not be what differs."""
    one, other = tensors_of(checkpoint), tensors_of(again[0])
    assert len({name.split("/")[0] for name in one}) == len(NETWORKS)
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name
    assert others_of(checkpoint) == others_of(again[0])


def test_the_global_random_state_is_untouched(again):
    """A fixture that seeds the world makes other tests depend on their order."""
    assert again[1]


def test_another_seed_makes_other_weights(checkpoint, tmp_path):
    one, other = tensors_of(checkpoint), tensors_of(build(tmp_path, seed=1))
    assert one.keys() == other.keys()
    name = "transformer/diffusion_pytorch_model.safetensors/x_embedder.proj.weight"
    assert not torch.equal(one[name], other[name])


@pytest.mark.parametrize("name", NETWORKS)
def test_stock_classes_load_every_network(checkpoint, name):
    """The stock classes load every network of a random checkpoint without a missing or an unexpected tensor, as they load
    users' downloads."""
    with quiet():
        network, report = NETWORKS[name].from_pretrained(checkpoint / name, output_loading_info=True)
    assert not any(report.get(key) for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    weights = list((checkpoint / name).glob("*.safetensors"))
    assert len(weights) == 1
    assert set(load_file(weights[0])) <= set(network.state_dict())
    assert all(parameter.isfinite().all() for parameter in network.parameters())


def test_the_transformer_passes_the_programs_own_check(checkpoint):
    assert check_transformer(checkpoint / "transformer") > 0


def test_stock_classes_load_tokenizers_and_preprocessing(checkpoint):
    tokenizer = AutoTokenizer.from_pretrained(checkpoint / "tokenizer")
    ids = tokenizer("a dancing girl").input_ids
    assert tokenizer.convert_ids_to_tokens(ids[0]) == "<|begin_of_text|>"
    assert tokenizer.decode(ids, skip_special_tokens=True) == "a dancing girl"
    clip = CLIPTokenizer.from_pretrained(checkpoint / "tokenizer_2")
    ids = clip("a dancing girl").input_ids
    assert (ids[0], ids[-1]) == (clip.bos_token_id, clip.eos_token_id)
    processor = SiglipImageProcessor.from_pretrained(checkpoint / "feature_extractor")
    assert (processor.size["height"], processor.size["width"]) == (56, 56)


def test_vocabularies_fit_the_embeddings(checkpoint):
    """An id beyond the table is an index error only when that word is written."""
    for tokenizer, encoder in (("tokenizer", "text_encoder"), ("tokenizer_2", "text_encoder_2")):
        with quiet():
            network = NETWORKS[encoder].from_pretrained(checkpoint / encoder)
        loaded = (AutoTokenizer if encoder == "text_encoder" else CLIPTokenizer).from_pretrained(checkpoint / tokenizer)
        assert max(loaded.get_vocab().values()) < network.get_input_embeddings().num_embeddings


def test_it_is_small(checkpoint):
    """The checkpoint is small, because it is made anew for every test run."""
    assert sum(path.stat().st_size for path in checkpoint.rglob("*") if path.is_file()) < 8 * 2**20
