"""How much of a card weights may take: what is free, less the user's reserve, less what computing itself takes."""

from __future__ import annotations

from collections.abc import Hashable

# Bytes of one step, in tensors of all tokens, before anything is measured; at 18,300 tokens in 16 bits 2.5 GiB.
TENSORS = 24
# Of what was measured, for gaps between tensors: with a card as full as the measure said, the second section of a film at
# 960x960 in 16 GiB ran out of memory.
MARGIN = 0.25


class Budget:
    """reserve: bytes of the card that are left to others."""

    def __init__(self, reserve: int):
        self.reserve = reserve
        self._measured: dict[Hashable, int] = {}

    def estimate(self, tokens: int, width: int, itemsize: int) -> int:
        """Bytes that a step over so many tokens takes."""
        return TENSORS * tokens * width * itemsize

    def work(self, kind: Hashable) -> int | None:
        """Bytes that this kind of computing may take, as far as was seen, or None."""
        return int((1 + MARGIN) * self._measured[kind]) if kind in self._measured else None

    def measure(self, kind: Hashable, taken: int) -> None:
        """It took so much now; the most that was seen counts."""
        self._measured[kind] = max(taken, self._measured.get(kind, 0))

    def for_weights(self, available: int, work: int) -> int:
        """Bytes for weights. available: what is free, and what the weights hold already."""
        return max(0, available - self.reserve - work)
