"""Choose where networks run and in which precision, and count and move their bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn

T = TypeVar("T")


@dataclass(frozen=True)
class Placement:
    """Hold where networks run and in which precision.

    transformer and encoder are the dtypes the checkpoints are made for; float32 on a CPU.
    """

    device: torch.device
    transformer: torch.dtype
    encoder: torch.dtype


def placement(device: str = "auto") -> Placement:
    """Return where networks run on a device: "auto", "cpu", "cuda" or, with a card's number, "cuda:1".

    Raises ValueError if that device is not there.
    """
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
    """Tell how much memory of a card computing may take, and make more room.

    free: returns the bytes it may take, None where there is no card. make: lets everything else leave the card; returns False
    where nothing did.
    """

    free: Callable[[], int | None] = lambda: None
    make: Callable[[], bool] = lambda: False

    def retry_after_oom(self, work: Callable[[], T]) -> T:
        """Call work, and once more after making room if memory runs out.

        Raises torch.OutOfMemoryError if that does not help.
        """
        try:
            return work()
        except torch.OutOfMemoryError:
            pass
        # Outside of the handler, whose exception keeps everything alive that was computed.
        self.make()
        return work()


def weight_format(precision: str, where: Placement) -> tuple[torch.dtype, str | None]:
    """Return the dtype a transformer computes in, and the 8-bit format of its blocks' weights or None.

    precision: "auto" (the device's dtype, no 8 bits), "bfloat16", or the name of an 8-bit format.
    """
    if precision == "bfloat16":
        return torch.bfloat16, None
    return where.transformer, None if precision == "auto" else precision


def device_name(device: torch.device) -> str:
    """Return a name for what rounds in its own way: a card's model, or the CPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def module_bytes(module: nn.Module) -> int:
    """Return the bytes of all parameters and buffers of a network."""
    return sum(t.numel() * t.element_size() for t in _tensors(module))


def move(module: nn.Module, device: torch.device) -> int:
    """Move a network to a device; return the bytes that were not there before."""
    moved = sum(t.numel() * t.element_size() for t in _tensors(module) if not _lies_on(t, device))
    if moved:
        module.to(device)
    return moved


def _tensors(module: nn.Module) -> tuple[torch.Tensor, ...]:
    return (*module.parameters(), *module.buffers())


def _lies_on(tensor: torch.Tensor, device: torch.device) -> bool:
    # A device without a number means any device of its kind.
    return tensor.device.type == device.type and device.index in (None, tensor.device.index)


def free_bytes(device: torch.device) -> int | None:
    """Return the free memory of a card in bytes, torch's own unused cache included; None on a CPU."""
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
