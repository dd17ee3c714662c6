"""Measure times, peak memory and matrix rates for the speed benchmarks; fill random weights; print tables."""

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
# Default picture size with --tiny.
TINY_SIZE = "64x48"


@dataclass(frozen=True)
class Row:
    """Hold the figures of one case at one size.

    milliseconds: median. ratio: how many times as fast as the first row of this size. error: relative, against the output of
    that row. gpu_gib, host_gib: memory peaks; the host's is that of the process so far. floor: milliseconds that the operations
    would take at the measured rate of a large matrix product, or the bytes at the disk's measured rate.
    """

    size: str
    case: str
    milliseconds: float
    ratio: float
    error: float
    gpu_gib: float
    host_gib: float
    floor: float


def timed(function: Callable[[], Any], device: torch.device, runs: int) -> float:
    """Return the median milliseconds of `runs` calls, after one that does not count.

    On a card they are measured by CUDA events.
    """
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
    """Wait until the card has done everything that was queued."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def forget_peak(device: torch.device) -> None:
    """Free the card memory that torch caches, and begin to count the card's memory peak anew."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def gpu_peak(device: torch.device) -> float:
    """Return the peak GiB of tensors on a card since `forget_peak`; 0 for a CPU."""
    return torch.cuda.max_memory_allocated(device) / GIB if device.type == "cuda" else 0.0


def host_peak() -> float:
    """Return the peak GiB of resident memory of this process so far; 0 where the system has no /proc."""
    try:
        with Path("/proc/self/status").open(encoding="ascii") as lines:
            return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**20
    except (OSError, StopIteration):
        return 0.0


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Measure the floating-point operations a second of a large matrix product; n x n matrices take 2 n^3 of them."""
    n = 8192 if device.type == "cuda" else 512
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    return 2 * n**3 / (timed(lambda: a @ b, device, 5) / 1000)


@torch.no_grad()
def randomise(net: nn.Module) -> None:
    """Fill a network with random values that depend on the parameters' names alone, so that two classes get the same.

    Weights have the deviation that torch gives a linear layer, 1 / sqrt(3 inputs); scales of norms are near 1.
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
    """Print each row to stderr as soon as it is measured, and return all rows.

    So the earlier rows are not lost when a later case fails.
    """
    collected = []
    for row in rows:
        sys.stderr.write(line(row) + "\n")
        sys.stderr.flush()
        collected.append(row)
    return collected


def report(rows: Sequence[Row], device: torch.device, as_json: bool) -> str:
    """Return the rows as a Markdown table below the name of the machine, or as JSON that includes it."""
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
    """Parse a picture size such as "640x608" into width and height."""
    width, height = (int(part) for part in text.split("x"))
    return width, height


def sizes_of(options: argparse.Namespace) -> list[tuple[int, int]]:
    """Return (width, height) of each picture size that the flags of `make_parser` name, or of the default ones."""
    return [pair(text) for text in (options.sizes or (TINY_SIZE if options.tiny else options.usual_sizes)).split(",")]


def make_parser(program: str, about: str, sizes: str, cases: Sequence[str]) -> argparse.ArgumentParser:
    """Make a parser with the flags that every speed benchmark has.

    about: the program's module docstring, whose first line is shown. sizes: the default of --sizes. cases: choices of --only.
    """
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{program}", description=about.splitlines()[0])
    parser.add_argument("--sizes", help=f"of pictures; default: {sizes}, with --tiny {TINY_SIZE}")
    parser.set_defaults(usual_sizes=sizes)
    parser.add_argument("--only", action="append", choices=cases, help="a case; repeat it. Ratios are against the first")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of a table")
    return parser
