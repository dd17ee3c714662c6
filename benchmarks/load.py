"""Time loading the transformer: `python -m benchmarks.load [--sizes full] [--only "own, int8"] [--folder DIR] [--json]`.

Random weights in the published architecture are written to the disk in the hub's shards, and every case loads them in a process
of its own, whose memory peak is its alone. diffusers' from_pretrained is the first row. A case has loaded when every page of
every weight was read, because mapping a file reads nothing yet. Before each case the files are dropped from the system's page
cache, where the system can do that.
--sizes: full (26 GB) or middle (1 GB). --folder: on which disk. --tiny: a small architecture.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from diffusers import HunyuanVideoFramepackTransformer3DModel
from torch import Tensor, nn

from benchmarks.measure import Row, gpu_peak, host_peak, make_parser, relative, report, shown
from benchmarks.step import TINY
from diffusers_helper.checkpoints.checkpoint import STEM, load_transformer
from diffusers_helper.memory.memory import placement
from diffusers_helper.models.transformer import PackedTransformer, TransformerConfig
from eichi_utils.files.disk_cache import DiskCache
from eichi_utils.models.weight_cache import cached_weights
from lora_utils.files import Header, write_stream

SIZES = {
    "full": TransformerConfig(),
    "middle": TransformerConfig(num_attention_heads=16, num_layers=1, num_single_layers=3, num_refiner_layers=1),
    "tiny": TINY,
}
# Storage of the weights, and whether an earlier start has kept the prepared slabs; None is diffusers' class.
CASES: Mapping[str, tuple[str | None, bool] | None] = {
    "diffusers": None,
    "own": (None, False),
    "own, int8": ("int8", False),
    "own, float8": ("float8", False),
    "own, int8, kept": ("int8", True),
    "own, float8, kept": ("float8", True),
}
DTYPE = torch.bfloat16
SHARD_BYTES, PAGE, PIECE = 10 * 10**9, 4096, 2**24
# The weight that is compared between the cases, and how many of its numbers.
PROBE, PROBED = "single_transformer_blocks.0.proj_out", 10_000


def write_checkpoint(folder: Path, config: TransformerConfig, device: torch.device) -> int:
    """Write a checkpoint with random weights, tensor by tensor, and return the bytes of the weights.

    device: where the random numbers are made.
    """
    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in PackedTransformer(config).state_dict().items()}
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(asdict(config)))
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    sizes = {name: torch.Size(shape).numel() * DTYPE.itemsize for name, shape in shapes.items()}
    for name, shape in shapes.items():
        if sum(sizes[other] for other in shards[-1]) + sizes[name] > SHARD_BYTES:
            shards.append({})
        shards[-1][name] = shape
    generator = torch.Generator(device).manual_seed(0)

    def data(shape: tuple[int, ...]) -> memoryview:
        made = torch.empty(shape, dtype=DTYPE, device=device).normal_(0.0, 0.02, generator=generator)
        return made.cpu().reshape(-1).view(torch.uint8).numpy().data

    index = {}
    for number, shard in enumerate(shards, 1):
        file = f"{STEM}-{number:05}-of-{len(shards):05}.safetensors"
        write_stream(folder / file, Header(dict.fromkeys(shard, "BF16"), shard, {"format": "pt"}), map(data, shard.values()))
        index |= dict.fromkeys(shard, file)
    total = sum(sizes.values())
    document = {"metadata": {"total_size": total}, "weight_map": index}
    (folder / f"{STEM}.safetensors.index.json").write_text(json.dumps(document))
    return total


def forget(folder: Path) -> None:
    """Drop all files of weights below a folder from the system's page cache, where the system can do that."""
    for file in folder.rglob("*.safetensors"):
        with file.open("r+b") as stream:
            os.fsync(stream.fileno())
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_rate(folder: Path) -> float:
    """Measure the bytes a second of reading the checkpoint's first shard from beginning to end."""
    forget(folder)
    file, buffer, done = min(folder.glob("*.safetensors")), bytearray(PIECE), 0
    began = time.perf_counter()
    with file.open("rb", buffering=0) as stream:
        while count := stream.readinto(buffer):
            done += count
    return done / (time.perf_counter() - began)


def touch(net: nn.Module) -> int:
    """Read a byte of every page of the weights, so that mapped files are really read; returns the sum of the bytes."""
    tensors = (*net.parameters(), *net.buffers())
    return sum(int(tensor.detach().reshape(-1).view(torch.uint8)[::PAGE].sum()) for tensor in tensors if tensor.numel())


