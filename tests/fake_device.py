"""Simulate a card in host memory that is late, full or broken on demand, so that streaming mistakes show as wrong numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

# Value of unwritten bytes: NaN in every floating-point format, -1 in int8.
GARBAGE = 0xFF


@dataclass(eq=False)
class FakeEvent:
    """Stand for an event of a queue. number: the order of marks. copies: those that happen when the event is waited for."""

    number: int = 0
    copies: list = field(default_factory=list)


class FakeDevice:
    """Simulate a card whose copies happen only when their event is waited for.

    A copy into memory that a computation may still read writes garbage. capacity: bytes. lockable: bytes of host memory that
    may be locked. work: bytes that computing takes besides the weights. fail_copy, fail_allocation: numbers, from 1, of the
    operations that raise. waits: for each wait for a tensor sent to the host, how many had been sent until then.
    """

    def __init__(self, capacity: int = 2**40, lockable: int = 2**40, work: int = 0):
        self.device = torch.device("cpu")
        self.capacity, self.lockable, self.work = capacity, lockable, work
        self.buffers: dict[int, int] = {}
        self.readers: dict[int, int] = {}
        self.locked: dict[int, int] = {}
        self.waits: list[int] = []
        self.fetched = self.copied = self.most = self.copies = self.allocations = self.marks = self.stolen = 0
        self.fail_copy: set[int] = set()
        self.fail_allocation: set[int] = set()

    def allocate(self, size: int) -> Tensor:
        self.allocations += 1
        if self.allocations in self.fail_allocation or size > self.free():
            raise torch.OutOfMemoryError("injected")
        with torch.inference_mode(False):
            buffer = torch.full((size,), GARBAGE, dtype=torch.uint8)
        self.buffers[buffer.data_ptr()] = size
        self.most = max(self.most, self.allocated())
        return buffer

    def release(self, buffer: Tensor) -> None:
        # A computation that still uses the memory gets garbage.
        buffer.fill_(GARBAGE)
        del self.buffers[buffer.data_ptr()]
        self.readers.pop(buffer.data_ptr(), None)

    def copy(self, pairs: Sequence[tuple[Tensor, Tensor]], after: FakeEvent) -> FakeEvent:
        self.copies += 1
        event = FakeEvent()
        for number, (target, source) in enumerate(pairs):
            if self.copies in self.fail_copy and number == len(pairs) // 2:
                target.copy_(source)
                target[target.numel() // 2 :] = GARBAGE
                raise RuntimeError("injected: the copy ended half-way")
            assert target.numel() == source.numel()
            self.copied += source.numel()
            target.fill_(GARBAGE)
            read_at = self.readers.get(target.untyped_storage().data_ptr(), 0)
            event.copies.append((target, source if after.number > read_at else None))
        return event

    def wait(self, event: FakeEvent) -> None:
        for target, source in event.copies:
            if source is not None:
                target.copy_(source)
            # Operations queued from now on read it; only a later mark shows that they are done.
            self.readers[target.untyped_storage().data_ptr()] = self.marks
        event.copies.clear()

    def mark(self) -> FakeEvent:
        self.marks += 1
        return FakeEvent(self.marks)

    def fetch(self, tensor: Tensor) -> Callable[[], Tensor]:
        self.fetched += 1
        target = torch.full_like(tensor, GARBAGE)

        def wait() -> Tensor:
            self.waits.append(self.fetched)
            return target.copy_(tensor)

        return wait

    def lock(self, memory: Tensor) -> bool:
        if sum(self.locked.values()) + memory.numel() > self.lockable:
            return False
        self.locked[memory.data_ptr()] = memory.numel()
        return True

    def unlock(self, memory: Tensor) -> None:
        del self.locked[memory.data_ptr()]

    def free(self) -> int:
        return self.capacity - self.allocated() - self.stolen

    def allocated(self) -> int:
        return sum(self.buffers.values())

    def peak(self) -> int:
        return self.most + self.work

    def reset_peak(self) -> None:
        self.most = self.allocated()

    def tidy(self) -> None:
        pass
