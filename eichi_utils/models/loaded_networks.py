"""Networks in memory and on a card: which stay, which leave, and what of one passes through a card too small for it.

Nothing here knows what a network is for, nor where it came from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from diffusers_helper.memory import memory
from diffusers_helper.memory.budget import Budget
from diffusers_helper.memory.device import Device
from diffusers_helper.memory.streaming import Streamer
from diffusers_helper.memory.weight_groups import WeightGroups
from eichi_utils.models.requirements import ExecutionChoice, NetworkMemory, lockable


@dataclass(frozen=True)
class NetworkSpec:
    """What is loaded; equality decides about loading again.

    storage: the 8-bit format of the blocks' weights, or None. merged: the files that are worked into the weights.
    """

    component: str
    folder: Path
    dtype: torch.dtype
    storage: str | None = None
    merged: tuple = ()


@dataclass
class Loaded:
    """A network in memory. value: what is lent. modules: its weights are theirs. branches: what tells its side branches from
    others; None where a file could not be used half-way."""

    spec: NetworkSpec
    value: Any
    modules: tuple[nn.Module, ...]
    streamer: Streamer | None = None
    branches: tuple | None = ()

    @property
    def bytes(self) -> int:
        """Return how many bytes its weights take, wherever they lie."""
        return sum(memory.module_bytes(module) for module in self.modules)


class LoadedNetworks:
    """By component, the one used last at the end. card: None where everything is computed in the computer's memory."""

    def __init__(self, card: Device | None, budget: Budget):
        self.card, self.budget = card, budget
        self.room = memory.Room(self._free, self._make_room)
        self.memory = NetworkMemory()
        self.loaded: dict[str, Loaded] = {}
        self._choice: ExecutionChoice | None = None

    @property
    def card_bytes(self) -> int:
        """What streamed networks have of the card now."""
        return sum(loaded.streamer.card_bytes for loaded in self.loaded.values() if loaded.streamer)

    def follow_choice(self, choice: ExecutionChoice) -> None:
        """Keep and drop networks as was decided, from the next loan on. Until then nothing is dropped."""
        self._choice = choice

    def drop(self, component: str) -> None:
        """Let go of a network, if it is there."""
        loaded = self.loaded.pop(component, None)
        if loaded and loaded.streamer:
            loaded.streamer.close()

    def drop_all(self) -> None:
        """Let go of every network."""
        while self.loaded:
            self.drop(next(iter(self.loaded)))

    @contextmanager
    def loan(
        self,
        spec: NetworkSpec,
        load: Callable[[], tuple[Any, tuple[nn.Module, ...]]],
        change: Callable[[Any, tuple | None], tuple] = lambda value, branches: (),
        groups: Callable[[Any], WeightGroups] | None = None,
        work: int = 0,
    ) -> Iterator[Loaded]:
        """Lend a network where it is computed with.

        change: what is done to the value before it is counted and moved: given its side branches, returns those it has then.
        groups: how it is streamed to a card; without, it moves whole. work: how much there is to do; tokens of a step, in the
        transformer.
        """
        if spec.component in self.loaded and self.loaded[spec.component].spec != spec:
            self.drop(spec.component)
        self._drop_all_but(spec.component)
        loaded = self.loaded.pop(spec.component, None)
        if loaded is None:
            value, modules = load()
            loaded = Loaded(spec, value, modules)
        # Last in the dictionary is last used.
        self.loaded[spec.component] = loaded
        before, loaded.branches = loaded.branches, None
        loaded.branches = change(loaded.value, before)
        if loaded.streamer and loaded.branches != before:
            loaded.streamer.close()
            loaded.streamer = None
        if (card := self.card) is None:
            yield loaded
            return
        kind = spec, work
        self._make_card_room(card, loaded, self.budget.work(kind) if groups is None else None)
        if groups is None:
            self.room.retry_after_oom(lambda: [memory.move(module, card.device) for module in loaded.modules])
        else:
            self._stream(card, loaded, groups(loaded.value), kind)
        with self._measured(card, kind):
            yield loaded

    @contextmanager
    def _measured(self, card: Device, kind: tuple[NetworkSpec, int]) -> Iterator[None]:
        """Remember what computing takes inside of the block besides what was on the card before."""
        card.reset_peak()
        before = card.allocated()
        try:
            yield
        finally:
            self.budget.measure(kind, card.peak() - before)

    def _stream(self, card: Device, loaded: Loaded, groups: WeightGroups, kind: tuple[NetworkSpec, int]) -> None:
        """As much of the network onto the card as fits beside its computing; the rest passes through."""
        if loaded.streamer is None:
            loaded.streamer = Streamer(card, groups)
            loaded.streamer.lock(self._choice.locked if self._choice else lockable(self.memory.now().total))
        streamer, (spec, tokens) = loaded.streamer, kind
        work = self.budget.work(kind)
        if work is None:
            width = loaded.value.config.dim if tokens else 0
            work = self.budget.estimate(tokens, width, spec.dtype.itemsize)
        available = card.free() + streamer.card_bytes
        streamer.fit(self.budget.for_weights(available, max(work, streamer.job_bytes)))

    def _drop_all_but(self, lent: str) -> None:
        """Make room for a network before it is loaded."""
        if self._choice is not None:
            for component in self.loaded.keys() - self._choice.beside[lent] - {lent}:
                self.drop(component)

    def _make_card_room(self, card: Device, wanted: Loaded, work: int | None) -> None:
        """Others leave the card: all of them for what is streamed or was never measured (None), else as many as it needs."""
        for loaded in self.loaded.values():
            short = None if work is None else wanted.bytes + work + self.budget.reserve - card.free()
            if loaded is wanted:
                continue
            if short is not None and short <= 0:
                return
            if loaded.streamer:
                loaded.streamer.leave(short)
            else:
                for module in loaded.modules:
                    memory.move(module, torch.device("cpu"))

    def _free(self) -> int | None:
        """Bytes of the card that computing may take."""
        return None if self.card is None else self.card.free() - self.budget.reserve

    def _make_room(self) -> bool:
        """Memory ran out: everything leaves the card but what is lent. False if nothing else was there."""
        if self.card is None:
            return False
        before = self.card.allocated()
        self._make_card_room(self.card, list(self.loaded.values())[-1], None)
        self.card.tidy()
        return self.card.allocated() < before
