"""Measure a whole film: `python -m benchmarks.film [--size 640] [--precision auto] [--card-gib 8] [--seconds 2.4]`.

It writes random weights of the published size (43 GB) to the disk, and lets the program make a film with them, from loading to
the last frame, with --card-gib of the card. It prints the seconds of each part, and the peaks of both memories: the computer's
with and without the pages of mapped files, which the system takes back when it needs them. --tiny: a small checkpoint.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKLHunyuanVideo
from PIL import Image
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, LlamaConfig, LlamaModel, SiglipVisionConfig, SiglipVisionModel

from benchmarks.load import write_checkpoint
from benchmarks.measure import GIB, host_peak
from benchmarks.quality import machine
from benchmarks.step import empty
from diffusers_helper.memory.device import CudaDevice
from diffusers_helper.memory.memory import placement
from diffusers_helper.models.transformer import TransformerConfig
from eichi_utils.files.paths import Outputs
from eichi_utils.jobs.events import Event, Finished, Notice, Stage, Step
from eichi_utils.jobs.queue import Stop
from eichi_utils.models.pool import ModelPool
from eichi_utils.render import driver
from eichi_utils.render.conditions import fit_pictures
from eichi_utils.requests import modes
from miniature.random_checkpoint import build

# Sizes of the published encoders: Llama 3 8B, CLIP ViT-L/14, SigLIP so400m/14 at 384.
ENCODERS: dict[str, Callable[[], nn.Module]] = {
    "text_encoder": lambda: LlamaModel(
        LlamaConfig(
            vocab_size=128320, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
            num_key_value_heads=8, max_position_embeddings=8192, rope_theta=500000.0,
        )
    ),
    "text_encoder_2": lambda: CLIPTextModel(
        CLIPTextConfig(
            vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
            projection_dim=768,
        )
    ),
    "image_encoder": lambda: SiglipVisionModel(
        SiglipVisionConfig(
            hidden_size=1152, intermediate_size=4304, num_hidden_layers=27, num_attention_heads=16, image_size=384,
            patch_size=14,
        )
    ),
    "vae": AutoencoderKLHunyuanVideo,
}  # fmt: skip
# Seed of the film, and seconds between two looks at the memory.
SEED, PERIOD = 7, 0.02
# Fields of /proc/PID/status: memory that belongs to no file, and pages of mapped files.
KINDS = (("RssAnon", "RssShmem"), ("RssFile",))


@dataclass(frozen=True)
class Result:
    """Hold the measurements of one film.

    seconds: of each stage by its name, those of all sections together. step_ms: median time between two steps of a section.
    gpu_gib: peak of the card's memory, fragmentation included. host_gib: peak of resident memory. host_peaks: of each stage,
    the peaks in GiB with and without pages of files.
    """

    size: str
    precision: str
    frames: int
    seconds: dict[str, float]
    step_ms: float
    gpu_gib: float
    host_gib: float
    host_peaks: dict[str, tuple[float, float]]


def write_model(folder: Path, tiny: bool, device: torch.device) -> Path:
    """Write all components with random weights into `folder` and return it.

    The tokenizers know few words, which changes the size of no computation. tiny: the small random checkpoint as it is.
    """
    build(folder)
    if tiny:
        return folder
    shutil.rmtree(folder / "transformer")
    write_checkpoint(folder / "transformer", TransformerConfig(), device)
    for name, make in ENCODERS.items():
        shutil.rmtree(folder / name)
        empty(make, device, torch.float16).save_pretrained(folder / name)
        if device.type == "cuda":
            torch.cuda.empty_cache()
    extractor = folder / "feature_extractor" / "preprocessor_config.json"
    document = json.loads(extractor.read_text())
    extractor.write_text(json.dumps({**document, "size": {"height": 384, "width": 384}}))
    return folder


class HostWatch:
    """Watch this process's memory while the context is open: every 20 ms, and at the end of each stage.

    peaks: of each stage by its name, (GiB resident, GiB of them that belong to no file); empty where the system has no /proc.
    """

    def __init__(self) -> None:
        self.stage, self.peaks = "load", defaultdict[str, tuple[float, float]](lambda: (0.0, 0.0))
        self._done, self._writing = threading.Event(), threading.Lock()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> HostWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self._look()

    def enter(self, stage: str) -> None:
        """Begin a stage. The stage before is looked at once more, because a short one may have had no look yet."""
        self._look()
        self.stage = stage

    def _watch(self) -> None:
        while not self._done.wait(PERIOD):
            self._look()

    def _look(self) -> None:
        stage = self.stage
        try:
            with Path("/proc/self/status").open(encoding="ascii") as lines:
                fields = dict(line.split(":", 1) for line in lines)
        except OSError:
            return
        own, files = (sum(int(fields[name].split()[0]) for name in names) / 2**20 for names in KINDS)
        with self._writing:
            before = self.peaks[stage]
            self.peaks[stage] = max(before[0], own + files), max(before[1], own)


def stages(events: Iterator[Event], watch: HostWatch) -> tuple[dict[str, float], float, int, str]:
    """Read a run's events, and return the seconds by stage, the median ms between two steps, the frames and the precision."""
    seconds: dict[str, float] = defaultdict(float)
    since, before, steps, frames, precision = time.monotonic(), 0.0, [], 0, ""
    for event in events:
        if isinstance(event, Stage):
            seconds[watch.stage] += event.at - since
            watch.enter(event.name)
            since = event.at
        elif isinstance(event, Finished):
            seconds[watch.stage] += event.at - since
            frames = event.frames
        elif isinstance(event, Notice) and "precision" in event.values:
            precision = event.values["precision"]
        elif isinstance(event, Step):
            if event.step == 0:
                # The first step waits for the weights, and in the first section for the compiler.
                seconds[f"first step of section {event.section + 1}"] = event.at - since
            else:
                steps.append(1000 * (event.at - before))
            before = event.at
    return dict(seconds), statistics.median(steps), frames, precision


