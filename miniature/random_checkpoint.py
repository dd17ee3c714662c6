"""Write a small checkpoint with random weights in the hub's layout; every component is of the real class.

It is for tests, and for trying the whole program where no trained checkpoint is present. Its films are noise.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import AutoencoderKLHunyuanVideo
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    LlamaConfig,
    LlamaModel,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from diffusers_helper.checkpoints.checkpoint import quiet
from diffusers_helper.encoders.text import TEMPLATE
from diffusers_helper.models.transformer import PackedTransformer, TransformerConfig

TEXT_WIDTH, POOLED_WIDTH, IMAGE_WIDTH = 32, 32, 32

# How Llama 3 splits text before it merges bytes. The tokenizer is trained on the prompt template itself, so that every piece of
# it becomes one token and the template has 95 tokens, as with the published vocabulary.
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BEGIN, END, HEADER, HEADER_END, PADDING = (
    "<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<pad>",
)  # fmt: skip


def build(folder: Path, seed: int = 0) -> Path:
    """Write all components below `folder` and return it. Torch's global random state does not change."""
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(seed)
        _transformer(folder / "transformer")
        AutoencoderKLHunyuanVideo(block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4).save_pretrained(
            folder / "vae"
        )
        tokenizer = llama_tokenizer()
        tokenizer.save_pretrained(folder / "tokenizer")
        _llama(len(tokenizer)).save_pretrained(folder / "text_encoder")
        tokenizer_2 = clip_tokenizer()
        tokenizer_2.save_pretrained(folder / "tokenizer_2")
        _clip(tokenizer_2).save_pretrained(folder / "text_encoder_2")
        _siglip().save_pretrained(folder / "image_encoder")
    extractor = folder / "feature_extractor" / "preprocessor_config.json"
    extractor.parent.mkdir(parents=True, exist_ok=True)
    size = {"height": 56, "width": 56}
    document = {
        "size": size,
        "resample": 3,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "rescale_factor": 1 / 255,
    }
    extractor.write_text(json.dumps({"image_processor_type": "SiglipImageProcessor", **document}, indent=2))
    return folder


def _transformer(folder: Path) -> None:
    document = {
        "_class_name": "HunyuanVideoTransformer3DModelPacked",
        "num_attention_heads": 2,
        "attention_head_dim": 32,
        "num_layers": 1,
        "num_single_layers": 2,
        "num_refiner_layers": 1,
        "text_embed_dim": TEXT_WIDTH,
        "pooled_projection_dim": POOLED_WIDTH,
        "rope_axes_dim": [4, 14, 14],
        "image_proj_dim": IMAGE_WIDTH,
        "has_image_proj": True,
        "has_clean_x_embedder": True,
        "guidance_embeds": True,
    }
    net = PackedTransformer(TransformerConfig.from_json(document))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(document, indent=2))
    save_file(net.state_dict(), folder / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})


def llama_tokenizer(sentences: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer that splits text as Llama 3 does.

    It is trained on the prompt template and on `sentences`, whose words become one token each.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        special_tokens=[BEGIN, END, HEADER, HEADER_END, PADDING],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    plain = TEMPLATE
    for special in (END, HEADER, HEADER_END, "{}"):
        plain = plain.replace(special, "\0")
    tokenizer.train_from_iterator([*plain.split("\0"), *sentences], trainer)
    begin = tokenizer.token_to_id(BEGIN)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BEGIN} $A", special_tokens=[(BEGIN, begin)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BEGIN, eos_token=END, pad_token=PADDING)


def clip_tokenizer(texts: Sequence[str] = (TEMPLATE.lower(),), vocabulary: int = 900) -> CLIPTokenizer:
    """Return CLIP's byte-pair tokenizer with merges learnt from lower-case texts, until `vocabulary` pieces are known."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, end_of_word_suffix="</w>", show_progress=False)
    learner.train_from_iterator(texts, trainer)
    merges = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
    pieces = [*alphabet, *(f"{letter}</w>" for letter in alphabet), *("".join(pair) for pair in merges)]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    numbers = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    return CLIPTokenizer(vocab=numbers, merges=merges)


def _llama(vocabulary: int) -> LlamaModel:
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=TEXT_WIDTH,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.3,
    )
    return LlamaModel(config)


def _clip(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=POOLED_WIDTH,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        hidden_act="quick_gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        initializer_factor=2.0,
    )
    return CLIPTextModel(config)


def _siglip() -> SiglipVisionModel:
    config = SiglipVisionConfig(
        hidden_size=IMAGE_WIDTH,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=56,
        patch_size=14,
    )
    return SiglipVisionModel(config)
