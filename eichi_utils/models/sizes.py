"""How large a model is, from its files' headers: in numbers, not bytes, because precision is chosen later. Without torch."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, replace
from math import prod

from diffusers_helper.checkpoints.files import CheckpointError, Shapes, Tensors, read_headers, weight_files
from eichi_utils.models.hub import STEMS, ModelFiles

BLOCK = re.compile(r"(single_)?transformer_blocks\.\d+\.")
# Of a block, what only tables are made of before the first step.
TABLES = ("norm1.linear.", "norm1_context.linear.", "norm.linear.")
# Others of that kind, each a part that comes to the card on its own.
JOB = ("time_text_embed.", "context_embedder.", "image_projection.", "norm_out.")
LAYER = re.compile(r"(?:model\.)?(?:language_model\.)?layers\.\d+\.")
# Spatial side and frames of the smallest tile that is decoded, and tensors of its widest layer that are alive together.
TILE, TILE_FRAMES, TILE_TENSORS = 128, 21, 6
# Convolutions of the VAE's decoder that look back in time, each at two frames; the block of upsamplers' names says its size.
UPSAMPLER = re.compile(r"decoder\.up_blocks\.(\d+)\.upsamplers\.")
LOOKS_BACK = re.compile(r"decoder\.(?:up_blocks\.(\d+)\.|mid_block\.|conv_(in|out)\.)")
# Latent frames that its attention looks back at, by keys and values; as diffusers_helper.vae.causal_cache says.
ATTENTION_LATENTS = 33
# The type that encoders are computed in beside a card, in the words of safetensors.
CARD_TYPE = "F16"
# The same for the transformer.
TRANSFORMER_TYPE = "BF16"


@dataclass(frozen=True)
class TransformerSize:
    """Numbers. whole: everything. linear: matrices of blocks, which 8 bits are for; rest: what else runs at every step of
    them. block_linear, block_rest: the same of the largest block. job: the largest part that only tables are made of.
    always: what stays on a card. width: of a token. copied: beside blocks, what has another type in its file than on a card."""

    whole: int
    linear: int
    rest: int
    block_linear: int
    block_rest: int
    job: int
    always: int
    width: int
    copied: int = 0


@dataclass(frozen=True)
class EncoderSize:
    """Numbers. whole: of all weights. card: what a card holds of them at a time. work: what computing takes besides.

    mapped: weights that stay in their files beside a card, because there they have the type that they are computed in.
    causal_cache: what a film that is decoded in order remembers for each cell of a latent (`causal_cache_bytes`).
    """

    whole: int
    card: int
    work: int = 0
    mapped: int = 0
    causal_cache: int = 0


@dataclass(frozen=True)
class ModelSize:
    """film: numbers that a film remembers while its sections are sampled and decoded."""

    transformer: TransformerSize
    text: EncoderSize
    vision: EncoderSize
    vae: EncoderSize
    film: int = 0


# The hub's models, before they are downloaded.
PUBLISHED = ModelSize(
    TransformerSize(
        whole=12_874_314_816, linear=9_059_696_640, rest=2_109_440, block_linear=226_492_416, block_rest=55_808,
        job=309_175_296, always=14_757_952, width=3072,
    ),
    EncoderSize(whole=7_628_000_000, card=1_085_000_000, mapped=7_628_000_000),
    EncoderSize(whole=428_000_000, card=428_000_000),
    EncoderSize(whole=246_478_803, card=246_478_803, work=TILE_TENSORS * 256 * TILE_FRAMES * TILE**2, causal_cache=270_368),
)  # fmt: skip


def model_size(files: ModelFiles, checkpoint: str) -> ModelSize:
    """Of the files that are there; of the hub's models where one is missing."""
    try:
        names = checkpoint, "text_encoder", "text_encoder_2", "image_encoder", "vae"
        found = {name: read_headers(weight_files(files.folder(name), STEMS[name])) for name in names}
        vision = _numbers(found["image_encoder"].shapes)
        text = text_size(found["text_encoder"].shapes, found["text_encoder_2"].shapes)
        mapped = sum(_mapped(found[name]) for name in ("text_encoder", "text_encoder_2"))
        return ModelSize(
            replace(transformer_size(found[checkpoint].shapes), copied=_copied(found[checkpoint])),
            replace(text, mapped=mapped),
            EncoderSize(vision, vision),
            vae_size(found["vae"].shapes),
        )
    # What is missing or another model's is said elsewhere.
    except (CheckpointError, LookupError, ValueError):
        return PUBLISHED


