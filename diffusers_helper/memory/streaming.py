"""Stream weights to a card that cannot hold them all.

Some groups stay there, the others pass through a ring of slots while others compute. Weights are never written, so nothing is
ever copied back: the host keeps them all.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property

import torch
from torch import Tensor, nn

from diffusers_helper.memory import mapped
from diffusers_helper.memory.device import Device, Event
from diffusers_helper.memory.slabs import PAGE, Arena, runs
from diffusers_helper.memory.trimming import trim
from diffusers_helper.memory.weight_groups import WeightGroups

logger = logging.getLogger(__name__)

# One slot's group is computed, another's is on its way; a third evens out groups of different length.
SLOTS = 3


class WeightGroup:
    """Hold parameters and buffers of some modules, which move together. bytes: of a slot that holds them."""

    def __init__(self, name: str, modules: Iterable[nn.Module]):
        self.name = name
        self.tensors = tensors_of(modules)
        self._home = [tensor.data for tensor in self.tensors]
        self.runs, self._places, self.bytes = runs(self._home)

    def views(self, buffer: Tensor) -> list[Tensor]:
        """Return the tensors as they lie in a slot."""
        return [place.view(buffer) for place in self._places]

    def point(self, views: Sequence[Tensor] | None) -> None:
        """Let the modules compute with a slot's views, or with host memory (None)."""
        for tensor, view in zip(self.tensors, self._home if views is None else views, strict=True):
            tensor.data = view

    def forget(self) -> None:
        """Give back, after the group was copied, those of its pages in memory that are windows into files."""
        for run in self.runs:
            mapped.forget(run.source, self._windows)

    @cached_property
    def _windows(self) -> list[tuple[int, int]]:
        """Return the process's windows into files, asked for once.

        The memory that this group holds neither becomes a window into a file nor ceases to be one.
        """
        return mapped.windows()

    def pairs(self, buffer: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return (target, source) of the copies that fill a slot."""
        return [(buffer[run.offset : run.offset + run.source.numel()], run.source) for run in self.runs]


def tensors_of(modules: Iterable[nn.Module]) -> list[Tensor]:
    """Return the parameters and buffers of modules that are not empty, each once, even if modules share it."""
    found = {id(t): t for module in modules for t in (*module.parameters(), *module.buffers()) if t.numel()}
    return list(found.values())


def evenly_spaced(groups: Sequence[WeightGroup], room: int) -> list[WeightGroup]:
    """Choose groups that fit into `room` bytes, evenly spaced.

    So copies of the others hide behind what computes between them.
    """
    total = sum(group.bytes for group in groups)
    if total <= room:
        return list(groups)
    kept, seen, chosen = 0, 0, []
    for group in groups:
        seen += group.bytes
        # It means kept / seen <= room / total, without rounding.
        if (kept + group.bytes) * total <= room * seen:
            kept += group.bytes
            chosen.append(group)
    return chosen


class _Slot:
    def __init__(self, buffer: Tensor, free: Event):
        self.buffer, self.free = buffer, free
        self.group: WeightGroup | None = None
        self.ready: Event = None
        # Views are made once, because a step has some two thousand of them.
        self._views: dict[str, list[Tensor]] = {}

    def views(self, group: WeightGroup) -> list[Tensor]:
        if group.name not in self._views:
            self._views[group.name] = group.views(self.buffer)
        return self._views[group.name]


class Ring:
    """Pass groups in a known order through a few slots on the card, each fetched while those before it compute.

    Groups may be left out or come out of order: that costs a fetch that nobody could prepare, never a wrong number. cyclic:
    whether the first group follows the last.
    """

    def __init__(self, device: Device, groups: Sequence[WeightGroup], slots: int, *, cyclic: bool):
        self._device, self._groups, self._cyclic = device, groups, cyclic
        size = max((group.bytes for group in groups), default=0)
        self._slots: list[_Slot] = []
        try:
            for _ in range(min(slots, len(groups))):
                self._slots.append(_Slot(device.allocate(size), device.mark()))
        except torch.OutOfMemoryError:
            self.close()
            raise

    @property
    def bytes(self) -> int:
        """Return how many bytes the slots take of the card."""
        return sum(slot.buffer.numel() for slot in self._slots)

    @contextmanager
    def lend(self, group: WeightGroup) -> Iterator[None]:
        """Have a group's weights on the card inside of the block, and fetch those that follow meanwhile."""
        following = self._following(group)
        slot = self._holding(group) or self._fetch(group, keep=())
        self._device.wait(slot.ready)
        group.point(slot.views(group))
        try:
            yield
        finally:
            group.point(None)
            slot.free = self._device.mark()
        # They are fetched after this group was queued, so that staging in host memory overlaps with its computation.
        for other in following:
            if self._holding(other) is None:
                self._fetch(other, keep=(group, *following))

    def close(self) -> None:
        """Give the slots back."""
        while self._slots:
            self._device.release(self._slots.pop().buffer)

    def _following(self, group: WeightGroup) -> list[WeightGroup]:
        at, count = self._groups.index(group), len(self._slots) - 1
        ahead = self._groups[at + 1 : at + 1 + count]
        if self._cyclic:
            ahead = [*ahead, *self._groups[: min(count - len(ahead), at)]]
        return list(ahead)

    def _holding(self, group: WeightGroup) -> _Slot | None:
        return next((slot for slot in self._slots if slot.group is group), None)

    def _fetch(self, group: WeightGroup, keep: Sequence[WeightGroup]) -> _Slot:
        slot = next(slot for slot in self._slots if slot.group is None or slot.group not in keep)
        # The slot is empty until the copy is queued: what fails half-way must not be taken for the group.
        slot.group = None
        slot.ready = self._device.copy(group.pairs(slot.buffer), slot.free)
        slot.group = group
        if not self._cyclic:
            # Unlocked memory was read when its copy was queued, and a job uses each group once.
            group.forget()
        return slot


class Streamer:
    """Keep a network's weights in host memory and lend them on a card; see `Weights`.

    Loose tensors of the groups that run at every step, such as a LoRA's, are gathered into slabs first.
    """

    def __init__(self, device: Device, groups: WeightGroups, slots: int = SLOTS):
        self._device, self._count = device, slots
        self._arena = gather({name: tensors_of(modules) for name, modules in groups.step.items()}, groups.contiguous)
        self._always = WeightGroup("always", groups.always)
        self._job = {name: WeightGroup(name, modules) for name, modules in groups.job.items()}
        self._step = {name: WeightGroup(name, modules) for name, modules in groups.step.items()}
        self._kept: dict[str, Tensor] = {}
        self._always_buffer: Tensor | None = None
        self._ring: Ring | None = None
        self._job_ring: Ring | None = None
        self._locked: list[Tensor] = []

    @property
    def resident(self) -> tuple[str, ...]:
        """Return the names of the groups that stay on the card, in the order they run."""
        return tuple(name for name in self._step if name in self._kept)

    @property
    def card_bytes(self) -> int:
        """Return the bytes that the weights take on the card now."""
        buffers = [*self._kept.values(), *([] if self._always_buffer is None else [self._always_buffer])]
        rings = [ring for ring in (self._ring, self._job_ring) if ring]
        return sum(buffer.numel() for buffer in buffers) + sum(ring.bytes for ring in rings)

    @property
    def step_bytes(self) -> int:
        """Return the bytes that the weights take on the card when every group stays."""
        return self._always.bytes + sum(group.bytes for group in self._step.values())

    @property
    def least_bytes(self) -> int:
        """Return the bytes that the weights take on the card when no group stays and two slots serve all."""
        sizes = sorted((group.bytes for group in self._step.values()), reverse=True)
        return self._always.bytes + 2 * (sizes[0] if len(sizes) > 2 else sum(sizes))

    @property
    def job_bytes(self) -> int:
        """Return the bytes that `job` takes on the card for as long as it lasts."""
        return min(2, len(self._job)) * max((group.bytes for group in self._job.values()), default=0)

    def lock(self, most: int) -> int:
        """Lock up to `most` bytes of the slabs in memory, as far as the system lets us; return the bytes locked.

        What cannot be locked is staged through a small locked buffer at every use.
        """
        done = 0
        for group in self._step.values():
            for run in group.runs:
                # A page can be locked once, and memory that is no slab shares its first page with other memory.
                if run.source.data_ptr() % PAGE or done + run.source.numel() > most or not self._device.lock(run.source):
                    continue
                self._locked.append(run.source)
                done += run.source.numel()
        total = sum(run.source.numel() for group in self._step.values() for run in group.runs)
        say = logger.warning if done < total else logger.info
        say("%.2f of %.2f GiB of weights are locked in memory, the rest is staged", done / 2**30, total / 2**30)
        return done

    def fit(self, budget: int) -> None:
        """Take at most `budget` bytes of the card, or `least_bytes` if that is more.

        Groups that are there already stay if they can. Raises torch.OutOfMemoryError if the card has less than it said.
        """
        if self._always_buffer is None and self._always.bytes:
            self._always_buffer = self._put(self._always)
        groups = list(self._step.values())
        room = budget - self._always.bytes
        if groups and sum(group.bytes for group in groups) > room:
            largest = max(group.bytes for group in groups)
            slots = max(2, min(self._count, room // largest))
            room -= slots * largest
        else:
            slots = 0
        kept = [group for group in groups if group.name in self._kept]
        still = evenly_spaced(kept, max(0, room))
        dropped = [group for group in kept if group not in still]
        self._drop(dropped)
        added = evenly_spaced([group for group in groups if group not in still], room - sum(group.bytes for group in still))
        if added or dropped or self._ring is None:
            self._close_ring()
            self._keep(added)
            # Two slots at least, for groups that were meant to stay and did not fit.
            self._open_ring(max(2, slots))

    def leave(self, wanted: int | None = None) -> None:
        """Give back at least `wanted` bytes of the card, or all that there are if they are fewer; None gives back all."""
        before = self.card_bytes
        if wanted is not None and wanted < before - self.least_bytes:
            self._shrink(before - wanted)
        else:
            self._close_ring()
            self._drop([group for group in self._step.values() if group.name in self._kept])
            if self._always_buffer is not None:
                self._always.point(None)
                self._device.release(self._always_buffer)
                self._always_buffer = None
        self._device.tidy()

    def close(self) -> None:
        """Leave the card and unlock the host's memory. The network is then as before."""
        self.leave()
        while self._locked:
            self._device.unlock(self._locked.pop())

    @contextmanager
    def lend(self, name: str) -> Iterator[None]:
        """Have the weights of a group on the card inside of the block, whether they stay or are fetched."""
        if name in self._kept:
            yield
            return
        ring, group = (self._job_ring, self._job[name]) if name in self._job else (self._ring, self._step[name])
        if ring is None:
            raise RuntimeError(f"the weights of {name} are asked for outside of `job`, or before `fit`")
        with ring.lend(group):
            yield

    @contextmanager
    def job(self) -> Iterator[None]:
        """Hold a ring of its own for the groups that a job uses once. Raises torch.OutOfMemoryError where it has no room."""
        try:
            ring = self._open_job_ring()
        except torch.OutOfMemoryError:
            if not self.make_room():
                raise
            ring = self._open_job_ring()
        self._job_ring = ring
        try:
            yield
        finally:
            ring.close()
            self._job_ring = None

    def make_room(self) -> bool:
        """Give up half of what stays on the card; return False if nothing does."""
        kept = sum(buffer.numel() for buffer in self._kept.values())
        if not kept:
            return False
        logger.warning("memory ran out on the card: of %.2f GiB of resident weights half are streamed now", kept / 2**30)
        self._shrink(self._always.bytes + kept // 2)
        self._device.tidy()
        return True

    def _shrink(self, budget: int) -> None:
        """Keep groups and slots within `budget`; keep nothing new."""
        groups = [group for group in self._step.values() if group.name in self._kept]
        largest = max(group.bytes for group in self._step.values())
        still = evenly_spaced(groups, max(0, budget - self._always.bytes - 2 * largest))
        self._close_ring()
        self._drop([group for group in groups if group not in still])
        self._device.tidy()
        self._open_ring(2)

    def _open_job_ring(self) -> Ring:
        return Ring(self._device, list(self._job.values()), 2, cyclic=False)

    def _open_ring(self, slots: int) -> None:
        while self._ring is None:
            streamed = [group for group in self._step.values() if group.name not in self._kept]
            try:
                self._ring = Ring(self._device, streamed, slots, cyclic=True)
            except torch.OutOfMemoryError:
                if not self._kept:
                    raise
                self._drop([self._step[list(self._kept)[-1]]])
                self._device.tidy()

    def _close_ring(self) -> None:
        if self._ring is not None:
            self._ring.close()
            self._ring = None

    def _keep(self, groups: Sequence[WeightGroup]) -> None:
        for group in groups:
            try:
                self._kept[group.name] = self._put(group)
            except torch.OutOfMemoryError:
                # Less memory is free than the card said.
                self._device.tidy()
                return

    def _drop(self, groups: Sequence[WeightGroup]) -> None:
        for group in groups:
            group.point(None)
            self._device.release(self._kept.pop(group.name))

    def _put(self, group: WeightGroup) -> Tensor:
        buffer = self._device.allocate(group.bytes)
        try:
            self._device.wait(self._device.copy(group.pairs(buffer), self._device.mark()))
        except RuntimeError:
            self._device.release(buffer)
            raise
        group.point(group.views(buffer))
        group.forget()
        return buffer


def gather(groups: Mapping[str, Sequence[Tensor]], contiguous: Sequence[Sequence[Tensor]] = ()) -> Arena | None:
    """Move tensors that do not lie in a slab into one, tensor by tensor; return None where there are none."""
    loose = {name: _loose(name, tensors) for name, tensors in groups.items()}
    if not any(loose.values()):
        return None
    specs = [{key: (t.dtype, tuple(t.shape)) for key, t in group.items()} for group in loose.values() if group]
    keys = {id(tensor): key for group in loose.values() for key, tensor in group.items()}
    rows = [[keys[id(tensor)] for tensor in row] for row in contiguous if all(id(tensor) in keys for tensor in row)]
    arena = Arena(specs, rows)
    for group in loose.values():
        for key, tensor in group.items():
            tensor.data = arena.put(key, tensor.data)
    trim()
    return arena


def _loose(name: str, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
    """Return the tensors that do not lie in a slab, by keys of their own."""
    found, _, _ = runs([tensor.data for tensor in tensors])
    where = [tensor.data.untyped_storage().data_ptr() for tensor in tensors]
    slabs = {run.source.untyped_storage().data_ptr() for run in found if run.source.data_ptr() % PAGE == 0}
    # A tensor with a storage of its own may begin at a page by chance.
    rest = [tensor for tensor, place in zip(tensors, where, strict=True) if place not in slabs or where.count(place) == 1]
    return {f"{name}/{number}": tensor for number, tensor in enumerate(rest)}
