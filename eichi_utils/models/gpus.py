"""Ask the driver (NVML) about this machine's NVIDIA cards, which takes a millisecond, for answers before torch is imported."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pynvml


@dataclass(frozen=True)
class Card:
    """Describe a card. capability: CUDA's compute capability, such as (8, 9). total, free: bytes of memory. uuid: "GPU-..."."""

    name: str
    driver: str
    capability: tuple[int, int]
    total: int
    free: int
    uuid: str = ""


def cards() -> tuple[Card, ...]:
    """Return the cards that this process may use; none without a working driver.

    They are in the driver's order, or in that of CUDA_VISIBLE_DEVICES.
    """
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


def count_as_driver() -> None:
    """Have CUDA number the cards as the driver and nvidia-smi do, unless the user says how; call it before CUDA is used.

    CUDA's own order begins with the fastest card, so that cuda:0 would be another card than the one that was asked about here.
    """
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")


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
    """Return the cards that the variable CUDA_VISIBLE_DEVICES leaves, in its order.

    wanted: the variable's value, numbers or beginnings of UUIDs such as "GPU-8d2e", separated by commas; None leaves all.
    """
    if wanted is None:
        return tuple(found)
    chosen = []
    for word in filter(None, map(str.strip, wanted.split(","))):
        if word.lstrip("-").isdecimal():
            named = [found[int(word)]] if 0 <= int(word) < len(found) else []
        else:
            named = [card for card in found if card.uuid.startswith(word)]
        # As in CUDA, the first entry that names no card, or more than one, ends the list.
        if len(named) != 1:
            break
        chosen += named
    return tuple(chosen)