def load(case: str, folder: Path, kept: Path, device: torch.device) -> nn.Module:
    """Load the transformer in one of CASES: as the program does beside a card, or by diffusers.

    kept: folder of the cache of prepared slabs.
    """
    if (choice := CASES[case]) is None:
        return HunyuanVideoFramepackTransformer3DModel.from_pretrained(folder, torch_dtype=DTYPE, local_files_only=True)
    storage, again = choice
    cache = DiskCache(kept, 2**62 if again else 0)
    store = cached_weights(cache, folder, DTYPE, storage, (), device, beside_card=True)
    return load_transformer(folder, DTYPE, storage, None, device, beside_card=True, store=store)


def one_case(case: str, folder: Path, kept: Path, device: torch.device) -> dict[str, object]:
    """Run one case in this process and return its seconds, its memory peaks and some of the weights."""
    began = time.perf_counter()
    net = load(case, folder, kept, device)
    touch(net)
    took = time.perf_counter() - began
    layer = net.get_submodule(PROBE)
    weight = layer.wide_weight(DTYPE) if CASES[case] else layer.weight
    peaks = {"host_gib": host_peak(), "gpu_gib": gpu_peak(device)}
    return {"seconds": took, **peaks, "weights": weight.detach().flatten()[:PROBED].float().tolist()}


def in_own_process(case: str, folder: Path, kept: Path, device: torch.device) -> dict[str, object]:
    """Run one case in a new process, whose memory and caches no other case has filled, and return its figures."""
    command = [sys.executable, "-m", "benchmarks.load", "--case", case, "--folder", str(folder), "--kept", str(kept)]
    done = subprocess.run([*command, "--device", str(device)], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def bytes_read(case: str, config: TransformerConfig, total: int, kept: Path) -> int:
    """Return how many bytes a case reads from the disk: all weights, or the kept slabs and the weights outside of them."""
    if not (CASES[case] and CASES[case][1]):
        return total
    with torch.device("meta"):
        step = PackedTransformer(config).weight_groups().step.values()
    slabs = sum(p.numel() for modules in step for module in modules for p in module.parameters()) * DTYPE.itemsize
    return total - slabs + max(file.stat().st_size for file in kept.glob("*.safetensors"))


def measure(size: str, cases: list[str], folder: Path, device: torch.device) -> Iterator[Row]:
    """Write a checkpoint of a size, load it in each case, and yield a row for each. folder: on the disk that is measured."""
    config, model, kept = SIZES[size], folder / size, folder / f"{size}-kept"
    total = write_checkpoint(model, config, device)
    rate = read_rate(model)
    first: tuple[float, Tensor] | None = None
    for case in cases:
        if CASES[case] and CASES[case][1]:
            in_own_process(case, model, kept, device)
            if not any(kept.glob("*.safetensors")):
                raise SystemExit(f"the disk of {folder} has too little room for the slabs")
        forget(folder)
        found = in_own_process(case, model, kept, device)
        took, made = 1000 * found["seconds"], torch.tensor(found["weights"])
        first = first or (took, made)
        floor = 1000 * bytes_read(case, config, total, kept) / rate
        error = relative(made, first[1])
        yield Row(size, case, took, first[0] / took, error, found["gpu_gib"], found["host_gib"], floor)
        for file in kept.glob("*.safetensors"):
            file.unlink()


def run(options: argparse.Namespace, folder: Path) -> list[Row]:
    """Measure all sizes that the command line names, and return the rows."""
    device = placement(options.device).device
    sizes = ["tiny"] if options.tiny else (options.sizes or options.usual_sizes).split(",")
    return shown(row for size in sizes for row in measure(size, options.only or list(CASES), folder, device))


def main() -> None:
    """Measure all cases of loading, or in a child process one of them, and print the figures."""
    parser = make_parser("load", __doc__, "full", list(CASES))
    parser.add_argument("--folder", type=Path, help="an existing folder on the disk to read from; default: a temporary one")
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument("--kept", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    device = placement(options.device).device
    if options.case:
        print(json.dumps(one_case(options.case, options.folder, options.kept, device)))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        rows = run(options, Path(folder))
    print(report(rows, device, options.json))


if __name__ == "__main__":
    main()
