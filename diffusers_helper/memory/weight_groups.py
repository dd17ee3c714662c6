"""What a network says of its weights, and asks of whoever keeps them.

It names its groups and says `with weights.lend(name):` around what needs one; where nothing has to move, that does nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor, nn


@dataclass(frozen=True)
class WeightGroups:
    """How a network's modules are used. always: at any time. job: once for a prompt, in this order. step: again and again, in
    this order; what follows the last is the first. contiguous: tensors of one step group that shall lie without a gap."""

    always: Sequence[nn.Module] = ()
    job: Mapping[str, Sequence[nn.Module]] = field(default_factory=dict)
    step: Mapping[str, Sequence[nn.Module]] = field(default_factory=dict)
    contiguous: Sequence[Sequence[Tensor]] = ()


class Weights(Protocol):
    """What a network asks of whoever keeps its weights."""

    def lend(self, name: str) -> AbstractContextManager[None]:
        """The group's weights are where they are computed with, inside of the block."""
        ...

    def job(self) -> AbstractContextManager[None]:
        """Around the use of `WeightGroups.job`: what that needs on the card is given back afterwards."""
        ...

    def make_room(self) -> bool:
        """After an allocation failed: take less of the card. False if nothing can be given up."""
        ...


class InPlace:
    """Weights that lie where they are computed with."""

    def lend(self, name: str) -> AbstractContextManager[None]:
        """Do nothing: the weights are there."""
        return nullcontext()

    def job(self) -> AbstractContextManager[None]:
        """Do nothing: no room is taken."""
        return nullcontext()

    def make_room(self) -> bool:
        """Return False: nothing can be given up."""
        return False


@contextmanager
def lent_while_called(modules: Mapping[str, nn.Module], weights: Weights) -> Iterator[None]:
    """Lend the groups of these names whenever their modules are called, for a network of somebody else's."""
    lent: dict[nn.Module, AbstractContextManager[None]] = {}
    names = {module: name for name, module in modules.items()}

    def before(module: nn.Module, _: object) -> None:
        context = weights.lend(names[module])
        context.__enter__()
        lent[module] = context

    def after(module: nn.Module, *_: object) -> None:
        lent.pop(module).__exit__(None, None, None)

    handles = []
    for module in names:
        handles.append(module.register_forward_pre_hook(before))
        handles.append(module.register_forward_hook(after, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
