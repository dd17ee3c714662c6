"""What the speed benchmarks share: time, peak memory, floors, random weights, tables."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.quality import machine

GIB = 2**30
# Of pictures for the small architecture, where nothing is said.
TINY_SIZE = "64x48"


@dataclass(frozen=True)
class Row:
    """milliseconds: median. ratio: how many times as fast as the size's first row. error: relative, against that row's output.
    gpu_gib, host_gib: peaks; the host's is the process's so far. floor: milliseconds at the measured matrix product's rate."""

    size: str
    case: str
    milliseconds: float
    ratio: float
    error: float
    gpu_gib: float
    host_gib: float
    floor: float


def timed(function: Callable[[], Any], device: torch.device, runs: int) -> float:
    """Median milliseconds of `runs` calls after one that does not count; by the card's own clock where there is one."""
    function()
    times = []
    for _ in range(runs):
        if device.type == "cuda":
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            torch.cuda.synchronize(device)
            begin.record()
            function()
            end.record()
            torch.cuda.synchronize(device)
            times.append(begin.elapsed_time(end))
        else:
            began = time.perf_counter()
            function()
            times.append(1000 * (time.perf_counter() - began))
    return statistics.median(times)


def finish(device: torch.device) -> None:
    """Wait for what the card was told to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def forget_peak(device: torch.device) -> None:
    """Give back what torch holds of a card unused, and let its highest memory be counted from now on."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def gpu_peak(device: torch.device) -> float:
    """Return the most GiB of a card that tensors had at once since `forget_peak`; 0 for a CPU."""
    return torch.cuda.max_memory_allocated(device) / GIB if device.type == "cuda" else 0.0


def host_peak() -> float:
    """GiB of this process at most so far; 0 where the system does not tell through /proc."""
    try:
        with Path("/proc/self/status").open(encoding="ascii") as lines:
            return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**20
    except (OSError, StopIteration):
        return 0.0


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of a large matrix product here; 2 n^3 of them for n x n matrices."""
    n = 8192 if device.type == "cuda" else 512
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    return 2 * n**3 / (timed(lambda: a @ b, device, 5) / 1000)


@torch.no_grad()
def randomise(net: nn.Module) -> None:
    """Values that depend on a parameter's name alone: the same in any class that has the names. Norms stay near 1.

    Weights have the size with which torch makes a linear layer, 1 / sqrt(3 inputs).
    """
    for name, parameter in net.named_parameters():
        generator = torch.Generator(parameter.device).manual_seed(zlib.crc32(name.encode()))
        size = (3 * parameter[0].numel()) ** -0.5 if parameter.ndim > 1 else 0.02
        parameter.normal_(0.0, size, generator=generator)
        if parameter.ndim == 1 and name.endswith("weight"):
            parameter.add_(1.0)


def relative(made: Tensor, exact: Tensor) -> float:
    """Return the norm of the difference as a share of the exact tensor's."""
    made, exact = made.float().cpu(), exact.float().cpu()
    return ((made - exact).norm() / exact.norm()).item()


def line(row: Row) -> str:
    """Return a row of the Markdown table."""
    memory = f"{row.gpu_gib:.1f} | {row.host_gib:.1f}"
    figures = f"{row.milliseconds:.0f} | {row.ratio:.2f} | {row.error:.1e} | {memory} | {row.floor:.0f}"
    return f"| {row.size} | {row.case} | {figures} |"


def shown(rows: Iterator[Row]) -> list[Row]:
    """All rows, each on stderr as soon as it is there: what a later case breaks is not lost."""
    collected = []
    for row in rows:
        sys.stderr.write(line(row) + "\n")
        sys.stderr.flush()
        collected.append(row)
    return collected


def report(rows: Sequence[Row], device: torch.device, as_json: bool) -> str:
    """Return the rows as a Markdown table under the name of the machine, or as JSON with it."""
    where = machine(device)
    if as_json:
        return json.dumps({"machine": where, "rows": [asdict(row) for row in rows]}, indent=1)
    lines = [
        f"{where['device']}, torch {where['torch']}\n",
        "| size | | ms | times as fast | difference | GPU GiB | host GiB | floor ms |",
        "|---|---|---|---|---|---|---|---|",
    ]
    return "\n".join([*lines, *map(line, rows)])


def pair(text: str) -> tuple[int, int]:
    """640x608: width, then height."""
    width, height = (int(part) for part in text.split("x"))
    return width, height


def sizes_of(options: argparse.Namespace) -> list[tuple[int, int]]:
    """(width, height) of each picture to measure with, of `make_parser`'s flags."""
    return [pair(text) for text in (options.sizes or (TINY_SIZE if options.tiny else options.usual_sizes)).split(",")]


def make_parser(program: str, about: str, sizes: str, cases: Sequence[str]) -> argparse.ArgumentParser:
    """The flags that every speed benchmark has."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{program}", description=about.splitlines()[0])
    parser.add_argument("--sizes", help=f"of pictures; default: {sizes}, with --tiny {TINY_SIZE}")
    parser.set_defaults(usual_sizes=sizes)
    parser.add_argument("--only", action="append", choices=cases, help="a case; repeat it. Ratios are against the first")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of a table")
    return parser
