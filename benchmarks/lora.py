"""Measure what a LoRA costs: `python -m benchmarks.lora [--size 640x608] [--precision bfloat16] [--rank 32] [--json]`.

It writes random weights of the published transformer, and a LoRA on all linear layers of its blocks, to the disk. The program's
own pool loads the transformer, and steps are timed without the LoRA, with it, and with it at another strength. All of this
happens in one process, so that the times can be compared, and the peaks of the computer's memory before and after the LoRA was
applied are measured too. --card-gib: all of the card that may be taken. --folder: where to write; the transformer stays there
for the next run. --tiny: a small architecture.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.film import HostWatch
from benchmarks.load import write_checkpoint
from benchmarks.measure import GIB, finish, forget_peak, gpu_peak, pair, relative, timed
from benchmarks.quality import machine
from benchmarks.step import SIGMA, TINY, Work, tokens_of
from diffusers_helper.memory.device import CudaDevice
from diffusers_helper.memory.memory import placement
from diffusers_helper.models.transformer import PackedTransformer, TransformerConfig
from eichi_utils.models.pool import ModelPool
from eichi_utils.requests.loras import Lora
from lora_utils.files import Header, write_stream

CHECKPOINT, FILE = "framepack", "lora.safetensors"
# The two strengths of the LoRA.
STRENGTH, OTHER = 0.8, -0.5


@dataclass(frozen=True)
class Measured:
    """Hold the measurements of one phase.

    ready_ms: until the network and its tables are there. first_ms: the first step, compilation included. step_ms: median of the
    other steps. anonymous_gib, gpu_gib: peaks of the computer's memory without pages of files, and of the card's.
    """

    ready_ms: float
    first_ms: float
    step_ms: float
    anonymous_gib: float
    gpu_gib: float


@dataclass(frozen=True)
class Result:
    """Hold the measurements of all three phases.

    file_mib: size of the LoRA file. cost: percent by which a step is slower with the LoRA. host_above_gib: by how much the peak
    of the computer's memory is higher with the LoRA. difference: of the velocity with the LoRA from that without, relative; 0
    would mean that the LoRA does nothing.
    """

    size: str
    precision: str
    rank: int
    layers: int
    file_mib: float
    without: Measured
    beside: Measured
    other_strength: Measured
    cost: float
    host_above_gib: float
    difference: float


def write(folder: str, size: str, rank: str, device: str) -> None:
    """Write a transformer, unless the folder has one, and a LoRA on all linear layers of its blocks, in PEFT's names.

    `main` calls it in another process, so that its memory does not count in the measured peak.
    """
    config, place = TINY if size == "tiny" else TransformerConfig(), torch.device(device)
    if not (Path(folder) / "transformer").exists():
        write_checkpoint(Path(folder) / "transformer", config, place)
    with torch.device("meta"):
        linears = PackedTransformer(config).block_linears()
    shapes = {}
    for name, layer in linears.items():
        shapes[f"transformer.{name}.lora_A.weight"] = (int(rank), layer.in_features)
        shapes[f"transformer.{name}.lora_B.weight"] = (layer.out_features, int(rank))
    generator = torch.Generator(place).manual_seed(1)

    def data(shape: tuple[int, ...]) -> memoryview:
        made = torch.empty(shape, dtype=torch.bfloat16, device=place).normal_(0.0, 0.02, generator=generator)
        return made.cpu().reshape(-1).view(torch.uint8).numpy().data

    write_stream(Path(folder) / FILE, Header(dict.fromkeys(shapes, "BF16"), shapes), map(data, shapes.values()))


def measure(options: argparse.Namespace, folder: Path) -> Result:
    """Time steps without a LoRA, with it, and with it at another strength, and return all figures.

    Raises SystemExit if the pool loaded the network again for a LoRA, because then nothing could be compared.
    """
    where = placement(options.device)
    card = CudaDevice(where.device, int(options.card_gib * GIB)) if where.device.type == "cuda" and options.card_gib else None
    pool = ModelPool(folder, device=options.device, card=card, reserve_gb=0.0)
    config = TINY if options.tiny else TransformerConfig()
    width, height = pair(options.size)
    work = Work(config, height, width, where.device, where.transformer)
    nets, made = [], []

    def phase(*loras: Lora) -> Measured:
        forget_peak(where.device)
        with HostWatch() as watch:
            began = time.perf_counter()
            with pool.transformer(CHECKPOINT, options.precision, loras, False, tokens_of(work)) as net, torch.inference_mode():
                tables = work.tables(net, [SIGMA])
                finish(where.device)
                ready = time.perf_counter() - began
                net.step(work.x, 0, *tables)
                finish(where.device)
                first = time.perf_counter() - began - ready
                step = timed(lambda: net.step(work.x, 0, *tables), where.device, options.steps)
                made.append(net.step(work.x, 0, *tables).float().cpu())
                nets.append(net)
        _, anonymous = watch.peaks[watch.stage]
        return Measured(1000 * ready, 1000 * first, step, anonymous, gpu_peak(where.device))

    without, beside, other = phase(), phase(lora(folder, STRENGTH)), phase(lora(folder, OTHER))
    # Each loan is another network object, but its layers must be those that were loaded once.
    if any(net.proj_out is not nets[0].proj_out for net in nets):
        raise SystemExit("the network was loaded again")
    exact: Tensor = made[0]
    return Result(
        size=options.size,
        precision=options.precision,
        rank=options.rank,
        layers=len(nets[0].block_linears()),
        file_mib=(folder / FILE).stat().st_size / 2**20,
        without=without,
        beside=beside,
        other_strength=other,
        cost=100 * (beside.step_ms / without.step_ms - 1),
        host_above_gib=max(beside.anonymous_gib, other.anonymous_gib) - without.anonymous_gib,
        difference=relative(made[1], exact),
    )


def lora(folder: Path, strength: float) -> Lora:
    """Return the benchmark's LoRA at a strength, for a request."""
    return Lora(str(folder / FILE), strength)


