"""Build and load the miniature's transformer, encoders and tokenizers, and encode captions with them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    LlamaConfig,
    LlamaModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from diffusers_helper.checkpoints.checkpoint import quiet
from diffusers_helper.encoders.text import TextEncoders, encode_prompt, load_tokenizer, load_tokenizer_2, without_unused_layers
from diffusers_helper.models.transformer import PackedTransformer, TransformerConfig
from miniature.captions import COMMON_WORDS, every_caption
from miniature.random_checkpoint import clip_tokenizer, llama_tokenizer

TEXT_WIDTH, POOLED_WIDTH, IMAGE_WIDTH, IMAGE_SIDE = 96, 64, 64, 56
TRANSFORMER = {
    "_class_name": "HunyuanVideoTransformer3DModelPacked",
    "num_attention_heads": 6,
    "attention_head_dim": 32,
    "num_layers": 2,
    "num_single_layers": 6,
    "num_refiner_layers": 1,
    "text_embed_dim": TEXT_WIDTH,
    "pooled_projection_dim": POOLED_WIDTH,
    "rope_axes_dim": [4, 14, 14],
    "image_proj_dim": IMAGE_WIDTH,
    "has_image_proj": True,
    "has_clean_x_embedder": True,
    "guidance_embeds": True,
}
EXTRACTOR = {
    "image_processor_type": "SiglipImageProcessor",
    "size": {"height": IMAGE_SIDE, "width": IMAGE_SIDE},
    "resample": 3,
    "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3,
    "rescale_factor": 1 / 255,
}


def new_transformer() -> PackedTransformer:
    """Return a new transformer in which every block is the identity and the predicted velocity is 0.

    The layers that make the gates and the output start at zero.
    """
    net = PackedTransformer(TransformerConfig.from_json(TRANSFORMER))
    for name, module in net.named_modules():
        if name.endswith(("norm.linear", "norm1.linear", "norm1_context.linear", "norm_out.linear")) or name == "proj_out":
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    return net


def by_muon(name: str) -> bool:
    """Return whether a parameter of this name takes the Muon optimizer's steps: the matrices between hidden states.

    The layers that embed time and pixels or make the output do not.
    """
    inside = any(part in name for part in (".attn.", ".ff", "proj_mlp", "image_projection", "context_embedder.proj_in"))
    return inside or (name.startswith("single_") and "proj_out" in name)


def build_encoders(folder: Path, seed: int = 0) -> None:
    """Write the text and vision encoders and their tokenizers below `folder`. Nothing trains them afterwards.

    Their random weights are large, so that every word changes the hidden states clearly; with the usual deviation of 0.02 the
    words would hardly differ.
    """
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(seed)
        sentences = [*every_caption(), COMMON_WORDS, COMMON_WORDS.title()]
        words = [sentence.lower().replace(" ", "\n") for sentence in sentences]
        tokenizer, tokenizer_2 = llama_tokenizer(sentences), clip_tokenizer(words, vocabulary=1200)
        tokenizer.save_pretrained(folder / "tokenizer")
        tokenizer_2.save_pretrained(folder / "tokenizer_2")
        llama = LlamaModel(
            LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=TEXT_WIDTH,
                intermediate_size=192,
                num_hidden_layers=4,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=512,
            )
        )
        clip = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer_2),
                hidden_size=POOLED_WIDTH,
                intermediate_size=128,
                num_hidden_layers=2,
                num_attention_heads=2,
                hidden_act="quick_gelu",
                bos_token_id=tokenizer_2.bos_token_id,
                eos_token_id=tokenizer_2.eos_token_id,
            )
        )
        sizes = {"hidden_size": IMAGE_WIDTH, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
        siglip = SiglipVisionModel(SiglipVisionConfig(**sizes, image_size=IMAGE_SIDE, patch_size=14))
        for net in (llama, clip):
            _spread(net)
        for name, net in (("text_encoder", llama), ("text_encoder_2", clip), ("image_encoder", siglip)):
            net.half().save_pretrained(folder / name)
    extractor = folder / "feature_extractor" / "preprocessor_config.json"
    extractor.parent.mkdir(parents=True, exist_ok=True)
    extractor.write_text(json.dumps(EXTRACTOR, indent=2) + "\n")


@torch.no_grad()
def _spread(net: nn.Module) -> None:
    for module in net.modules():
        if isinstance(module, nn.Embedding):
            module.weight.normal_(0, 0.7)
        elif isinstance(module, nn.Linear):
            module.weight.normal_(0, 1.2 * module.in_features**-0.5)


def load_text(folder: Path, device: torch.device) -> TextEncoders:
    """Load both text encoders in float32 and their tokenizers, without the layers that prompts do not use."""
    with quiet():
        tokenizer, tokenizer_2 = load_tokenizer(folder / "tokenizer"), load_tokenizer_2(folder / "tokenizer_2")
        llama = LlamaModel.from_pretrained(folder / "text_encoder", torch_dtype=torch.float32)
        clip = CLIPTextModel.from_pretrained(folder / "text_encoder_2", torch_dtype=torch.float32)
    return TextEncoders(tokenizer, without_unused_layers(llama).eval().to(device), tokenizer_2, clip.eval().to(device))


def load_vision(folder: Path, device: torch.device) -> SiglipVisionModel:
    """Load the SigLIP encoder of the start picture in float32."""
    with quiet():
        return SiglipVisionModel.from_pretrained(folder / "image_encoder", torch_dtype=torch.float32).eval().to(device)


@torch.no_grad()
def image_tokens(siglip: SiglipVisionModel, pixels: Tensor) -> Tensor:
    """Encode pictures (B, 3, H, W) in -1..1 with SigLIP into tokens (B, 16, 64).

    The program itself resizes with Pillow, whose pixels differ by a few levels of 256.
    """
    small = F.interpolate(pixels.float(), (IMAGE_SIDE, IMAGE_SIDE), mode="bicubic", antialias=True)
    return siglip(pixel_values=small.clamp(-1, 1)).last_hidden_state


@dataclass(frozen=True)
class CaptionBank:
    """Hold encoded captions, grouped by their number of tokens so that no batch needs padding or a mask.

    place: caption -> (number of tokens, row in that group). tokens: number of tokens -> (n, tokens, 96). pooled: number of
    tokens -> (n, 64).
    """

    place: dict[str, tuple[int, int]]
    tokens: dict[int, Tensor]
    pooled: dict[int, Tensor]


def caption_bank(encoders: TextEncoders, captions: Sequence[str], device: torch.device, dtype: torch.dtype) -> CaptionBank:
    """Encode each caption once, and group the results by their number of tokens."""
    place, tokens, pooled = {}, {}, {}
    for caption in captions:
        made = encode_prompt(encoders, caption)
        count = made.tokens.shape[1]
        place[caption] = count, len(tokens.setdefault(count, []))
        tokens[count].append(made.tokens)
        pooled.setdefault(count, []).append(made.pooled)
    return CaptionBank(
        place,
        {count: torch.cat(parts).to(device, dtype) for count, parts in tokens.items()},
        {count: torch.cat(parts).to(device, dtype) for count, parts in pooled.items()},
    )
