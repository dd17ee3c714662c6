"""Measure how good the miniature is: `python -m miniature.evaluate [FOLDER] [--json] [--only vae,sprites,...] [--sheets DIR]`.

Everything runs on the CPU through the program's own code (ModelPool, requests, plans, sample_film) on held-out scenes.
A figure is printed with the bound that it must keep, if it has one, and whether it does.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy
import torch
from PIL import Image
from torch import Tensor

from diffusers_helper.buckets import cover_crop
from diffusers_helper.vae.latents import decode, encode_picture, on_host
from eichi_utils.jobs.queue import Stop
from eichi_utils.models.pool import ModelPool
from eichi_utils.render.conditions import Conditions, fit_pictures, pixels_of
from eichi_utils.render.encoding import encode_conditions
from eichi_utils.render.history import joined
from eichi_utils.render.section_loop import Decoded, sample_film
from eichi_utils.requests.forward import ForwardRequest
from eichi_utils.requests.request import Request
from eichi_utils.requests.reverse import ReverseRequest
from eichi_utils.requests.single import SingleRequest
from miniature import vae as passes
from miniature.captions import KINDS
from miniature.clips import HELD_OUT, SECTION, VECTORS, Scenes, render, scenes
from miniature.pictures import bank
from miniature.train import WEIGHTS
from miniature.train_vae import psnr

SIDE, STEPS, SECTION_SECONDS = 128, 15, 1.2
# Least PSNR of each photo through the VAE: 1.5 dB above a PCA of 8x8 patches with 16 components.
PHOTOS = {"tower": 23.3, "lion": 26.4, "cheetah": 28.8}
LOOKED_AT = ("tower", "lion", "cheetah", "groot")
# Frame at which a shape's way is measured: in later frames the shape may have left the picture.
LATE = 30
MODES: dict[str, type[Request]] = {"reverse": ReverseRequest, "forward": ForwardRequest}


@dataclass(frozen=True)
class Figure:
    """Hold a measured value and its bound: the least allowed value, or the largest if `at_most`. None: no bound."""

    name: str
    value: float
    bound: float | None = None
    at_most: bool = False

    @property
    def holds(self) -> bool | None:
        """Return whether the value keeps its bound, or None where it has none."""
        if self.bound is None:
            return None
        return bool(self.value <= self.bound if self.at_most else self.value >= self.bound)


def decibels(made: Tensor, true: Tensor) -> float:
    """Return the PSNR in dB of pixels in -1..1; `made` is clamped to that range first."""
    return psnr((made.clamp(-1, 1) - true).square().mean().item())


class Evaluation:
    """Measure a checkpoint on held-out scenes; `parts` maps the name of each part to a call that yields its figures.

    count: scenes of each kind. sheets: folder for contact sheets, or None for none.
    """

    def __init__(self, folder: Path, count: int, sheets: Path | None):
        self.pool = ModelPool(folder, device="cpu")
        self.count, self.sheets = count, sheets
        seeds = torch.arange(HELD_OUT + 9000, HELD_OUT + 9032)
        self.pictures = bank(seeds, 256)
        self.parts: dict[str, Callable[[], Iterator[Figure]]] = {
            "vae": self.vae,
            "sprites": lambda: self.kind("move", self.count, 0.9),
            "pan": lambda: self.kind("pan", min(self.count, 16), 0.8),
            "zoom": lambda: self.kind("zoom", min(self.count, 16), 0.9),
            "sections": self.sections,
            "end": self.end,
            "time": self.time,
            "photos": self.photos,
            "single": self.single,
        }

    def scenes(self, kind: str, count: int) -> Scenes:
        """Return `count` scenes of a kind, whose seeds training never uses."""
        seeds = torch.arange(HELD_OUT + 1000, HELD_OUT + 1000 + count)
        return scenes(seeds, len(self.pictures), {kind: 1.0})

    def vae(self) -> Iterator[Figure]:
        """Measure the VAE alone: encode and decode photos and clips."""
        with self.pool.vae() as vae:
            for name, bound in PHOTOS.items():
                x = pixels_of(cover_crop(Image.open(photo(name)).convert("RGB"), 160, 160))
                y = decode(vae, encode_picture(vae, x))
                yield Figure(f"photo {name}, dB", decibels(y, x), bound)
                self.sheet(f"vae_{name}", torch.cat([x, y], dim=2))
            scene = scenes(torch.arange(HELD_OUT, HELD_OUT + 16), len(self.pictures), {"move": 2, "pan": 1, "zoom": 1})
            values, errors = [], torch.zeros(3)
            for number in range(16):
                x = render(_one(scene, number), self.pictures, torch.arange(33), SIDE, SIDE)
                with torch.inference_mode():
                    y = vae.decode(vae.encode(x).latent_dist.mode()).sample
                values.append(decibels(y, x))
                errors += passes.opponents(y - x).square().transpose(0, 1).flatten(1).mean(1) / 16
            yield Figure("16 clips, mean dB", sum(values) / 16, 27.0)
            axes = [psnr(error) for error in errors.tolist()]
            yield Figure("weaker colour axis against brightness, dB", min(axes[1:]) - axes[0], -3.0)

    def kind(self, kind: str, count: int, bound: float) -> Iterator[Figure]:
        """Make a film of one section of each scene in both modes, and compare it with the true clips of all directions.

        bound: least share of films that must be nearest to the clip of their caption's direction.
        """
        scene = self.scenes(kind, count)
        frames = torch.arange(SECTION + 1)
        for mode in MODES:
            right, tracked, covered, error, still, first = 0, 0, [], 0.0, 0.0, []
            for number in range(count):
                one = _one(scene, number)
                truths = [render(one.turned_to(d), self.pictures, frames, SIDE, SIDE) for d in range(KINDS[kind])]
                direction = int(one.direction)
                film, latents, conditions = self.film(mode, truths[direction][:, :, 0], one.captions()[0])
                with self.pool.vae() as vae, torch.inference_mode():
                    coded = [vae.encode(t).latent_dist.mode() * vae.config.scaling_factor for t in truths]
                distances = [(latents - c[:, :, 1:]).square().mean().item() for c in coded]
                right += int(numpy.argmin(distances)) == direction
                error += distances[direction]
                start = conditions.latents["start"]
                still += (start - coded[direction][:, :, 1:]).square().mean().item()
                with self.pool.vae() as vae:
                    own = decode(vae, start)
                first.append(decibels(own, truths[direction][:, :, :1]) - decibels(film[:, :, :1], truths[direction][:, :, :1]))
                if kind == "move":
                    share = along(film, truths[direction], one)
                    covered.append(share)
                    tracked += share > 0.5
                if number < 6:
                    self.sheet(f"{kind}_{mode}_{number}", torch.cat([truths[direction], film], dim=3)[:, :, ::6])
            yield Figure(f"{kind} {mode}: nearest of {KINDS[kind]} truths, of {count}", right / count, bound)
            if kind == "move":
                yield Figure(f"{kind} {mode}: tracked as captioned", tracked / count, bound)
                yield Figure(f"{kind} {mode}: share of the distance, median", float(numpy.median(covered)), 0.7)
            yield Figure(f"{kind} {mode}: latent error against a still film's", error / still, 0.35, at_most=True)
            yield Figure(f"{kind} {mode}: first frame below the VAE's own, mean dB", _mean(first), 0.5, at_most=True)
            yield Figure(f"{kind} {mode}: first frame below the VAE's own, worst dB", max(first))

    def sections(self) -> Iterator[Figure]:
        """Make films of two and of four sections, and measure each section and the joins between them.

        A section is compared with a still film of the start picture, a join with the changes between the frames around it.
        """
        for sections, count in ((2, 4), (4, 2)):
            scene = self.scenes("move", count)
            for mode in MODES:
                gains, jumps = [[] for _ in range(sections)], []
                for number in range(count):
                    one = _one(scene, number)
                    truth = render(one, self.pictures, torch.arange(sections * SECTION + 1), SIDE, SIDE)
                    film, _, _ = self.film(mode, truth[:, :, 0], one.captions()[0], sections=sections)
                    still = truth[:, :, :1]
                    for k in range(sections):
                        part = truth[:, :, 1 + k * SECTION : 1 + (k + 1) * SECTION]
                        made = film[:, :, 1 + k * SECTION : 1 + (k + 1) * SECTION]
                        gains[k].append(decibels(made, part) - decibels(still.expand_as(part), part))
                    jumps += joins(film, sections)
                    if number < 2:
                        self.sheet(
                            f"{sections}_sections_{mode}_{number}", torch.cat([truth, film], dim=3)[:, :, :: 6 * sections]
                        )
                for k in range(sections):
                    name = f"{sections} sections {mode}: gain on a still film in section {k + 1}, dB"
                    yield Figure(name, _mean(gains[k]), 2.0)
                yield Figure(f"{sections} sections {mode}: jump at the joins", _mean(jumps), 3.0, at_most=True)

    def end(self, count: int = 4) -> Iterator[Figure]:
        """Measure how much nearer a film's last frame comes to the end picture when the request has one."""
        scene, gains = self.scenes("move", count), []
        for number in range(count):
            one = _one(scene, number)
            other = render(one.turned_to((int(one.direction) + 1) % 4), self.pictures, torch.arange(SECTION + 1), SIDE, SIDE)
            last = other[:, :, -1]
            caption = one.turned_to((int(one.direction) + 1) % 4).captions()[0]
            with_end, _, _ = self.film("reverse", other[:, :, 0], caption, end=last)
            without, _, _ = self.film("reverse", other[:, :, 0], caption)
            gains.append(decibels(with_end[:, :, -1], last) - decibels(without[:, :, -1], last))
            self.sheet(f"end_{number}", torch.cat([other, without, with_end], dim=3)[:, :, ::6])
        yield Figure("end picture: nearer by, dB", _mean(gains), 6.0)
        yield Figure("end picture: nearer by, the least of them, dB", min(gains))

    def time(self) -> Iterator[Figure]:
        """Time one section of 160x160 in 25 steps, every one computed.

        When this part runs first, the time includes loading the networks.
        """
        x = pixels_of(cover_crop(Image.open(photo("tower")).convert("RGB"), 160, 160))[:, :, 0]
        began = time.perf_counter()
        self.film("reverse", x, "The camera zooms in.", size=160, steps=25)
        yield Figure("one section at 160x160, 25 steps, seconds", time.perf_counter() - began, 8.0, at_most=True)

    def photos(self) -> Iterator[Figure]:
        """Measure pans and zooms over photos, which no network was trained on; look at the contact sheets too."""
        photos = [cover_crop(Image.open(photo(name)).convert("RGB"), 256, 256) for name in LOOKED_AT]
        pictures = torch.stack([torch.from_numpy(numpy.array(picture)).permute(2, 0, 1) for picture in photos])
        frames = torch.arange(SECTION + 1)
        for kind in ("pan", "zoom"):
            scene = self.scenes(kind, len(photos))
            scene = replace(scene, background=torch.arange(len(photos)), direction=scene.seeds % KINDS[kind])
            right, error, still = 0, 0.0, 0.0
            for number, mode in enumerate(mode for _ in range(len(photos) // 2) for mode in MODES):
                one = _one(scene, number)
                truths = [render(one.turned_to(d), pictures, frames, SIDE, SIDE) for d in range(KINDS[kind])]
                true = truths[int(one.direction)]
                film, _, _ = self.film(mode, true[:, :, 0], one.captions()[0])
                errors = [(film - truth).square().mean().item() for truth in truths]
                right += int(numpy.argmin(errors)) == int(one.direction)
                error += errors[int(one.direction)]
                still += (true[:, :, :1] - true).square().mean().item()
                self.sheet(f"photo_{kind}_{LOOKED_AT[number]}", torch.cat([true, film], dim=3)[:, :, ::6])
            yield Figure(f"photos, {kind}: nearest of {KINDS[kind]} truths, of {len(photos)}", right / len(photos), 0.9)
            yield Figure(f"photos, {kind}: error of the pixels against a still film's", error / still)

    def single(self) -> Iterator[Figure]:
        """Measure the one-frame mode, whose picture shows the end of the first section."""
        count = min(self.count, 12)
        scene, right, gains = self.scenes("move", count), 0, []
        for number in range(count):
            one = _one(scene, number)
            frames = torch.tensor([0, SECTION])
            truths = [render(one.turned_to(d), self.pictures, frames, SIDE, SIDE) for d in range(KINDS["move"])]
            direction = int(one.direction)
            made, _, _ = self.film("single", truths[direction][:, :, 0], one.captions()[0])
            true = [truth[:, :, 1:] for truth in truths]
            right += int(numpy.argmin([-decibels(made, each) for each in true])) == direction
            gains.append(decibels(made, true[direction]) - decibels(truths[direction][:, :, :1], true[direction]))
            if number < 6:
                self.sheet(f"single_{number}", torch.cat([truths[direction], made], dim=2))
        yield Figure(f"one-frame mode: nearest of 4 truths, of {count}", right / count)
        yield Figure("one-frame mode: gain on the start picture, dB", _mean(gains))

    def film(
        self,
        mode: str,
        start: Tensor,
        prompt: str,
        sections: int = 1,
        end: Tensor | None = None,
        size: int = SIDE,
        steps: int = STEPS,
    ) -> tuple[Tensor, Tensor, Conditions]:
        """Make a film or a single picture through the program's own code.

        mode: a key of MODES, or "single". start, end: pictures (1, 3, H, W) in -1..1. Returns the pixels (1, 3, frames, H, W),
        the latents of the section that was sampled last, and the encoded conditions.
        """
        with tempfile.TemporaryDirectory() as temporary:
            common = {
                "image": _saved(start, Path(temporary) / "start.png"),
                "prompt": prompt,
            }
            common |= {"seed": 7, "steps": steps, "size": size, "step_cache": "none"}
            if end is not None:
                common["end_image"] = _saved(end, Path(temporary) / "end.png")
            if mode == "single":
                request: Request = SingleRequest(**common)
            else:
                request = MODES[mode](**common, seconds=sections * SECTION_SECONDS)
            plan = request.plan()
            *_, conditions = encode_conditions(request, plan, fit_pictures(plan, size), self.pool)
            final = None
            for item in sample_film(request, plan, conditions, self.pool, Stop(), on_host):
                if isinstance(item, Decoded):
                    latents = item.latents
                    final = item.final if final is None else joined(item.final, final, plan.grows)
                    shown = joined(item.open, final, plan.grows)
        return shown, latents, conditions

    def sheet(self, name: str, clip: Tensor) -> None:
        """Save a clip (1, 3, T, H, W) as one picture, its frames side by side, where a folder for sheets was given."""
        if self.sheets:
            self.sheets.mkdir(parents=True, exist_ok=True)
            _picture(clip[0].permute(0, 2, 1, 3).flatten(2)[None]).save(self.sheets / f"{name}.png")


def along(film: Tensor, truth: Tensor, one: Scenes) -> float:
    """Return how far the shape moved in its direction, as a share of its way in the true clip; 0 where it is not found.

    Only pixels that change in the true clip count, weighted by how near their colour is to the shape's; the centre of these
    weights is the shape's place. The true clip and the film are measured in the same way.
    """
    vector = torch.tensor(VECTORS[int(one.direction)])
    ys, xs = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    first, last = truth[0, :, 0], truth[0, :, LATE]
    changed = (first - last).abs().sum(0) > 0.25
    colour = first[:, int(one.place[0, 1] * SIDE), int(one.place[0, 0] * SIDE)]
    ways, masses = [], []
    for clip in (truth, film):
        places = []
        for frame in (clip[0, :, 0], clip[0, :, LATE]):
            likeness = torch.exp(-6 * (frame - colour[:, None, None]).square().sum(0)) * changed
            weight = likeness / likeness.sum().clamp_min(1e-6)
            places.append(torch.stack([(weight * xs).sum(), (weight * ys).sum()]))
        ways.append(((places[1] - places[0]) @ vector).item())
        masses.append(likeness.sum().item())
    # A shape that vanished, or whose colour is everywhere, would have a centre too, which means nothing.
    there = 0.4 < masses[1] / max(masses[0], 1e-6) < 2.5
    return ways[1] / ways[0] if there and abs(ways[0]) > 1 else 0.0


def joins(film: Tensor, sections: int) -> list[float]:
    """Return for each join the largest change between two frames there, divided by the mean change in the frames around it."""
    steps = film.diff(dim=2).abs().mean(dim=(0, 1, 3, 4))
    jumps = []
    for at in range(SECTION, sections * SECTION, SECTION):
        around = torch.cat([steps[at - 6 : at - 1], steps[at + 2 : at + 7]]).mean()
        jumps.append((steps[at - 1 : at + 2].max() / around.clamp_min(1e-6)).item())
    return jumps


def document(figures: list[Figure]) -> str:
    """Return the figures as JSON: a list of objects, each with whether its bound holds."""
    return json.dumps([{**vars(figure), "holds": figure.holds} for figure in figures], indent=1)


def _one(scene: Scenes, number: int) -> Scenes:
    return Scenes(**{name: value[number : number + 1] for name, value in vars(scene).items()})


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _picture(pixels: Tensor) -> Image.Image:
    values = (pixels[0].clamp(-1, 1) * 127.5 + 127.5).round().to(torch.uint8)
    return Image.fromarray(values.permute(1, 2, 0).numpy())


def _saved(pixels: Tensor, path: Path) -> str:
    _picture(pixels).save(path)
    return str(path)


def photo(name: str) -> Path:
    """Return the path of a photo that is part of the gradio package."""
    return next((Path(importlib.util.find_spec("gradio").origin).parent / "media_assets" / "images").glob(f"{name}.jp*g"))


def main() -> int:
    """Evaluate the checkpoint that the command line names; return 1 if a figure misses its bound, else 0."""
    parser = argparse.ArgumentParser(prog="python -m miniature.evaluate", description=__doc__.splitlines()[0])
    default = Path(__file__).parent / "checkpoint"
    parser.add_argument("folder", type=Path, nargs="?", default=default if default.is_dir() else WEIGHTS)
    parser.add_argument("--json", action="store_true", help="one JSON document at the end")
    parser.add_argument("--only", default="", help="parts, with commas between")
    parser.add_argument("--count", type=int, default=24, help="scenes of each kind, 1 or more")
    parser.add_argument("--sheets", type=Path, help="folder for contact sheets")
    options = parser.parse_args()
    if options.count < 1:
        parser.error("--count must be 1 or more")
    evaluation = Evaluation(options.folder, options.count, options.sheets)
    chosen = [part for part in options.only.split(",") if part] or list(evaluation.parts)
    if unknown := set(chosen) - set(evaluation.parts):
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(evaluation.parts)}")
    figures = []
    for part in chosen:
        for figure in evaluation.parts[part]():
            figures.append(figure)
            mark = {True: "holds", False: "MISSED", None: ""}[figure.holds]
            bound = "" if figure.bound is None else f"({'<=' if figure.at_most else '>='} {figure.bound:g})"
            print(f"{figure.name}: {figure.value:.3f} {bound} {mark}", file=sys.stderr, flush=True)
    if options.json:
        print(document(figures))
    return int(any(figure.holds is False for figure in figures))


if __name__ == "__main__":
    sys.exit(main())
