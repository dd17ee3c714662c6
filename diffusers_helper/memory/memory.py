"""Devices and bytes: where networks run, in which precision, and what moving them costs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn

T = TypeVar("T")


@dataclass(frozen=True)
class Placement:
    """Where networks run. transformer and encoder dtypes are those the checkpoints are made for, float32 on a CPU."""

    device: torch.device
    transformer: torch.dtype
    encoder: torch.dtype


def placement(device: str = "auto") -> Placement:
    """`device`: "auto", "cpu", "cuda" or "cuda:1". Raises ValueError if that device is not there."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise ValueError(f"{device!r} is not the name of a device") from None
    if chosen.type == "cuda":
        count = torch.cuda.device_count()
        if (chosen.index or 0) >= count:
            raise ValueError(f"there is no device {device!r}: torch {torch.__version__} sees {count} CUDA cards")
        return Placement(chosen, torch.bfloat16, torch.float16)
    if chosen.type != "cpu":
        raise ValueError(f"device {device!r} is neither a CUDA card nor the CPU")
    return Placement(chosen, torch.float32, torch.float32)


@dataclass(frozen=True)
class Room:
    """Memory of a card for what is being computed. free: bytes it may take, None where there is no card. make: let everything
    else leave the card; False where nothing did."""

    free: Callable[[], int | None] = lambda: None
    make: Callable[[], bool] = lambda: False

    def retry_after_oom(self, work: Callable[[], T]) -> T:
        """work(), and once more after making room if memory runs out. Raises torch.OutOfMemoryError if that does not help."""
        try:
            return work()
        except torch.OutOfMemoryError:
            pass
        # Outside of the handler, which holds everything that was computed.
        self.make()
        return work()


def weight_format(precision: str, where: Placement) -> tuple[torch.dtype, str | None]:
    """The dtype a transformer computes in, and the 8-bit format of its blocks' weights or None.

    precision: "auto" (as the device likes it), "bfloat16", or a format's name.
    """
    if precision == "bfloat16":
        return torch.bfloat16, None
    return where.transformer, None if precision == "auto" else precision


def device_name(device: torch.device) -> str:
    """What rounds in its own way: a card by its model, or the CPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def module_bytes(module: nn.Module) -> int:
    """Bytes of all parameters and buffers."""
    return sum(t.numel() * t.element_size() for t in _tensors(module))


def move(module: nn.Module, device: torch.device) -> int:
    """Move a network; returns the bytes that were not there before."""
    moved = sum(t.numel() * t.element_size() for t in _tensors(module) if not _lies_on(t, device))
    if moved:
        module.to(device)
    return moved


def _tensors(module: nn.Module) -> tuple[torch.Tensor, ...]:
    return (*module.parameters(), *module.buffers())


def _lies_on(tensor: torch.Tensor, device: torch.device) -> bool:
    # A device without a number is any of its kind.
    return tensor.device.type == device.type and device.index in (None, tensor.device.index)


def free_bytes(device: torch.device) -> int | None:
    """Free memory of a card, torch's own unused cache included; None on a CPU."""
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
