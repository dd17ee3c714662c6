"""Decide how much of a card weights may take.

It is what is free, less the user's reserve, less what computing itself takes.
"""

from __future__ import annotations

from collections.abc import Hashable

# What one step takes before anything is measured, in tensors (tokens, width); at 18,300 tokens in 16 bits it is 2.5 GiB.
TENSORS = 24
# Share added to what was measured, for gaps between tensors: with a card as full as the measure said, the second section of a
# film at 960x960 in 16 GiB ran out of memory.
MARGIN = 0.25


class Budget:
    """Divide a card's memory between weights and computing. reserve: bytes of the card that are left to others."""

    def __init__(self, reserve: int):
        self.reserve = reserve
        self._measured: dict[Hashable, int] = {}

    def estimate(self, tokens: int, width: int, itemsize: int) -> int:
        """Estimate the bytes that a step over so many tokens of this width and item size takes."""
        return TENSORS * tokens * width * itemsize

    def work(self, kind: Hashable) -> int | None:
        """Return the bytes that this kind of computing may take, with a margin, or None where nothing was measured yet."""
        return int((1 + MARGIN) * self._measured[kind]) if kind in self._measured else None

    def measure(self, kind: Hashable, taken: int) -> None:
        """Record that this kind of computing took so many bytes; the most that was seen counts."""
        self._measured[kind] = max(taken, self._measured.get(kind, 0))

    def for_weights(self, available: int, work: int) -> int:
        """Return the bytes that are left for weights.

        available: bytes that are free, and those that the weights hold already. work: bytes that computing takes.
        """
        return max(0, available - self.reserve - work)
