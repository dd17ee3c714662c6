"""Can this machine do it at all? Said before anything is loaded, with figures, instead of a process that the system ends."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from diffusers_helper.models.transformer import PackedTransformer
from diffusers_helper.streaming import tensors_of
from eichi_utils.problems import Problem

CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Needs:
    """The least that sampling takes: bytes of the computer's memory, and of the card's besides computing; 0 without a card."""

    host: int
    card: int


def needs(net: PackedTransformer, dtype: torch.dtype, storage: str | None, *, on_card: bool) -> Needs:
    """Of a transformer, which may be without memory. What only tables are made of stays in the files, beside a card."""
    narrow = {id(layer.weight) for layer in net.block_linears().values()} if storage else set()

    def size(modules) -> int:
        return sum(t.numel() * (1 if id(t) in narrow else dtype.itemsize) for t in tensors_of(modules))

    parts = net.parts()
    if not on_card:
        return Needs(size([net]), 0)
    step, job = ([size(modules) for modules in group.values()] for group in (parts.step, parts.job))
    return Needs(sum(step), size(parts.always) + 2 * max(*step, *job))


def problems(needed: Needs, work: int, host_there: int, card_there: int | None) -> Iterator[Problem]:
    """What is too small. work: bytes that computing takes on the card. *_there: bytes that could be had."""
    if needed.host > host_there:
        yield Problem("", "too_little_memory", {"needed": _gib(needed.host), "free": _gib(host_there)})
    if card_there is not None and needed.card + work > card_there:
        yield Problem("", "too_little_card_memory", {"needed": _gib(needed.card + work), "free": _gib(card_there)})


def host_available(cgroup: Path = CGROUP) -> int:
    """Bytes that programs can still have, swap included, and no more than the container is allowed."""
    there = psutil.virtual_memory().available + psutil.swap_memory().free
    try:
        limit = (cgroup / "memory.max").read_text().strip()
        used = int((cgroup / "memory.current").read_text())
        cached = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
        return there if limit == "max" else min(there, int(limit) - used + int(cached.get("file", 0)))
    except (OSError, ValueError):
        return there


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f}"
