"""Step caches: skip the blocks of a step whose input has hardly changed. One object per section and guidance branch."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

# Fit of the output's relative change to the modulated input's for HunyuanVideo, by the authors of TeaCache
# (Liu et al. 2024, arXiv 2411.19108).
COEFFICIENTS = (733.226126, -401.131952, 67.5869174, -3.149878, 0.0961237896)


class StepCache(Protocol):
    """Given to `PackedTransformer.step`. residual: what the blocks added at the last computed step. computed: the numbers of
    all such steps."""

    residual: Tensor | None
    computed: list[int]

    def must_compute(self, modulated: Tensor) -> bool:
        """Called once per step with the first block's modulated input, (1, tokens, width)."""


class TeaCache:
    """Accumulates the estimated change of the output and computes when it reaches `threshold`; first and last steps always.

    Between those the host has to read one number a step, and waits for the card until it is there.

    steps: steps of the section. computed: numbers of the steps that were computed, for the report.
    """

    def __init__(self, threshold: float, steps: int):
        self.threshold = threshold
        self.steps = steps
        self.computed: list[int] = []
        self.residual: Tensor | None = None
        self._step = 0
        self._change = 0.0
        self._previous: Tensor | None = None

    def must_compute(self, modulated: Tensor) -> bool:
        if self._step in (0, self.steps - 1):
            compute, self._change = True, 0.0
        else:
            difference = (modulated - self._previous).abs().mean() / self._previous.abs().mean()
            self._change += polynomial(difference.item())
            compute = self._change >= self.threshold
            if compute:
                self._change = 0.0
        self._previous = modulated
        if compute:
            self.computed.append(self._step)
        self._step += 1
        return compute


def polynomial(x: float) -> float:
    """The fit at x, by Horner's rule."""
    value = 0.0
    for coefficient in COEFFICIENTS:
        value = value * x + coefficient
    return value
