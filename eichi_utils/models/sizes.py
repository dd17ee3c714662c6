"""Count a model's parameters by its files' headers; they are not bytes, because precision is chosen later. Without torch."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, replace
from math import prod

from diffusers_helper.checkpoints.files import CheckpointError, Shapes, Tensors, read_headers, weight_files
from eichi_utils.models.hub import STEMS, ModelFiles

BLOCK = re.compile(r"(single_)?transformer_blocks\.\d+\.")
# Layers of a block that only a prompt's tables are computed from, before the first step.
TABLES = ("norm1.linear.", "norm1_context.linear.", "norm.linear.")
# Other parts that only tables are computed from; each comes to the card on its own.
JOB = ("time_text_embed.", "context_embedder.", "image_projection.", "norm_out.")
LAYER = re.compile(r"(?:model\.)?(?:language_model\.)?layers\.\d+\.")
# Side in pixels and frames of the smallest tile that is decoded, and how many tensors of its widest layer exist at a time.
TILE, TILE_FRAMES, TILE_TENSORS = 128, 21, 6
# Names of the VAE decoder's upsamplers, and of its parts with convolutions that look back in time, each at two frames. The
# upsamplers before a convolution's block tell the size of its frames.
UPSAMPLER = re.compile(r"decoder\.up_blocks\.(\d+)\.upsamplers\.")
LOOKS_BACK = re.compile(r"decoder\.(?:up_blocks\.(\d+)\.|mid_block\.|conv_(in|out)\.)")
# Latent frames whose keys and values the decoder's attention looks back at, as in diffusers_helper.vae.causal_cache.
ATTENTION_LATENTS = 33
# Dtypes by safetensors' names in which the encoders, and the transformer, are computed on a card.
CARD_TYPE = "F16"
TRANSFORMER_TYPE = "BF16"


@dataclass(frozen=True)
class TransformerSize:
    """Count a transformer's parameters.

    whole: all. linear: weight matrices of blocks, which 8-bit formats store; rest: the blocks' other parameters that every step
    needs. block_linear, block_rest: the same of the largest block. job: the largest part that only a prompt's tables are
    computed from. always: parameters that stay on a card. width: of a token. copied: parameters outside of blocks that have
    another dtype in their file than on a card, and so are copied to memory.
    """

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
    """Count an encoder's or the VAE's parameters, and the numbers that computing takes.

    whole: all parameters. card: those that a card holds at a time. work: numbers that computing takes besides. mapped:
    parameters that stay in their files with a card, because they are stored in the dtype of computing. causal_cache: numbers
    that the decoder's causal cache holds for each cell of a latent (`causal_cache_bytes` in diffusers_helper.vae.causal_cache).
    """

    whole: int
    card: int
    work: int = 0
    mapped: int = 0
    causal_cache: int = 0


@dataclass(frozen=True)
class ModelSize:
    """Hold the sizes of a model's networks. film: numbers that the decoder's causal cache holds while a film is made."""

    transformer: TransformerSize
    text: EncoderSize
    vision: EncoderSize
    vae: EncoderSize
    film: int = 0


# Sizes of the hub's models, used before they are downloaded.
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
    """Return the size of the model in these files; if one is missing or is not such a model's, that of the hub's models."""
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
    # Missing files and those of other models are reported elsewhere.
    except (CheckpointError, LookupError, ValueError):
        return PUBLISHED


def transformer_size(shapes: Shapes) -> TransformerSize:
    """Count the parameters of a transformer's parts. shapes: of all its tensors, by name."""
    linear, rest, job = Counter(), Counter(), Counter()
    always = 0
    for name, shape in shapes.items():
        kind, part = part_of(name)
        if kind == "block":
            # Tensors of two dimensions are the weights of linear layers.
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
    """Return how a transformer's tensor or layer is used, "block", "job" or "always", and the name of its part."""
    block = BLOCK.match(name)
    if block:
        # The dot is added because the name of a layer, unlike a tensor's, ends without one.
        return ("job" if f"{name[block.end() :]}.".startswith(TABLES) else "block"), block.group()
    return ("job", name.split(".")[0]) if f"{name}.".startswith(JOB) else ("always", "")


def text_size(language: Shapes, clip: Shapes) -> EncoderSize:
    """Return the size of the two text encoders. language, clip: shapes of their tensors, by name.

    The language model's layers are streamed through a card, two at a time; the rest stays there meanwhile.
    """
    layers = Counter()
    for name, shape in language.items():
        if layer := LAYER.match(name):
            layers[layer.group()] += prod(shape)
    whole = _numbers(language) + _numbers(clip)
    return EncoderSize(whole, whole - layers.total() + 2 * max(layers.values(), default=0))


def vae_size(shapes: Shapes) -> EncoderSize:
    """Return the VAE's size; `work` is about what decoding in the smallest tiles takes. shapes: of its tensors, by name."""
    whole = _numbers(shapes)
    blocks = (shape for name, shape in shapes.items() if name.startswith("decoder.up_blocks.") and len(shape) == 5)
    # The last block works at the picture's own size, and has the narrowest layers.
    narrowest = min((shape[0] for shape in blocks), default=0)
    work = TILE_TENSORS * 2 * narrowest * TILE_FRAMES * TILE**2
    return EncoderSize(whole, whole, work, causal_cache=_causal_cache(shapes))


def with_film(size: ModelSize, cells: int) -> ModelSize:
    """Return the size with a film's causal cache, which exists twice while a stretch is decoded.

    cells: of a latent, as `requirements.film_cells`; 0 for a film without the cache.
    """
    return replace(size, film=2 * size.vae.causal_cache * cells)


def _causal_cache(shapes: Shapes) -> int:
    """Count the numbers that the decoder's causal cache holds for each cell of a latent.

    The borders of frames, which are few, are left out, and upsamplers count as if none doubled time.
    """
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
    """Count the parameters outside of blocks that have another dtype in the file than on a card."""
    return sum(
        prod(shape)
        for name, shape in found.shapes.items()
        if part_of(name)[0] != "block" and found.dtypes[name] != TRANSFORMER_TYPE
    )


def _mapped(found: Tensors) -> int:
    return sum(prod(shape) for name, shape in found.shapes.items() if found.dtypes[name] == CARD_TYPE)


def _numbers(shapes: Shapes) -> int:
    return sum(prod(shape) for shape in shapes.values())