def table(result: Result, where: dict[str, object]) -> str:
    """Return the result as a Markdown table, with a sentence about the costs below it. where: what `machine` returned."""
    lines = [
        f"{where['device']}, torch {where['torch']}: {result.size}, {result.precision}, rank {result.rank} on {result.layers} "
        f"layers, a file of {result.file_mib:.0f} MiB\n",
        "| | ready, ms | first step, ms | a step, ms | computer without files' pages, GiB | card, GiB |",
        "|---|---|---|---|---|---|",
    ]
    rows = {"without a LoRA": result.without, "with it": result.beside, "another strength": result.other_strength}
    for name, row in rows.items():
        times = f"{row.ready_ms:.0f} | {row.first_ms:.0f} | {row.step_ms:.1f}"
        lines.append(f"| {name} | {times} | {row.anonymous_gib:.2f} | {row.gpu_gib:.2f} |")
    lines.append(f"\nA step costs {result.cost:+.1f} %, the computer's memory {result.host_above_gib:+.2f} GiB at its peak; ")
    lines[-1] += f"the velocity differs by {result.difference:.1e}."
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Measure one LoRA file on one network, and print the result."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lora", description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="640x608")
    parser.add_argument("--precision", default="bfloat16", help="as a request's")
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--card-gib", type=float, default=0.0, help="all of the card that may be taken; 0: what there is")
    parser.add_argument("--folder", type=Path, help="a folder on the disk, for several runs; default: a temporary one")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of a table")
    options = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    device = placement(options.device).device
    if options.folder:
        options.folder.mkdir(parents=True, exist_ok=True)
    with nullcontext(options.folder) if options.folder else tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", "import sys; from benchmarks.lora import write; write(*sys.argv[1:])"]
        size = "tiny" if options.tiny else "full"
        subprocess.run([*command, str(folder), size, str(options.rank), str(device)], check=True)
        result, where = measure(options, Path(folder)), machine(device)
    print(json.dumps({"machine": where, **asdict(result)}, indent=1) if options.json else table(result, where))


if __name__ == "__main__":
    main()
