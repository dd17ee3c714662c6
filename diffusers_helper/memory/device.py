"""Define what streaming asks of a card, and provide it for CUDA.

The interface is small, so that tests can put a card in its place that is late, full or broken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Protocol

import torch
from torch import Tensor

from diffusers_helper.memory.memory import free_bytes
from diffusers_helper.torch_compat import allocate_in_pages

# The CUDA runtime's return value for success, which torch's binding does not name.
SUCCESS = 0
# Bytes of each of the two locked buffers through which unlocked memory is copied.
STAGE = 32 * 2**20

Event = Any


class Device(Protocol):
    """Allocate memory on a card, and queue copies to it beside what is computed.

    What is computed is on one queue, copies to the card on another, and events order the two.
    """

    device: torch.device

    def allocate(self, size: int) -> Tensor:
        """Return `size` bytes on the card, for use after what is queued for computing. Raises torch.OutOfMemoryError."""
        ...

    def release(self, buffer: Tensor) -> None:
        """Take the memory back once nothing that is queued needs it; the caller drops every reference to it."""
        ...

    def copy(self, pairs: Sequence[tuple[Tensor, Tensor]], after: Event) -> Event:
        """Queue copies (target, source) of uint8 that begin after an event; return the event of their end."""
        ...

    def wait(self, event: Event) -> None:
        """Let what is computed from now on wait for the event; the caller does not wait."""
        ...

    def mark(self) -> Event:
        """Return the event of everything that was queued for computing so far."""
        ...

    def fetch(self, tensor: Tensor) -> Callable[[], Tensor]:
        """Queue a copy of a small tensor to the host, after what computes it.

        The returned function waits for the copy and returns it.
        """
        ...

    def lock(self, memory: Tensor) -> bool:
        """Lock host memory in place, so that copies from it need not be staged; False where the system refuses."""
        ...

    def unlock(self, memory: Tensor) -> None:
        """Unlock memory that `lock` has locked, so that the system may move or page it out; copies from it are done by then."""
        ...

    def free(self) -> int:
        """Return the bytes that could be allocated."""
        ...

    def peak(self) -> int:
        """Return the most bytes that were allocated at a time since `reset_peak`."""
        ...

    def reset_peak(self) -> None:
        """Begin to count anew for `peak`."""
        ...

    def allocated(self) -> int:
        """Return the bytes that are allocated now."""
        ...

    def tidy(self) -> None:
        """Give unused memory back, so that other sizes can be allocated."""
        ...


def _runtime() -> Any:
    """Return torch's binding of the CUDA runtime, which is there wherever a card is; its functions have no types."""
    return torch.cuda.cudart()