def transformer_size(shapes: Shapes) -> TransformerSize:
    """Return how many numbers a transformer's parts have. shapes: of all its tensors, by name."""
    linear, rest, job = Counter(), Counter(), Counter()
    always = 0
    for name, shape in shapes.items():
        kind, part = part_of(name)
        if kind == "block":
            # Matrices are linear layers' weights.
            (linear if len(shape) == 2 else rest)[part] += prod(shape)
        elif kind == "job":
            job[part] += prod(shape)
        else:
            always += prod(shape)
    largest = max(linear, key=lambda name: linear[name])
    return TransformerSize(
        whole=_numbers(shapes),
        linear=linear.total(),
        rest=rest.total(),
        block_linear=linear[largest],
        block_rest=rest[largest],
        job=max(job.values()),
        always=always,
        width=shapes["x_embedder.proj.weight"][0],
    )


def part_of(name: str) -> tuple[str, str]:
    """Of a transformer's tensor or layer: "block", "job" or "always", and which of these parts."""
    block = BLOCK.match(name)
    if block:
        # A layer's name has no dot at its end.
        return ("job" if f"{name[block.end() :]}.".startswith(TABLES) else "block"), block.group()
    return ("job", name.split(".")[0]) if f"{name}.".startswith(JOB) else ("always", "")


def text_size(language: Shapes, clip: Shapes) -> EncoderSize:
    """The language model passes through a card layer by layer, two at a time; the rest stays there meanwhile."""
    layers = Counter()
    for name, shape in language.items():
        if layer := LAYER.match(name):
            layers[layer.group()] += prod(shape)
    whole = _numbers(language) + _numbers(clip)
    return EncoderSize(whole, whole - layers.total() + 2 * max(layers.values(), default=0))


def vae_size(shapes: Shapes) -> EncoderSize:
    """work: of decoding in the smallest tiles, about."""
    whole = _numbers(shapes)
    blocks = (shape for name, shape in shapes.items() if name.startswith("decoder.up_blocks.") and len(shape) == 5)
    # The last block works at the picture's own size, and has the narrowest layers.
    narrowest = min((shape[0] for shape in blocks), default=0)
    work = TILE_TENSORS * 2 * narrowest * TILE_FRAMES * TILE**2
    return EncoderSize(whole, whole, work, causal_cache=_causal_cache(shapes))


def with_film(size: ModelSize, cells: int) -> ModelSize:
    """For a film with so many cells in a latent that is decoded in order; 0 for any other. What it remembers is there twice
    until a stretch is decoded."""
    return replace(size, film=2 * size.vae.causal_cache * cells)


def _causal_cache(shapes: Shapes) -> int:
    """Without the borders of frames, which are few, and as if no upsampler doubled time."""
    upsamplers = {int(found.group(1)) for name in shapes if (found := UPSAMPLER.match(name))}
    total = 0
    for name, shape in shapes.items():
        found = LOOKS_BACK.match(name)
        if found and "weight" in name[found.end() :].partition("conv")[2] and len(shape) == 5 and shape[2] > 1:
            block = int(found.group(1)) if found.group(1) else len(upsamplers) * (found.group(2) == "out")
            total += 2 * shape[1] * 4 ** sum(1 for one in upsamplers if one < block)
        elif name.startswith("decoder.mid_block.") and name.endswith(("to_k.weight", "to_v.weight")):
            total += shape[0] * ATTENTION_LATENTS
    return total


def _copied(found: Tensors) -> int:
    """Beside a card; without one the whole is counted."""
    return sum(
        prod(shape)
        for name, shape in found.shapes.items()
        if part_of(name)[0] != "block" and found.dtypes[name] != TRANSFORMER_TYPE
    )


def _mapped(found: Tensors) -> int:
    return sum(prod(shape) for name, shape in found.shapes.items() if found.dtypes[name] == CARD_TYPE)


def _numbers(shapes: Shapes) -> int:
    return sum(prod(shape) for shape in shapes.values())
