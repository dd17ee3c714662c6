"""Keep networks in memory and on a card: decide which stay, which leave, and which are streamed through a card.

Nothing here depends on what a network is for, nor where it came from.
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
    """Identify a loaded network; one with an unequal spec is loaded anew.

    component: its name in the pool. folder: of its files. storage: the 8-bit format of the blocks' weights, or None. merged:
    key of the LoRA files that are merged into the weights.
    """

    component: str
    folder: Path
    dtype: torch.dtype
    storage: str | None = None
    merged: tuple = ()


@dataclass
class Loaded:
    """Hold a network in memory.

    value: what is lent. modules: the modules with its weights. streamer: brings the weights to a card, None if it moves whole.
    branches: identifies its side branches; None while they are changed, and if a LoRA file failed in between.
    """

    spec: NetworkSpec
    value: Any
    modules: tuple[nn.Module, ...]
    streamer: Streamer | None = None
    branches: tuple | None = ()

    @property
    def bytes(self) -> int:
        """Return the bytes of its weights, wherever they lie."""
        return sum(memory.module_bytes(module) for module in self.modules)


class LoadedNetworks:
    """Keep networks by component, and lend them on a card or, if there is none (None), in the computer's memory.

    budget: divides the card between weights and computing. room: makes room on the card if memory runs out. loaded: component
    -> network, the one used last at the end.
    """

    def __init__(self, card: Device | None, budget: Budget):
        self.card, self.budget = card, budget
        self.room = memory.Room(self._free, self._make_room)
        self.memory = NetworkMemory()
        self.loaded: dict[str, Loaded] = {}
        self._choice: ExecutionChoice | None = None

    @property
    def card_bytes(self) -> int:
        """Return the bytes of the card that streamed networks take now."""
        return sum(loaded.streamer.card_bytes for loaded in self.loaded.values() if loaded.streamer)

    def follow_choice(self, choice: ExecutionChoice) -> None:
        """Keep and drop networks as this choice says, from the next loan on; without a choice none is dropped."""
        self._choice = choice

    def drop(self, component: str) -> None:
        """Remove a network from memory and card, if it is loaded."""
        loaded = self.loaded.pop(component, None)
        if loaded and loaded.streamer:
            loaded.streamer.close()

    def drop_all(self) -> None:
        """Remove every network from memory and card."""
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
        """Lend a network inside of the block, on the device that computes.

        spec: what is wanted. load: loads it if it is not there, and returns its value and the modules with its weights. change:
        called with the value and what identifies its side branches, before the weights are counted and moved; returns what
        identifies them afterwards. groups: returns the weight groups by which it is streamed to a card; without, it moves
        whole. work: how much there is to compute, in any unit; for the transformer the tokens of a step.
        """
        if spec.component in self.loaded and self.loaded[spec.component].spec != spec:
            self.drop(spec.component)
        self._drop_all_but(spec.component)
        loaded = self.loaded.pop(spec.component, None)
        if loaded is None:
            value, modules = load()
            loaded = Loaded(spec, value, modules)
        # Inserting at the end keeps the dictionary in the order of use.
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
        """Measure the bytes of the card that are taken inside of the block beyond those before it, for this kind of work."""
        card.reset_peak()
        before = card.allocated()
        try:
            yield
        finally:
            self.budget.measure(kind, card.peak() - before)

    def _stream(self, card: Device, loaded: Loaded, groups: WeightGroups, kind: tuple[NetworkSpec, int]) -> None:
        """Put as much of a network onto the card as fits beside its computing; the rest is streamed through.

        kind: the network's spec, and the tokens of a step, 0 if it has none.
        """
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
        """Drop the networks that the choice does not keep beside the one to be lent."""
        if self._choice is not None:
            for component in self.loaded.keys() - self._choice.beside[lent] - {lent}:
                self.drop(component)

    def _make_card_room(self, card: Device, wanted: Loaded, work: int | None) -> None:
        """Make other networks leave the card until the wanted one fits.

        work: bytes that computing with it takes; None if it is streamed or was never measured: then all others leave.
        """
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
        """Return the bytes of the card that computing may take; None without a card."""
        return None if self.card is None else self.card.free() - self.budget.reserve

    def _make_room(self) -> bool:
        """Make all networks but the lent one leave the card; return False if that gave nothing back."""
        if self.card is None:
            return False
        before = self.card.allocated()
        self._make_card_room(self.card, list(self.loaded.values())[-1], None)
        self.card.tidy()
        return self.card.allocated() < before