class CudaDevice:
    """Allocate memory on a CUDA card, and copy to it on a stream of its own; a `Device`.

    limit: bytes that this process may take of the card, for finding out how a smaller card would do; None is all.
    """

    def __init__(self, device: torch.device, limit: int | None = None):
        allocate_in_pages()
        index = torch.cuda.current_device() if device.index is None else device.index
        self.device, self._limit = torch.device("cuda", index), limit
        whole = torch.cuda.get_device_properties(index).total_memory
        if limit is not None:
            torch.cuda.set_per_process_memory_fraction(min(1.0, limit / whole), self.device)
        self._highest = 0
        self._locked: dict[int, int] = {}
        self._copies = torch.cuda.Stream(self.device)
        self._stage: list[Tensor] = []
        self._staged: list[torch.cuda.Event] = []

    def allocate(self, size: int) -> Tensor:
        """Return `size` bytes of the card, uint8, in the order of what is computed. Raises torch.OutOfMemoryError."""
        with torch.inference_mode(False):
            return torch.empty(size, dtype=torch.uint8, device=self.device)

    def release(self, buffer: Tensor) -> None:
        """Let what is computed next wait for the copies: then the memory may be handed on."""
        # torch hands memory on in the order of the stream it was allocated on; copies into it may still be under way.
        torch.cuda.current_stream(self.device).wait_stream(self._copies)

    def copy(self, pairs: Sequence[tuple[Tensor, Tensor]], after: torch.cuda.Event) -> torch.cuda.Event:
        """Queue copies on a stream of their own: from locked memory directly, from other memory through two locked buffers."""
        self._copies.wait_event(after)
        with torch.inference_mode(False), torch.cuda.stream(self._copies):
            for target, source in pairs:
                # torch's `is_pinned` would ask about the beginning of the storage that the slab is a part of.
                if self._locked.get(source.data_ptr(), 0) >= source.numel():
                    target.copy_(source, non_blocking=True)
                else:
                    self._copy_staged(target, source)
            event = torch.cuda.Event()
            event.record(self._copies)
        return event

    def wait(self, event: torch.cuda.Event) -> None:
        """Let what is computed from now on wait for an event."""
        torch.cuda.current_stream(self.device).wait_event(event)

    def mark(self) -> torch.cuda.Event:
        """Return the event of everything that was queued for computing so far."""
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self.device))
        return event

    def fetch(self, tensor: Tensor) -> Callable[[], Tensor]:
        """Queue a copy into locked memory; the returned function waits for it, asleep, and returns it."""
        target = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        target.copy_(tensor, non_blocking=True)
        # Blocking, so that the thread that waits sleeps and leaves its core to the page.
        arrived = torch.cuda.Event(blocking=True)
        arrived.record(torch.cuda.current_stream(self.device))

        def wait() -> Tensor:
            arrived.synchronize()
            return target

        return wait

    def lock(self, memory: Tensor) -> bool:
        """Lock memory by cudaHostRegister; return False where the system refuses."""
        with torch.cuda.device(self.device):
            if int(_runtime().cudaHostRegister(memory.data_ptr(), memory.numel(), 0)) == SUCCESS:
                self._locked[memory.data_ptr()] = memory.numel()
                return True
            # A refusal stays the runtime's last error until the next kernel launch reports it: this launch takes it away.
            with suppress(RuntimeError):
                torch.zeros(1, device=self.device)
            return False

    def unlock(self, memory: Tensor) -> None:
        """Wait for the copies, and take the lock away."""
        self._copies.synchronize()
        del self._locked[memory.data_ptr()]
        _runtime().cudaHostUnregister(memory.data_ptr())

    def free(self) -> int:
        """Return the bytes that could be allocated within the card's memory and the limit."""
        free = free_bytes(self.device) or 0
        return free if self._limit is None else min(free, self._limit - self.allocated())

    def peak(self) -> int:
        """Return the most bytes of tensors at a time since `reset_peak`."""
        return torch.cuda.max_memory_allocated(self.device)

    def reset_peak(self) -> None:
        """Let torch count anew for `peak`; `highest` counts on."""
        self._highest = self.highest()
        torch.cuda.reset_peak_memory_stats(self.device)

    def highest(self) -> int:
        """Return the most bytes that torch ever had of the card, unused ones included, since this object was made."""
        return max(self._highest, torch.cuda.max_memory_reserved(self.device))

    def allocated(self) -> int:
        """Return the bytes that tensors take now."""
        return torch.cuda.memory_allocated(self.device)

    def tidy(self) -> None:
        """Give memory back that torch holds for later."""
        torch.cuda.empty_cache()

    def _copy_staged(self, target: Tensor, source: Tensor) -> None:
        """Copy through the locked buffers: the host copies a piece while the card fetches the one before.

        It waits only for buffers that are still in use.
        """
        if not self._stage:
            self._stage = [torch.empty(STAGE, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
            self._staged = [torch.cuda.Event() for _ in self._stage]
        for begin in range(0, source.numel(), STAGE):
            # First in, first out: the buffer at the front was used longest ago.
            buffer, event = self._stage.pop(0), self._staged.pop(0)
            event.synchronize()
            piece = source[begin : begin + STAGE]
            buffer[: piece.numel()].copy_(piece)
            target[begin : begin + STAGE].copy_(buffer[: piece.numel()], non_blocking=True)
            event.record(self._copies)
            self._stage.append(buffer)
            self._staged.append(event)
