"""Encode what a film is sampled from, prompts and pictures, as far as the cache does not have it."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from PIL import Image
from torch import Tensor

from diffusers_helper.encoders.text import TextEmbedding, encode_prompt
from diffusers_helper.encoders.vision import encode_image
from diffusers_helper.vae.latents import encode_picture
from eichi_utils.exchange.latent_files import LatentClip, read_latents, trim
from eichi_utils.jobs.events import Event, Notice, Stage
from eichi_utils.render.condition_cache import ConditionCache
from eichi_utils.render.conditions import Conditions, Pictures, encode_mask, pixels_of
from eichi_utils.requests.plan import Append, Plan
from eichi_utils.requests.request import Request

if TYPE_CHECKING:
    from eichi_utils.models.pool import ModelPool


def encode_conditions(
    request: Request, plan: Plan, pictures: Pictures, pool: ModelPool
) -> Generator[Event | Conditions, None, None]:
    """Encode all that a plan's sections are sampled from; yield events, and the Conditions last."""
    negative = request.negative_prompt if request.cfg_scale != 1.0 else None
    cache = ConditionCache(pool)
    yield Stage(at=time.monotonic(), name="text")
    texts = plan.prompts if negative is None else (*plan.prompts, negative)
    embeddings = yield from _embeddings(list(dict.fromkeys(texts)), cache, pool)
    yield from _cut_prompts(embeddings)
    yield Stage(at=time.monotonic(), name="vision")
    image = _image_tokens(pictures.start, cache, pool)
    yield Stage(at=time.monotonic(), name="encode")
    latents = _latents(pictures, cache, pool)
    append = appended_latents(plan.append) if plan.append else None
    masks = {name: encode_mask(mask) for name, mask in pictures.masks.items()}
    yield Stage(at=time.monotonic(), name="load")
    yield Conditions(
        prompts={prompt: embeddings[prompt] for prompt in plan.prompts},
        image=image,
        latents=latents,
        masks=masks,
        negative=None if negative is None else embeddings[negative],
        append=append,
    )


def appended_latents(append: Append) -> LatentClip:
    """Read the latents that are appended to the film, without those that are cut off at their ends.

    Raises UserError if the file cannot be used.
    """
    info, latents = read_latents(append.file)
    return trim(info, latents, append.skip_start, append.skip_end)


def _embeddings(
    texts: Sequence[str], cache: ConditionCache, pool: ModelPool
) -> Generator[Event, None, dict[str, TextEmbedding]]:
    """Return the embedding of each text; the text encoder is loaded only for those that are not in the cache."""
    found = {text: made for text in texts if (made := cache.prompt(text)) is not None}
    if missing := [text for text in texts if text not in found]:
        with pool.text() as encoders:
            for text in missing:
                found[text] = cache.keep_prompt(text, pool.room.retry_after_oom(partial(encode_prompt, encoders, text)))
                yield Stage(at=time.monotonic(), name="text")
    return found


def _cut_prompts(embeddings: Mapping[str, TextEmbedding]) -> Iterator[Notice]:
    """Yield a notice for each prompt that is longer than the encoder reads, with both lengths in tokens."""
    for embedding in embeddings.values():
        if embedding.read < embedding.written:
            values = {"read": embedding.read, "written": embedding.written}
            yield Notice(at=time.monotonic(), key="prompt_cut", values=values)


def _image_tokens(start: Image.Image, cache: ConditionCache, pool: ModelPool) -> Tensor:
    """Return the vision encoder's tokens of the start picture, (1, n, width), from the cache or the encoder."""
    image = cache.image(start)
    if image is None:
        with pool.vision() as encoder:
            image = cache.keep_image(start, pool.room.retry_after_oom(partial(encode_image, encoder, start)))
    return image


def _latents(pictures: Pictures, cache: ConditionCache, pool: ModelPool) -> dict[str, Tensor]:
    """Return the latents (1, 16, 1, h, w) of each picture by its name, from the cache or the VAE."""
    found = {name: made for name, picture in pictures.by_name.items() if (made := cache.latents(picture)) is not None}
    if missing := [name for name in pictures.by_name if name not in found]:
        with pool.vae(pictures.height * pictures.width) as vae:
            for name in missing:
                picture = pictures.by_name[name]
                encode = partial(encode_picture, vae, pixels_of(picture))
                found[name] = cache.keep_latents(picture, pool.room.retry_after_oom(encode))
    return found
