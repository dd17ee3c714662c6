"""NVIDIA cards as their driver describes them (NVML), in a millisecond: for what has to answer before torch is there."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pynvml


@dataclass(frozen=True)
class Card:
    """total, free: bytes. capability: of computing, such as (8, 9). uuid: "GPU-..."."""

    name: str
    driver: str
    capability: tuple[int, int]
    total: int
    free: int
    uuid: str = ""


def cards() -> tuple[Card, ...]:
    """Return the cards that a program may use here, in its order; empty without a working driver."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return ()
    try:
        return visible(tuple(_described()), os.environ.get("CUDA_VISIBLE_DEVICES"))
    except pynvml.NVMLError:
        return ()
    finally:
        pynvml.nvmlShutdown()


def _described() -> Iterator[Card]:
    """Yield every card of the machine; one that the driver cannot describe is left out."""
    driver = pynvml.nvmlSystemGetDriverVersion()
    for index in range(pynvml.nvmlDeviceGetCount()):
        with suppress(pynvml.NVMLError):
            handle: Any = pynvml.nvmlDeviceGetHandleByIndex(index)
            memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
            major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
            yield Card(
                name=pynvml.nvmlDeviceGetName(handle),
                driver=driver,
                capability=(major, minor),
                total=int(memory.total),
                free=int(memory.free),
                uuid=pynvml.nvmlDeviceGetUUID(handle),
            )


def visible(found: Sequence[Card], wanted: str | None) -> tuple[Card, ...]:
    """Return those that the variable CUDA_VISIBLE_DEVICES leaves: numbers, or beginnings of names such as "GPU-8d2e"."""
    if wanted is None:
        return tuple(found)
    chosen = []
    for word in filter(None, map(str.strip, wanted.split(","))):
        if word.lstrip("-").isdecimal():
            named = [found[int(word)]] if 0 <= int(word) < len(found) else []
        else:
            named = [card for card in found if card.uuid.startswith(word)]
        # The first that names no card, or more than one, ends the list.
        if len(named) != 1:
            break
        chosen += named
    return tuple(chosen)
