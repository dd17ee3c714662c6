"""Skip the blocks of a step whose input has hardly changed. One object serves one section and guidance branch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

from torch import Tensor

# Fit of the output's relative change to the modulated input's for HunyuanVideo, by the authors of TeaCache
# (Liu et al. 2024, arXiv 2411.19108).
COEFFICIENTS = (733.226126, -401.131952, 67.5869174, -3.149878, 0.0961237896)


class StepCache(Protocol):
    """Decide for `PackedTransformer.step` whether its blocks run, and keep what they made.

    residual: what the blocks added at the last computed step. computed: the numbers of all such steps. after_first_block:
    whether the cache decides when the first block has run, or before.
    """

    after_first_block: ClassVar[bool]
    residual: Tensor | None
    computed: list[int]

    def must_compute(self, seen: Tensor) -> bool:
        """Return whether the blocks must run; called once per step.

        seen: what the first block added to its input if `after_first_block`, else its modulated input, (1, tokens, width).
        """
        ...

    def state(self) -> dict[str, Any]:
        """Return what `restore` needs to undo a step that did not end."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Return to what the cache was when `state` was asked for."""
        ...


class _ChangeCache:
    """Compute the first and last steps always, and those between where `_changed` says so.

    For those between the host has to read one number a step, and waits for the card until it is there.

    steps: number of steps of the section. computed: numbers of the steps that were computed, for the report.
    """

    def __init__(self, threshold: float, steps: int):
        self.threshold = threshold
        self.steps = steps
        self.computed: list[int] = []
        self.residual: Tensor | None = None
        self._step = 0
        self._previous: Tensor | None = None

    def must_compute(self, seen: Tensor) -> bool:
        before = self._previous
        compute = before is None or self._step in (0, self.steps - 1) or self._changed(seen, before)
        if compute:
            self.computed.append(self._step)
        self._remember(seen, compute)
        self._step += 1
        return compute

    def state(self) -> dict[str, Any]:
        return {**vars(self), "computed": [*self.computed]}

    def restore(self, state: Mapping[str, Any]) -> None:
        vars(self).update(state)

    def _changed(self, seen: Tensor, before: Tensor) -> bool:
        raise NotImplementedError

    def _remember(self, seen: Tensor, computed: bool) -> None:
        raise NotImplementedError


class TeaCache(_ChangeCache):
    """Accumulate the estimated change of the output, and compute a step when it reaches `threshold`."""

    after_first_block = False

    def __init__(self, threshold: float, steps: int):
        super().__init__(threshold, steps)
        self._change = 0.0

    def _changed(self, seen: Tensor, before: Tensor) -> bool:
        self._change += polynomial(relative_change(seen, before).item())
        return self._change >= self.threshold

    def _remember(self, seen: Tensor, computed: bool) -> None:
        self._previous = seen
        if computed:
            self._change = 0.0


class FirstBlockCache(_ChangeCache):
    """Run the first block at every step, and the others when what it adds has changed by `threshold` since they last ran.

    It is the first-block cache of ParaAttention (github.com/chengzeyi/ParaAttention).
    """

    after_first_block = True

    def _changed(self, seen: Tensor, before: Tensor) -> bool:
        return relative_change(seen, before).item() >= self.threshold

    def _remember(self, seen: Tensor, computed: bool) -> None:
        if computed:
            self._previous = seen


def relative_change(now: Tensor, before: Tensor) -> Tensor:
    """Return the mean absolute difference divided by the mean absolute value before; one number."""
    return (now - before).abs().mean() / before.abs().mean()


def polynomial(x: float) -> float:
    """Evaluate the fit (COEFFICIENTS) at x, by Horner's rule."""
    value = 0.0
    for coefficient in COEFFICIENTS:
        value = value * x + coefficient
    return value
