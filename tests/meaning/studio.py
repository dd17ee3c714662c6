"""Make films with the trained miniature and the program's own code, from pictures whose content is known."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from PIL import Image
from torch import Tensor

from diffusers_helper.vae import latents as vae_passes
from diffusers_helper.vae.frames import FRAMES_PER_LATENT
from eichi_utils.files.paths import MINIATURE
from eichi_utils.jobs.queue import Stop
from eichi_utils.models.pool import ModelPool
from eichi_utils.render import section_loop as program
from eichi_utils.render.conditions import fit_pictures, pixels_of
from eichi_utils.render.encoding import encode_conditions
from eichi_utils.render.section_loop import Decoded, sample_film
from eichi_utils.requests.modes import MODES
from eichi_utils.requests.plan import Plan
from eichi_utils.requests.request import Request, to_json
from miniature.clips import HELD_OUT, SHAPE_NAMES, Scenes, render, scenes
from miniature.pictures import bank

SIDE = 128
# Fewer steps than recommended: enough for direction and place, in less than half of the time.
STEPS = 4
SECTION_SECONDS = 1.2
# Index of a section's last latent in a film of one section, because latent 0 is the start picture.
LAST = 9
CAPTIONS = ("to the left", "to the right", "up", "down")
LEFT, RIGHT, UP, DOWN = range(4)
# A caption that names no direction.
NOWHERE = "The red circle moves."


def moves(direction: int) -> str:
    return f"The red circle moves {CAPTIONS[direction]}."


def pans(direction: int) -> str:
    return f"The camera pans {CAPTIONS[direction]}."


class Studio:
    """Make pictures and films; a film that was made before is returned again."""

    def __init__(self, folder: Path):
        self.pool = ModelPool(MINIATURE, device="cpu")
        self.folder = folder
        self._bank = bank(torch.arange(HELD_OUT + 500, HELD_OUT + 516), 160)
        self._films: dict[str, Tensor] = {}

    def circle(self, x: float, y: float) -> str:
        """Draw a red circle on a plain background, its centre at (x, y) in 0..1, and return the picture's path."""
        scene = self._scene("move", 2000, background=0, shape=SHAPE_NAMES.index("circle"), colour=0)
        return self._picture(dataclasses.replace(scene, place=torch.tensor([[x, y]]), size=torch.tensor([0.14])))

    def landscape(self) -> str:
        """Draw a picture with much detail for pans and zooms, and return its path."""
        return self._picture(self._scene("pan", 2001, background=6))

    def request(self, mode: str, image: str, prompt: str, sections: int = 1, **fields: Any) -> Request:
        length = {} if mode == "single" else {"seconds": sections * SECTION_SECONDS}
        quick = {"seed": 7, "steps": STEPS, "size": SIDE, "step_cache": "none"}
        return MODES[mode](image=image, prompt=prompt, **{**quick, **length, **fields})

    def film(self, request: Request) -> Tensor:
        """Return the film's latents in the order of time, (1, 16, T, h, w)."""
        key = json.dumps(to_json(request))
        if key not in self._films:
            self._films[key] = self.shoot(request, request.plan())
        return self._films[key]

    def shoot(self, request: Request, plan: Plan) -> Tensor:
        """Return the latents of a film that is made after any plan and not kept for later.

        Nothing is decoded, because decoding a whole film would take most of the time.
        """
        films = [item.film for item in self._sampled(request, plan) if isinstance(item, Decoded)]
        return films[-1]

    def joined(self, request: Request) -> Tensor:
        """Return the latents of the film together with those that the request appends to it."""
        *_, last = self._sampled(request, request.plan())
        return last.clip.latents

    def _sampled(self, request: Request, plan: Plan) -> list:
        assert request.check() == ()
        *_, conditions = encode_conditions(request, plan, fit_pictures(plan, request.size), self.pool)
        with patch.object(program, "decode_frames", _grey):
            return list(sample_film(request, plan, conditions, self.pool, Stop()))

    def look(self, film: Tensor, number: int) -> Tensor:
        """Decode one latent of a film alone to a frame, (3, H, W) in about -1..1."""
        with self.pool.vae() as vae:
            return vae_passes.decode(vae, film[:, :, number : number + 1])[0, :, 0]

    def pixels(self, picture: str) -> Tensor:
        """Return the pixels of a picture file, (3, H, W) in -1..1."""
        return pixels_of(Image.open(picture))[0, :, 0]

    def reconstructed(self, picture: str) -> Tensor:
        """Return what the VAE alone makes of a picture, (3, H, W): no frame of a film can be nearer to it."""
        with self.pool.vae() as vae:
            return vae_passes.decode(vae, vae_passes.encode_picture(vae, self.pixels(picture)[None, :, None]))[0, :, 0]

    def _scene(self, kind: str, seed: int, **indices: int) -> Scenes:
        scene = scenes(torch.tensor([HELD_OUT + seed]), len(self._bank), {kind: 1.0})
        return dataclasses.replace(scene, **{name: torch.tensor([value]) for name, value in indices.items()})

    def _picture(self, scene: Scenes) -> str:
        path = self.folder / f"{len(list(self.folder.iterdir()))}.png"
        pixels = render(scene, self._bank, torch.zeros(1), SIDE, SIDE)[0, :, 0]
        Image.fromarray((pixels * 127.5 + 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()).save(path)
        return str(path)


def _grey(vae: Any, latents: Tensor, *_: Any) -> Iterator[Tensor]:
    yield torch.zeros(1, 3, FRAMES_PER_LATENT * latents.shape[2] - 3, 2, 2)
