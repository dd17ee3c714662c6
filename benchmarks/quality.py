"""Measure what 8-bit weights and step caches cost in quality: `python -m benchmarks.quality [FOLDER] [--count N] [--caches]`.

The same films are made with each setting by the program's own section loop, and compared with those of full precision with
every step computed. --caches: measure the step caches at several thresholds instead, to compare them where they compute the
same number of steps.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from diffusers_helper.checkpoints.files import weight_files
from diffusers_helper.memory.memory import module_bytes
from diffusers_helper.vae.latents import on_host, to_uint8
from eichi_utils.jobs.queue import Stop
from eichi_utils.models.hub import STEMS
from eichi_utils.models.pool import ModelPool
from eichi_utils.render.conditions import Conditions, fit_pictures
from eichi_utils.render.encoding import encode_conditions
from eichi_utils.render.section_loop import Decoded, sample_film
from eichi_utils.requests.forward import ForwardRequest
from eichi_utils.requests.plan import Plan
from eichi_utils.requests.request import Request
from eichi_utils.requests.reverse import ReverseRequest
from miniature.clips import HELD_OUT, render, scenes
from miniature.evaluate import SECTION_SECONDS, SIDE, STEPS, decibels
from miniature.pictures import bank

PLAIN = {"precision": "auto", "step_cache": "none"}
CASES: Mapping[str, Mapping[str, Any]] = {
    "full precision": PLAIN,
    "bfloat16": {**PLAIN, "precision": "bfloat16"},
    "int8": {**PLAIN, "precision": "int8"},
    "float8": {**PLAIN, "precision": "float8"},
    "teacache": {**PLAIN, "step_cache": "teacache"},
    "int8, teacache": {"precision": "int8", "step_cache": "teacache"},
}
THRESHOLDS = {"teacache": (0.1, 0.15, 0.2), "first_block": (0.08, 0.1, 0.14)}
CACHES: Mapping[str, Mapping[str, Any]] = {
    "full precision": PLAIN,
    **{
        f"{cache}, {threshold:g}": {**PLAIN, "step_cache": cache, "cache_threshold": threshold}
        for cache, thresholds in THRESHOLDS.items()
        for threshold in thresholds
    },
}
MODES: tuple[type[Request], ...] = (ReverseRequest, ForwardRequest)
# Kinds of scenes that the miniature was trained on, with their shares.
KINDS = {"move": 2.0, "pan": 1.0, "zoom": 1.0}


@dataclass(frozen=True)
class Row:
    """Hold the means over all films of a case, and the worst values.

    error: of the sampled latents, relative. decibels: PSNR of the film. seconds: of sampling and decoding a film. megabytes: of
    the transformer's weights.
    """

    case: str
    films: int
    computed_steps: float
    steps: int
    error: float
    worst_error: float
    decibels: float
    worst_decibels: float
    seconds: float
    megabytes: float


@dataclass(frozen=True)
class Film:
    """Hold the film of a scene in one case: its latents and pixels, the number of computed steps, and the seconds it took."""

    latents: Tensor
    pixels: Tensor
    computed: int
    seconds: float


def prepared(pool: ModelPool, count: int, folder: Path, steps: int) -> Iterator[tuple[Request, Plan, Conditions]]:
    """Yield request, plan and encoded conditions for `count` held-out scenes, each in both film modes.

    folder: where the start pictures are written.
    """
    pictures = bank(torch.arange(HELD_OUT + 9000, HELD_OUT + 9032), 256)
    scene = scenes(torch.arange(HELD_OUT + 3000, HELD_OUT + 3000 + count), len(pictures), KINDS)
    starts = render(scene, pictures, torch.arange(1), SIDE, SIDE)
    for number, caption in enumerate(scene.captions()):
        path = folder / f"{number}.png"
        Image.fromarray(to_uint8(starts[number : number + 1])[0].numpy()).save(path)
        for kind in MODES:
            request = kind(
                image=str(path), prompt=caption, seconds=SECTION_SECONDS, seed=number, steps=steps, size=SIDE, **PLAIN
            )
            plan = request.plan()
            *_, conditions = encode_conditions(request, plan, fit_pictures(plan, SIDE), pool)
            yield request, plan, conditions


def film(request: Request, plan: Plan, conditions: Conditions, pool: ModelPool) -> Film:
    """Make a film of one section. A step counts as computed if the transformer's last block ran."""
    calls: list[int] = []
    with pool.transformer(plan.checkpoint, request.precision) as net:
        hook = net.single_transformer_blocks[-1].register_forward_hook(lambda *_: calls.append(1))
    began = time.perf_counter()
    items = sample_film(request, plan, conditions, pool, Stop(), on_host)
    (made,) = (item for item in items if isinstance(item, Decoded))
    took = time.perf_counter() - began
    hook.remove()
    return Film(made.latents, torch.cat([made.final, made.open], dim=2).float().cpu(), len(calls), took)


