"""Check quickly during training whether films of held-out scenes move as their captions say."""

from __future__ import annotations

from dataclasses import replace

import torch
from diffusers import AutoencoderKLHunyuanVideo
from torch import Tensor
from transformers import SiglipVisionModel

from diffusers_helper.models.transformer import PackedTransformer
from diffusers_helper.sampling import schedule, unipc
from miniature.batched import FILM_TIMES, Inputs, rope_table, velocity
from miniature.captions import KINDS
from miniature.clips import HELD_OUT, scenes
from miniature.lessons import Lesson, encoded
from miniature.networks import CaptionBank


@torch.no_grad()
def probe(
    net: PackedTransformer,
    vae: AutoencoderKLHunyuanVideo,
    siglip: SiglipVisionModel,
    captions: CaptionBank,
    pictures: Tensor,
    lesson: Lesson,
    count: int,
    dtype: torch.dtype,
    steps: int = 10,
) -> dict[str, float]:
    """Measure moves, pans and zooms in the reverse and the forward layout.

    count: scenes of each kind. steps: of the sampling. Returns for each kind and layout the share of films that are nearest to
    the true clip of their own direction among those of all directions ("move_reverse"), and the error of their latents as a
    share of the error of a still film ("move_reverse_error").
    """
    figures = {}
    lesson = replace(lesson, sections=1)
    for kind in ("move", "pan", "zoom"):
        seeds = torch.arange(HELD_OUT, HELD_OUT + count, device=pictures.device)
        scene = scenes(seeds, len(pictures), {kind: 1.0}, simple=lesson.simple)
        made = [encoded(vae, siglip, scene.turned_to(d), pictures, lesson) for d in range(KINDS[kind])]
        truths = torch.stack([latents[:, :, 1:].float() for latents, _, _ in made])
        start, image = made[0][0][:, :, :1], made[0][2]
        right = truths[scene.direction, torch.arange(count)]
        still = (start.float() - right).square().flatten(1).mean(1)
        for name, layout in (("reverse", 0), ("forward", 4)):
            film = sampled(net, captions, scene.captions(), start.to(dtype), image.to(dtype), layout, steps)
            errors = (truths - film).square().flatten(2).mean(2)
            figures[f"{kind}_{name}"] = (errors.argmin(0) == scene.direction).float().mean().item()
            own = errors[scene.direction, torch.arange(count)]
            figures[f"{kind}_{name}_error"] = (own.mean() / still.mean()).item()
    return figures


def sampled(
    net: PackedTransformer,
    captions: CaptionBank,
    texts: list[str],
    start: Tensor,
    image: Tensor,
    layout: int,
    steps: int,
    noise_seed: int = 0,
) -> Tensor:
    """Sample the first sections of B films, (B, 16, 9, h, w) in float32.

    texts: their captions, which the bank holds. start: latents of the start pictures (B, 16, 1, h, w), times the VAE's scaling
    factor, and image: their tokens (B, 16, 64), both in the network's dtype. layout: index into FILM_TIMES.
    """
    b, _, _, h, w = start.shape
    film = torch.zeros(b, 16, 9, h, w, device=start.device)
    places = [captions.place[text] for text in texts]
    rope = rope_table(FILM_TIMES[layout], h, w, net.config, start.device)[:, None]
    sigmas = schedule(steps, 9 * h * w // 4)
    generator = torch.Generator("cpu").manual_seed(noise_seed)
    noise = torch.randn(film.shape, generator=generator).to(film)
    for length in {length for length, _ in places}:
        rows = torch.tensor([i for i, place in enumerate(places) if place[0] == length], device=start.device)
        row = torch.tensor([places[i][1] for i in rows.tolist()], device=start.device)
        first, n = start[rows], len(rows)
        zeros = torch.zeros_like(first).expand(-1, -1, 16, -1, -1)
        near = first if layout == 4 else torch.zeros_like(first)

        def denoise(
            x: Tensor, step: int, row=row, rows=rows, first=first, zeros=zeros, near=near, n=n, length=length
        ) -> Tensor:
            inputs = Inputs(
                noisy=x.to(first.dtype),
                clean=torch.cat([first, near], dim=2),
                two=zeros[:, :, :2],
                four=zeros,
                rope=rope,
                sigma=torch.full((n,), sigmas[step], device=x.device),
                guidance=torch.full((n,), 10000.0, device=x.device),
                text=captions.tokens[length][row],
                pooled=captions.pooled[length][row],
                image=image[rows],
            )
            return x - sigmas[step] * velocity(net, inputs)

        for _, x0 in unipc(denoise, noise[rows], sigmas):
            result = x0
        film[rows] = result
    return film
