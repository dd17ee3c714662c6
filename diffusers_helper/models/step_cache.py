"""Step caches: skip the blocks of a step whose input has hardly changed. One object per section and guidance branch."""

from __future__ import annotations

from typing import ClassVar, Protocol

from torch import Tensor

# Fit of the output's relative change to the modulated input's for HunyuanVideo, by the authors of TeaCache
# (Liu et al. 2024, arXiv 2411.19108).
COEFFICIENTS = (733.226126, -401.131952, 67.5869174, -3.149878, 0.0961237896)


class StepCache(Protocol):
    """Given to `PackedTransformer.step`. residual: what the blocks added at the last computed step. computed: the numbers of
    all such steps. after_first_block: whether it decides when the first block has run, or before."""

    after_first_block: ClassVar[bool]
    residual: Tensor | None
    computed: list[int]

    def must_compute(self, seen: Tensor) -> bool:
        """Called once per step with what the first block added to its input, or else with its modulated input, (1, tokens,
        width)."""


class TeaCache:
    """Accumulates the estimated change of the output and computes when it reaches `threshold`; first and last steps always.

    Between those the host has to read one number a step, and waits for the card until it is there.

    steps: steps of the section. computed: numbers of the steps that were computed, for the report.
    """

    after_first_block = False

    def __init__(self, threshold: float, steps: int):
        self.threshold = threshold
        self.steps = steps
        self.computed: list[int] = []
        self.residual: Tensor | None = None
        self._step = 0
        self._change = 0.0
        self._previous: Tensor | None = None

    def must_compute(self, seen: Tensor) -> bool:
        if self._step in (0, self.steps - 1):
            compute, self._change = True, 0.0
        else:
            self._change += polynomial(relative_change(seen, self._previous).item())
            compute = self._change >= self.threshold
            if compute:
                self._change = 0.0
        self._previous = seen
        if compute:
            self.computed.append(self._step)
        self._step += 1
        return compute


class FirstBlockCache:
    """Runs the first block at every step, and the others when what it adds has changed by `threshold` since they last ran;
    first and last steps always. The first-block cache of ParaAttention (github.com/chengzeyi/ParaAttention).

    Like TeaCache it has the host read one number a step. steps, computed: as there.
    """

    after_first_block = True

    def __init__(self, threshold: float, steps: int):
        self.threshold = threshold
        self.steps = steps
        self.computed: list[int] = []
        self.residual: Tensor | None = None
        self._step = 0
        self._previous: Tensor | None = None

    def must_compute(self, seen: Tensor) -> bool:
        ends = self._step in (0, self.steps - 1)
        compute = ends or relative_change(seen, self._previous).item() >= self.threshold
        if compute:
            self.computed.append(self._step)
            self._previous = seen
        self._step += 1
        return compute


def relative_change(now: Tensor, before: Tensor) -> Tensor:
    """Mean absolute difference by the mean absolute value before; one number."""
    return (now - before).abs().mean() / before.abs().mean()


def polynomial(x: float) -> float:
    """The fit at x, by Horner's rule."""
    value = 0.0
    for coefficient in COEFFICIENTS:
        value = value * x + coefficient
    return value