def measure(pool: ModelPool, count: int, cases: Mapping[str, Mapping[str, Any]], steps: int) -> Iterator[Row]:
    """Make films of `count` scenes in every case, and yield a row for each with the differences from the first case's films."""
    with tempfile.TemporaryDirectory() as folder:
        jobs = list(prepared(pool, count, Path(folder), steps))
    exact: list[Film] = []
    for case, fields in cases.items():
        made = [film(replace(request, **fields), plan, conditions, pool) for request, plan, conditions in jobs]
        exact = exact or made
        pairs = list(zip(made, exact, strict=True))
        errors = [((one.latents - true.latents).norm() / true.latents.norm()).item() for one, true in pairs]
        # The first case is compared with itself: its error is 0, and its PSNR the 126 dB that stand for no difference.
        levels = [decibels(one.pixels, true.pixels.clamp(-1, 1)) for one, true in pairs]
        with pool.transformer(jobs[0][1].checkpoint, fields["precision"]) as net:
            megabytes = module_bytes(net) / 1e6
        yield Row(
            case=case,
            films=len(made),
            computed_steps=mean([one.computed for one in made]),
            steps=steps,
            error=mean(errors),
            worst_error=max(errors),
            decibels=mean(levels),
            worst_decibels=min(levels),
            seconds=mean([one.seconds for one in made]),
            megabytes=megabytes,
        )


def mean(values: list[float]) -> float:
    """Return the arithmetic mean of the values."""
    return sum(values) / len(values)


def table(rows: list[Row]) -> str:
    """Return the rows as a Markdown table."""
    lines = [
        "| | computed steps | error of the latents, mean (worst) | PSNR of the film, dB (worst) | s a film | weights, MB |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        first = row is rows[0]
        error = "-" if first else f"{row.error:.4f} ({row.worst_error:.4f})"
        level = "-" if first else f"{row.decibels:.1f} ({row.worst_decibels:.1f})"
        steps = f"{row.computed_steps:.1f} of {row.steps}"
        lines.append(f"| {row.case} | {steps} | {error} | {level} | {row.seconds:.1f} | {row.megabytes:.1f} |")
    return "\n".join(lines)


def fingerprint(folder: Path) -> str:
    """Return a short hash of the transformer's weights, which tells the figures of one checkpoint from those of another."""
    digest = hashlib.sha256()
    for file in weight_files(folder, STEMS["framepack"]):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def machine(device: torch.device) -> dict[str, Any]:
    """Describe the machine that measures: the card or the CPU, the processor's kind, torch's version."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    return {"device": name, "processor": platform.machine(), "torch": torch.__version__}


def main() -> None:
    """Compare the precisions or step caches of a checkpoint, and print the rows."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=Path(__file__).parent.parent / "miniature" / "checkpoint")
    parser.add_argument("--count", type=int, default=8, help="scenes; each is filmed in both modes")
    parser.add_argument("--steps", type=int, default=STEPS, help="of a section")
    parser.add_argument("--caches", action="store_true", help="compare the step caches")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of a table")
    options = parser.parse_args()
    pool = ModelPool(options.folder, device=options.device)
    transformer = pool.files.folder("framepack")
    weights = fingerprint(transformer)
    rows = list(measure(pool, options.count, CACHES if options.caches else CASES, options.steps))
    if fingerprint(transformer) != weights:
        parser.error("the checkpoint was replaced during the run; its rows are of different networks and prove nothing")
    where = {**machine(pool.placement.device), "weights": weights}
    if options.json:
        print(json.dumps({"machine": where, "rows": [asdict(row) for row in rows]}, indent=1))
    else:
        print(f"{where['device']}, torch {where['torch']}, weights {weights}\n\n{table(rows)}")


if __name__ == "__main__":
    main()
