"""Read, write, trim and join a film's latents in safetensors files of the existing program's format, with their request.

history_latents   float32 (1, 16, T, h, w), scaled, in the order of playing: 4 T - 3 frames of 8 h x 8 w pixels
metadata          int32 (3): height and width in pixels, and T

The header holds the film's request. A trimmed or joined file has a list of parts there, each with the file's name, how many of
its latents are here (`latents`) and were cut off at its ends (`trim_start`, `trim_end`), how many were put before it
(`between`), and its own request, or the parts that it was made of itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from diffusers_helper.checkpoints.files import CheckpointError, read_header
from diffusers_helper.checkpoints.reading import read_tensor
from diffusers_helper.vae.latents import SPATIAL
from eichi_utils.exchange.metadata import document_of
from eichi_utils.exchange.named_files import parts_without_paths
from eichi_utils.files.latent_header import LATENTS, PARTS, SIZES, LatentInfo, damaged, read_info
from eichi_utils.files.paths import KEY, written_atomically
from eichi_utils.problems import Problem, UserError
from eichi_utils.requests.plan import MOST_BETWEEN
from eichi_utils.requests.request import Request

# Largest number of levels of parts inside parts, for films that are continued again and again. Each level is two levels of
# JSON, of which 64 are read.
GENERATIONS = 20


@dataclass(frozen=True)
class LatentClip:
    """Hold latents (1, 16, T, h, w), float32 on the CPU, and their origin: `parts` as in a file's header."""

    latents: Tensor
    parts: tuple[Mapping[str, Any], ...]


def write_latents(path: Path, latents: Tensor, request: Request) -> None:
    """Write a film's latents (1, 16, T, h, w), scaled, in the order of playing. Raises OSError; then `path` is unchanged."""
    _write(path, latents, {KEY: document_of(request)})


def write_clip(path: Path, piece: LatentClip, request: Request | None = None) -> None:
    """Write trimmed or joined latents with their parts. request: of the film that they were joined for. Raises OSError."""
    texts = {KEY: document_of(request)} if request else {}
    _write(path, piece.latents, {**texts, PARTS: json.dumps(list(piece.parts), ensure_ascii=False, allow_nan=False)})


def _write(path: Path, latents: Tensor, texts: Mapping[str, str]) -> None:
    latents = latents.float().cpu().contiguous()
    height, width = latents.shape[3] * SPATIAL, latents.shape[4] * SPATIAL
    sizes = torch.tensor([height, width, latents.shape[2]], dtype=torch.int32)
    with written_atomically(path) as temporary:
        # Written by Python and not by safetensors, so that a full disk raises OSError as with every other file.
        temporary.write_bytes(save({LATENTS: latents, SIZES: sizes}, metadata=dict(texts)))


def read_latents(path: str | Path, where: str = "append_latents") -> tuple[LatentInfo, Tensor]:
    """Return a file's description and its latents (1, 16, T, h, w), float32 on the CPU. Raises UserError, as `read_info`."""
    info = read_info(path, where)
    try:
        header = read_header(Path(path))
        latents = read_tensor(Path(path), header.places[LATENTS], header.dtypes[LATENTS], header.shapes[LATENTS])
    except CheckpointError as error:
        # The file was changed after `read_info`.
        raise UserError([damaged(where, path, error)]) from None
    return info, latents.float()


def trim(info: LatentInfo, latents: Tensor, start: int = 0, end: int = 0, where: str = "") -> LatentClip:
    """Return latents without `start` and `end` of them at the two ends. Raises UserError if none is left."""
    if start + end >= info.latents:
        values = {"file": info.file, "latents": info.latents, "trimmed": start + end}
        raise UserError([Problem(where, "latents_too_few", values)])
    kept = latents[:, :, start : info.latents - end]
    # The parts of a joined file go into this part.
    own = {"request": info.request} if info.request else {"parts": _shallow(info.parts)} if info.parts else {}
    part = {"file": Path(info.file).name, "latents": kept.shape[2], "trim_start": start, "trim_end": end, **own}
    # Earlier versions wrote paths into the files.
    return LatentClip(kept, tuple(parts_without_paths([part])))


def _shallow(parts: Sequence[Mapping[str, Any]], generations: int = GENERATIONS) -> list[Mapping[str, Any]]:
    """Return parts with at most this many generations of parts inside them."""
    if not generations:
        return [{name: value for name, value in part.items() if name != "parts"} for part in parts]
    return [
        {**part, "parts": _shallow([one for one in inner if isinstance(one, Mapping)], generations - 1)}
        if isinstance(inner := part.get("parts"), list)
        else part
        for part in parts
    ]


def join(pieces: Sequence[LatentClip], between: int = 0) -> LatentClip:
    """Return clips one after another, with `between` interpolated latents wherever two meet."""
    whole, *others = pieces
    for piece in others:
        bridge = interpolate(whole.latents[:, :, -1:], piece.latents[:, :, :1], between)
        whole = put_together(whole, bridge, piece)
    return whole


def put_together(first: LatentClip, bridge: Tensor, second: LatentClip) -> LatentClip:
    """Return two clips as one. bridge: the latents between them (1, 16, N, h, w); N may be 0."""
    head, *rest = second.parts
    parts = (*first.parts, {**head, "between": bridge.shape[2]}, *rest)
    return LatentClip(torch.cat([first.latents, bridge, second.latents], dim=2), parts)


def interpolate(before: Tensor, after: Tensor, count: int) -> Tensor:
    """Return `count` latents on the straight line between two latents (1, 16, 1, h, w), without the two themselves."""
    if not 0 <= count <= MOST_BETWEEN:
        raise ValueError(f"{count} latents between two films; 0 to {MOST_BETWEEN} are possible")
    weights = (torch.arange(1, count + 1) / (count + 1)).view(1, 1, -1, 1, 1)
    return torch.lerp(before, after, weights)


def same_size(infos: Sequence[LatentInfo], where: str = "files") -> list[Problem]:
    """Return a problem for each file whose picture size or model differs from the first one's."""
    first, problems = infos[0], []
    for info in infos[1:]:
        names = {"file": info.file, "other": first.file}
        if (info.width, info.height) != (first.width, first.height):
            sizes = {"width": info.width, "height": info.height, "other_width": first.width, "other_height": first.height}
            problems.append(Problem(where, "latents_differ", {**names, **sizes}))
        elif info.model and first.model and info.model != first.model:
            problems.append(Problem(where, "latents_models_differ", {**names, "model": info.model, "other_model": first.model}))
    return problems
