"""Replay the files in `lora/`: one update in many file formats, and files that must be refused or used in part."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from eichi_utils.models.lora_binding import shapes_of
from lora_utils.factors import updates
from lora_utils.files import LoraError, read_header
from lora_utils.formats import Shapes, analyse

# Largest absolute errors of an update, and of one that was stored in 16 bits.
DELTA, HALF_DELTA = 1e-6, 2e-3
EXPECTED = "expected_deltas.safetensors"
# Reasons for which files must be refused, by their names.
REASONS = {"bad_shape": "shape", "bad_unknown_modules": "no_modules"}


def deltas_of(path: Path, shapes: Shapes) -> dict[str, Tensor]:
    """Return what a file adds to each layer at strength 1. Raises LoraError."""
    header = read_header(path)
    tensors = load_file(path)
    found: dict[str, Tensor] = {}
    for update in updates(analyse(header, shapes, path.name), tensors.__getitem__, header.metadata):
        found[update.layer] = found.get(update.layer, 0) + update.delta()
    return found


def lora_checks(path: Path, net: torch.nn.Module) -> Iterator[tuple[str, float, float]]:
    """Yield (name, error, tolerance) of every comparison for one file."""
    shapes = shapes_of(net)
    if path.stem in REASONS:
        reason = REASONS[path.stem]
        try:
            analyse(read_header(path), shapes, path.name)
            found = "used"
        except LoraError as error:
            found = error.key if error.values["file"] == path.name else "another file"
        yield f"refused for its {reason}", float(found != reason), 0.0
        return
    expected = {name.removeprefix("delta."): delta for name, delta in load_file(path.parent / EXPECTED).items()}
    found = deltas_of(path, shapes)
    if path.stem == "partly_unknown":
        report = analyse(read_header(path), shapes, path.name).report
        kept = {"transformer_blocks.0.attn.to_q", "transformer_blocks.0.attn.to_k"}
        expected = {name: delta for name, delta in expected.items() if name in kept}
        right = (report.used, report.found, len(report.unknown), len(report.text_encoder)) == (2, 3, 2, 2)
        yield "report", float(not right), 0.0
    yield "layers", float(set(found) != set(expected)), 0.0
    error = max((found[name] - expected[name]).abs().max().item() for name in expected)
    yield "deltas", error, HALF_DELTA if path.stem.endswith("fp16") else DELTA
