"""Interrupt work that takes long: loading weights, encoding, decoding.

Such work calls a `Tick` again and again; the tick raises `Interrupted` when nobody wants the result any more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import nn

Tick = Callable[[], None]


class Interrupted(Exception):
    """Report that nobody wants the result any more; a `Tick` raises it to stop the work."""


def never() -> None:
    """Do nothing: the `Tick` of work that is never interrupted."""


@contextmanager
def between_layers(tick: Tick, *networks: nn.Module) -> Iterator[None]:
    """Call tick before each layer of these networks computes, inside of the block."""
    handles = [module.register_forward_pre_hook(lambda *_: tick()) for network in networks for module in network.modules()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