def measure(options: argparse.Namespace, folder: Path) -> Result:
    """Make a film as the program does, and return its times and peaks. folder: where the picture and the film are written."""
    where = placement(options.device)
    card = CudaDevice(where.device, int(options.card_gib * GIB)) if where.device.type == "cuda" else None
    picture = folder / "start.png"
    Image.radial_gradient("L").convert("RGB").resize((options.size, options.size)).save(picture)
    request = modes.from_json(
        {
            "mode": "reverse", "image": str(picture), "prompt": "The girl dances gracefully.", "seed": SEED,
            "steps": options.steps, "size": options.size, "seconds": options.seconds, "precision": options.precision,
            "step_cache": "none",
        }
    )  # fmt: skip
    pool = ModelPool(options.model, device=options.device, card=card, reserve_gb=0.0)
    with tempfile.TemporaryDirectory(dir=folder) as outputs, HostWatch() as watch:
        events = driver.run(request, request.plan(), pool, Outputs(Path(outputs), "film"), Stop())
        seconds, step_ms, frames, precision = stages(events, watch)
    sizes = fit_pictures(request.plan(), request.size)
    size = f"{sizes.width}x{sizes.height}"
    most = card.highest() / GIB if card else 0.0
    return Result(size, precision, frames, seconds, step_ms, most, host_peak(), dict(watch.peaks))


def table(result: Result, where: dict[str, object]) -> str:
    """Return the result as a Markdown table. where: what `machine` returned."""
    lines = [
        f"{where['device']}, torch {where['torch']}: {result.size}, {result.precision}, {result.frames} frames\n",
        "| | |",
        "|---|---|",
        *(f"| {name}, s | {seconds:.1f} |" for name, seconds in result.seconds.items()),
        f"| a step, ms | {result.step_ms:.0f} |",
        f"| card, GiB | {result.gpu_gib:.2f} |",
        f"| computer, GiB | {result.host_gib:.1f} |",
        *(f"| {name}, GiB; without files' pages | {all:.1f}; {own:.1f} |" for name, (all, own) in result.host_peaks.items()),
    ]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Measure one film with weights of the chosen size, and print the result."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.film", description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, help="size family of the film; default: 640, with --tiny 128")
    parser.add_argument("--precision", default="auto", help="as a request's")
    parser.add_argument("--card-gib", type=float, default=8.0, help="all of the card that the film may take")
    parser.add_argument("--seconds", type=float, default=2.4, help="of the film; 2.4 are two sections")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--model", type=Path, help="a folder with all components; default: random weights, written first")
    parser.add_argument("--folder", type=Path, help="an existing folder on the disk to write to; default: a temporary one")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of a table")
    options = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    options.size = options.size or (128 if options.tiny else 640)
    device = placement(options.device).device
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        if options.model is None:
            # Written by another process, so that the peak of this one is the film's.
            command = [sys.executable, "-c", "import sys; from benchmarks.film import write; write(*sys.argv[1:])"]
            subprocess.run([*command, f"{folder}/model", "tiny" if options.tiny else "full", str(device)], check=True)
            options.model = Path(folder) / "model"
        result, where = measure(options, Path(folder)), machine(device)
    print(json.dumps({"machine": where, **asdict(result)}, indent=1) if options.json else table(result, where))


def write(folder: str, size: str, device: str) -> None:
    """Write the random checkpoint; `main` calls it in another process. size: "tiny" or "full"."""
    write_model(Path(folder), size == "tiny", torch.device(device))


if __name__ == "__main__":
    main()
