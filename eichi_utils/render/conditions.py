"""Open a plan's pictures and masks, fit them to the film's size, and convert them to the tensors that networks read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy
import torch
from PIL import Image
from torch import Tensor

from diffusers_helper.buckets import bucket, cover_crop
from diffusers_helper.encoders.text import TextEmbedding
from diffusers_helper.vae.latents import SPATIAL
from eichi_utils.exchange.latent_files import LatentClip
from eichi_utils.files.pictures import open_mask, open_picture, profile_problem
from eichi_utils.problems import Problem
from eichi_utils.requests.plan import Plan


@dataclass(frozen=True)
class Pictures:
    """Hold a plan's pictures and masks by name, all scaled and cropped to the film's size, `height` x `width` pixels."""

    height: int
    width: int
    by_name: Mapping[str, Image.Image]
    masks: Mapping[str, Image.Image]

    @property
    def start(self) -> Image.Image:
        """Return the start picture."""
        return self.by_name["start"]


@dataclass(frozen=True)
class Conditions:
    """Hold everything a film is sampled from; tensors are float32 on the CPU.

    prompts: embedding by prompt. image: the vision encoder's tokens (1, n, width), or None. latents: (1, 16, 1, h, w) by the
    picture's name. masks: (1, 1, 1, h, w) by name. negative: embedding of the negative prompt, None without guidance by it.
    append: the earlier film's latents that follow this film.
    """

    prompts: Mapping[str, TextEmbedding]
    image: Tensor | None
    latents: Mapping[str, Tensor]
    masks: Mapping[str, Tensor] = field(default_factory=dict)
    negative: TextEmbedding | None = None
    append: LatentClip | None = None


def fit_pictures(plan: Plan, size: int) -> Pictures:
    """Open a plan's pictures and masks, and scale and crop them to one size, chosen by the start picture's proportions.

    size: the size family, about the square root of the pixels. Raises UserError if a file cannot be used.
    """
    start = open_picture(plan.pictures["start"])
    height, width = bucket(size, start.height, start.width)
    by_name, masks = {}, {}
    for name, path in plan.pictures.items():
        picture = start if path == plan.pictures["start"] else open_picture(path, name)
        by_name[name] = cover_crop(picture, height, width)
        if mask := plan.masks.get(name):
            # A mask is first stretched to its picture's size, so that both are cropped alike even if its proportions differ.
            resized = open_mask(mask, name).resize(picture.size, Image.Resampling.BILINEAR)
            masks[name] = cover_crop(resized, height, width)
    return Pictures(height, width, by_name, masks)


def profile_problems(plan: Plan) -> list[Problem]:
    """Return a problem for each picture whose colour profile cannot be used, and which is read as sRGB instead."""
    paths = dict.fromkeys(plan.pictures.values())
    return [problem for path in paths if (problem := profile_problem("", path))]


def pixels_of(picture: Image.Image) -> Tensor:
    """Return an RGB picture's pixels as float32 (1, 3, 1, H, W) in -1..1."""
    values = torch.from_numpy(numpy.array(picture)).float() / 127.5 - 1.0
    return values.permute(2, 0, 1)[None, :, None]


def encode_mask(mask: Image.Image) -> Tensor:
    """Return a grey mask of H x W pixels as float32 (1, 1, 1, H/8, W/8) in 0..1: the mean over each latent cell."""
    cells = mask.resize((mask.width // SPATIAL, mask.height // SPATIAL), Image.Resampling.BOX)
    return torch.from_numpy(numpy.array(cells)).float()[None, None, None] / 255.0
