"""Write the film that is joined to an earlier one: its frames as they are decoded, and its latents."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from diffusers_helper.vae.frames import frames_of
from diffusers_helper.vae.latents import decode_frames, images, rounded_on_host
from diffusers_helper.vae.vae_decode import only_frames
from eichi_utils.exchange.latent_files import LatentClip, write_clip
from eichi_utils.exchange.metadata import mp4_tags
from eichi_utils.exchange.video import FilmStream
from eichi_utils.jobs.events import Saved
from eichi_utils.render.section_loop import FramesBatch, Joined
from eichi_utils.requests.film_request import FilmRequest
from eichi_utils.requests.request import Request

if TYPE_CHECKING:
    from eichi_utils.files.paths import Outputs
    from eichi_utils.models.pool import ModelPool


class JoinedFilm:
    """Write the joined film of a job; nothing is written for a job that appends none.

    files: paths of what is written, the film first. stream: must be entered as a context manager around `add` and `save`.
    """

    def __init__(self, request: Request, outputs: Outputs):
        self.request, self.outputs = request, outputs
        self.files: list[str] = []
        self.stream = FilmStream(outputs.folder, getattr(request, "crf", 0), mp4_tags(request))

    def add(self, stretch: FramesBatch) -> None:
        """Write the next finished frames of the joined film."""
        self.stream.add(images(stretch.final).numpy())

    def save(self, joined: Joined) -> Iterator[Saved]:
        """Finish the film's file and write its latents if the request wants them; yield a Saved event for each.

        The file names are the existing program's.
        """
        path = self.outputs.path("_combined.mp4")
        self.stream.write(path)
        self.files = [str(path)]
        yield Saved(at=time.monotonic(), path=str(path), kind="joined", frames=frames_of(joined.clip.latents.shape[2]))
        if isinstance(self.request, FilmRequest) and self.request.save_latents:
            path = self.outputs.path("_combined_tensors.safetensors")
            own, *others = joined.clip.parts
            # The latents of the film without the appended one are in the file that this part names.
            parts = {**own, "file": self.outputs.path(".safetensors").name}, *others
            write_clip(path, LatentClip(joined.clip.latents, parts), self.request)
            self.files.append(str(path))
            yield Saved(at=time.monotonic(), path=str(path), kind="latents")


def decode_film(pool: ModelPool, latents: Tensor, path: Path, crf: int, tags: Mapping[str, str]) -> Iterator[int]:
    """Decode latents (1, 16, T, h, w) in one go and write them as an MP4; yields how many of the 4 T - 3 frames are done.

    path: of the film. crf: its quality. tags: its metadata. The file appears only when the generator has run to its end.
    """
    frames = 0
    with FilmStream(path.parent, crf, tags) as film, pool.vae(latents.numel()) as vae:
        for clip in only_frames(decode_frames(vae, latents, None, pool.room)):
            film.add(images(rounded_on_host(clip)).numpy())
            frames += clip.shape[2]
            yield frames
        film.write(path)
