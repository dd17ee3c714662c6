"""Encode prompts into what the transformer reads: LLaMA's tokens in HunyuanVideo's template, and CLIP's pooled vector."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer, LlamaModel, PreTrainedTokenizerFast

from diffusers_helper.memory.weight_groups import WeightGroups

# The prompt format the model was trained with; the missing spaces after periods belong to it.
TEMPLATE = (
    "<|start_header_id|>system<|end_header_id|>\n\n"
    "Describe the video by detailing the following aspects: "
    "1. The main content and theme of the video."
    "2. The color, shape, size, texture, quantity, text, and spatial relationships of the objects."
    "3. Actions, events, behaviors temporal relationships, physical movement changes of the objects."
    "4. background environment, light, style and atmosphere."
    "5. camera angles, movements, and transitions used in the video:<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>"
)
# Tokens of the template before the prompt, the tokenizer's begin-of-text included.
TEMPLATE_TOKENS = 95
# Tokens that the model reads at most: the prompt's and its end mark.
PROMPT_TOKENS = 256
# The transformer reads the third hidden state from the end: the last two layers and the final norm are never needed.
UNUSED_LAYERS = 2


@dataclass(frozen=True)
class TextEncoders:
    """Hold the two language models that read a prompt, each with its tokenizer."""

    tokenizer: PreTrainedTokenizerFast
    llama: LlamaModel
    tokenizer_2: CLIPTokenizer
    clip: CLIPTextModel


@dataclass(frozen=True)
class TextEmbedding:
    """Hold an encoded prompt, on the CPU.

    tokens: (1, n, width), without padding. pooled: (1, width_2). read, written: how many tokens of the prompt the model reads,
    and how many there are.
    """

    tokens: Tensor
    pooled: Tensor
    read: int
    written: int


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Load LLaMA's tokenizer from a folder of the checkpoint. Raises ValueError if the template is not 95 tokens.

    Not as LlamaTokenizerFast: in transformers 5 that replaces the byte-level splitting of this tokenizer.json and silently
    makes other tokens.
    """
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    count = template_tokens(tokenizer)
    if count != TEMPLATE_TOKENS:
        raise ValueError(f"the template is {count} tokens instead of {TEMPLATE_TOKENS}")
    return tokenizer


def load_tokenizer_2(folder: Path) -> CLIPTokenizer:
    """Load CLIP's tokenizer from a folder of the checkpoint, without asking the network."""
    return CLIPTokenizer.from_pretrained(folder, local_files_only=True)


def template_tokens(tokenizer: PreTrainedTokenizerFast) -> int:
    """Return how many tokens of the template come before the prompt."""
    return len(tokenizer(TEMPLATE.split("{}")[0]).input_ids)


def without_unused_layers(llama: LlamaModel) -> LlamaModel:
    """Remove the layers that nobody reads; the last hidden state is then what `hidden_states[-3]` was."""
    kept = len(llama.layers) - UNUSED_LAYERS
    llama.layers = llama.layers[:kept]
    llama.norm = nn.Identity()  # pyright: ignore[reportAttributeAccessIssue] (any module may stand there)
    llama.config.num_hidden_layers = kept
    return llama


def language_layers(encoders: TextEncoders) -> dict[str, nn.Module]:
    """Return the language model's layers by the names of their weight groups, in order."""
    return {f"layer/{number}": layer for number, layer in enumerate(encoders.llama.layers)}


def text_weight_groups(encoders: TextEncoders) -> WeightGroups:
    """Return the encoders' weight groups: the language model's layers pass through the card one by one, once for a prompt.

    Embeddings and CLIP stay on the card meanwhile.
    """
    llama = encoders.llama
    always = [llama.embed_tokens, llama.rotary_emb, llama.norm, encoders.clip]
    return WeightGroups(always=always, job={name: [layer] for name, layer in language_layers(encoders).items()})


@torch.inference_mode()
def encode_prompt(encoders: TextEncoders, prompt: str) -> TextEmbedding:
    """Encode a prompt by both language models.

    Leaving the padding out changes nothing: the language model is causal, so what would follow the prompt cannot change it.
    """
    text = TEMPLATE.replace("{}", prompt)
    every = encoders.tokenizer(text).input_ids
    ids = every[: TEMPLATE_TOKENS + PROMPT_TOKENS]
    hidden = encoders.llama(input_ids=torch.tensor([ids], device=encoders.llama.device), use_cache=False).last_hidden_state
    clip_ids = encoders.tokenizer_2(prompt, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
    pooled = encoders.clip(clip_ids.to(encoders.clip.device)).pooler_output
    # The end mark does not belong to the prompt.
    written = len(every) - TEMPLATE_TOKENS - 1
    return TextEmbedding(
        tokens=hidden[:, TEMPLATE_TOKENS:].float().cpu(),
        pooled=pooled.float().cpu(),
        read=min(written, PROMPT_TOKENS),
        written=written,
    )
