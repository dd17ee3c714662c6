"""Check by its files' headers whether a model's component is complete, and load components onto the CPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import torch
from diffusers.models.autoencoders.autoencoder_kl_hunyuan_video import AutoencoderKLHunyuanVideo
from diffusers.models.modeling_utils import ModelMixin
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    LlamaConfig,
    LlamaModel,
    PreTrainedModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from diffusers_helper.checkpoints import checkpoint
from diffusers_helper.checkpoints.files import CheckpointError, Tensors, compare, read_headers, read_json, weight_files
from diffusers_helper.encoders.text import load_tokenizer, load_tokenizer_2
from diffusers_helper.encoders.vision import VisionPreprocessing
from diffusers_helper.interrupt import Tick, never
from diffusers_helper.vae.convolution import use_onednn
from eichi_utils.models.hub import PREPROCESSOR_FILE, STEMS

T = TypeVar("T", bound=PreTrainedModel | ModelMixin)

# Exceptions that the libraries' configuration classes and layers raise for values that no model can have.
ConfigTrouble = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RuntimeError, StrictDataclassError)


def load_vae(folder: Path, dtype: torch.dtype) -> AutoencoderKLHunyuanVideo:
    """Load the VAE onto the CPU; its convolutions run through oneDNN if torch has it."""
    vae = pretrained(AutoencoderKLHunyuanVideo, folder, dtype)
    use_onednn(vae)
    return vae


def pretrained(kind: type[T], folder: Path, dtype: torch.dtype, tick: Tick = never) -> T:
    """Load a network of transformers' or diffusers' class from a folder onto the CPU.

    tick: called for every tensor of transformers' networks; what it raises interrupts the loading.
    """
    # The libraries' type hints of `from_pretrained` do not say that it returns this class.
    load: Callable[..., T] = kind.from_pretrained
    with checkpoint.quiet(tick):
        model = load(folder, torch_dtype=dtype, local_files_only=True)
    return model.eval().requires_grad_(False)


def _check_transformer(folder: Path) -> None:
    checkpoint.check_transformer(folder)


def _check_vae(folder: Path) -> None:
    module = _meta(folder, AutoencoderKLHunyuanVideo.from_config)
    found = read_headers(weight_files(folder, STEMS["vae"]))
    compare(checkpoint.shapes_of(module), found, folder, strict=False)


def _check_encoder(config_class: type, model_class: type, folder: Path) -> None:
    module = _meta(folder, lambda document: model_class(config_class.from_dict(document)))
    found = read_headers(weight_files(folder, STEMS["text_encoder"]))
    # Tensor names in published files begin with a level of the enclosing class, which transformers 5 has removed from its own.
    plain = {_plain(name): shape for name, shape in found.shapes.items()}
    files = {_plain(name): file for name, file in found.files.items()}
    expected = {_plain(name): shape for name, shape in checkpoint.shapes_of(module).items()}
    compare(expected, Tensors(plain, files), folder, strict=False)


def _meta(folder: Path, make: Callable[[dict[str, Any]], Any]) -> nn.Module:
    """Return the module that a folder's config.json describes, on the meta device, which takes no memory.

    Raises CheckpointError if the file is missing or describes no such module.
    """
    path = folder / "config.json"
    document = read_json(path)
    try:
        with torch.device("meta"):
            return make(document)
    except ConfigTrouble as error:
        raise CheckpointError("config_damaged", file=str(path), reason=str(error)[:200]) from None


def _plain(name: str) -> str:
    for level in ("text_model.", "vision_model.", "model."):
        name = name.removeprefix(level)
    return name


def _check_tokenizer(folder: Path, load: Callable[[Path], Any]) -> None:
    path = folder / "tokenizer.json"
    if not path.is_file() and not (folder / "vocab.json").is_file():
        raise CheckpointError("file_missing", file=str(path))
    try:
        # The file is parsed here first, because the tokenizers library raises a plain Exception for a damaged one.
        if path.is_file() and not isinstance(read_json(path).get("model"), dict):
            raise ValueError("tokenizer.json has no model")
        load(folder)
    except (CheckpointError, OSError, *ConfigTrouble) as error:
        reason = error.values["reason"] if isinstance(error, CheckpointError) else str(error)[:200]
        raise CheckpointError("tokenizer", folder=str(folder), reason=reason) from None


def _check_feature_extractor(folder: Path) -> None:
    path = folder / PREPROCESSOR_FILE
    document = read_json(path)
    try:
        VisionPreprocessing.from_json(document)
    except ConfigTrouble as error:
        raise CheckpointError("config_damaged", file=str(path), reason=str(error)[:200]) from None


CHECKS: Mapping[str, Callable[[Path], None]] = MappingProxyType(
    {
        "framepack": _check_transformer,
        "framepack_f1": _check_transformer,
        "vae": _check_vae,
        "text_encoder": partial(_check_encoder, LlamaConfig, LlamaModel),
        "tokenizer": partial(_check_tokenizer, load=load_tokenizer),
        "text_encoder_2": partial(_check_encoder, CLIPTextConfig, CLIPTextModel),
        "tokenizer_2": partial(_check_tokenizer, load=load_tokenizer_2),
        "image_encoder": partial(_check_encoder, SiglipVisionConfig, SiglipVisionModel),
        "feature_extractor": _check_feature_extractor,
    }
)
