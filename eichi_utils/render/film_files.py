"""Write a run's files: the film or picture, and what was asked for beside it. Only files that the run wrote are deleted.

    J_LATENTS.mp4                        the film; with `keep_section_videos` also those after each section
    J_SECTION.png, J_0_end.png           `section_stills`; the second where section 0 is a film's end without a final frame
    J_frames_sectionSECTION/frame_NNNNN.png   `save_frames`; NNNNN is the frame's place in the whole film
    J.safetensors                        `save_latents`

J is the job's id. A frame is written once, as soon as no later section can change it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy
from PIL import Image

from diffusers_helper.vae.frames import frames_of
from diffusers_helper.vae.latents import images, to_uint8
from eichi_utils.exchange.latent_files import write_latents
from eichi_utils.exchange.metadata import mp4_tags, png_info
from eichi_utils.exchange.video import FilmWriter, write_png
from eichi_utils.jobs.events import Saved
from eichi_utils.render.section_loop import Decoded
from eichi_utils.requests.film_request import FilmRequest
from eichi_utils.requests.plan import Plan
from eichi_utils.requests.request import Request

if TYPE_CHECKING:
    from eichi_utils.files.paths import Outputs


class FilmFiles:
    """Write a run's film or picture, stills, frames and latents as they are decoded.

    files: paths of what exists, the result first. writer: must be entered as a context manager around `save` and `rest`.
    """

    def __init__(self, request: Request, plan: Plan, outputs: Outputs):
        self.request, self.plan, self.outputs = request, plan, outputs
        self.writer = FilmWriter(outputs.make(), plan.grows, getattr(request, "crf", 0), mp4_tags(request))
        self.files: list[str] = []
        self._pngs = FramePngs(request, plan, outputs)
        self._newest: Path | None = None
        self._last: Decoded | None = None
        # Whether all final frames of the last section were written as PNGs.
        self._settled = False

    def save(self, decoded: Decoded) -> Iterator[Saved]:
        """Write the film so far or the picture, and the section's stills and frames; yield a Saved for each complete file."""
        self._last, self._settled = decoded, False
        if self.plan.output == "picture":
            path = self.outputs.path("_oneframe.png")
            write_png(path, Image.fromarray(images(decoded.final)[0].numpy()), png_info(self.request))
            self.files = [str(path)]
            yield Saved(at=time.monotonic(), path=str(path), kind="picture", section=decoded.section, frames=1)
            return
        final = images(decoded.final).numpy()
        self.writer.add(final)
        yield self._film(decoded)
        yield from self._noted(self._pngs.add(final))
        self._settled = True

    def rest(self) -> Iterator[Saved]:
        """Write what waits for the end of a run, however it ends: the frames that were still open, and the film's latents."""
        if self._last is None or self.plan.output == "picture":
            return
        if self._settled:
            yield from self._noted(self._pngs.add(to_uint8(self._last.open).numpy()))
        if getattr(self.request, "save_latents", False):
            path = self.outputs.path(".safetensors")
            write_latents(path, self._last.film, self.request)
            yield from self._noted([Saved(at=time.monotonic(), path=str(path), kind="latents")])

    def _film(self, decoded: Decoded) -> Saved:
        latents = self.plan.latents_after(decoded.section + 1)
        path = self.outputs.path(f"_{latents}.mp4")
        self.writer.write(path, to_uint8(decoded.open).numpy())
        before, self._newest = self._newest, path
        replaces = ""
        if before and not (isinstance(self.request, FilmRequest) and self.request.keep_section_videos):
            before.unlink(missing_ok=True)
            replaces = str(before)
            self.files.remove(replaces)
        self.files.insert(0, str(path))
        kind = "film" if decoded.section == len(self.plan.sections) - 1 else "so_far"
        frames = frames_of(latents)
        return Saved(at=time.monotonic(), path=str(path), kind=kind, section=decoded.section, frames=frames, replaces=replaces)

    def _noted(self, saved: Iterator[Saved] | list[Saved]) -> Iterator[Saved]:
        for event in saved:
            self.files.append(event.path)
            yield event


class FramePngs:
    """Write single frames as PNG files: the sections' stills, and the frames that the request asks for."""

    def __init__(self, request: Request, plan: Plan, outputs: Outputs):
        self.request, self.plan, self.outputs = request, plan, outputs
        # Only film requests have stills and frames.
        self._stills = isinstance(request, FilmRequest) and request.section_stills
        self._frames = request.save_frames if isinstance(request, FilmRequest) else "none"
        self._done = 0
        self._announced: set[int] = set()

    def add(self, frames: numpy.ndarray) -> Iterator[Saved]:
        """Write what is wanted of the next final frames, and yield a Saved for each still and each new folder of frames.

        frames: (frames, height, width, 3) uint8, at the film's growing side, in the order of playing.
        """
        plan = self.plan
        first = plan.frames - self._done - len(frames) if plan.grows == "front" else self._done
        self._done += len(frames)
        for number in range(len(plan.sections)):
            own = plan.section_frames(number)
            new = range(max(own.start, first), min(own.stop, first + len(frames)))
            if self._stills and own[-1] in new:
                # `_0_end` is the existing program's name, by which its users find the film's last picture.
                ends = number == 0 and plan.grows == "front" and not plan.opening
                path = self.outputs.path("_0_end.png" if ends else f"_{number}.png")
                self._write(path, frames[own[-1] - first], number, own[-1])
                yield Saved(at=time.monotonic(), path=str(path), kind="still", section=number)
            wanted = self._frames == "all" or (self._frames == "last" and number == len(plan.sections) - 1)
            if wanted and len(new):
                folder = self.outputs.path(f"_frames_section{number}")
                folder.mkdir(exist_ok=True)
                for frame in new:
                    self._write(folder / f"frame_{frame:05d}.png", frames[frame - first], number, frame)
                if number not in self._announced:
                    self._announced.add(number)
                    yield Saved(at=time.monotonic(), path=str(folder), kind="frames", section=number)

    def _write(self, path: Path, frame: numpy.ndarray, section: int, number: int) -> None:
        write_png(path, Image.fromarray(frame), png_info(self.request, section, number))
