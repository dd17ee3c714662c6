"""Describe what a network says of its weights, and what it asks of whoever keeps them.

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
    """Hold a network's modules by how they are used.

    always: at any time. job: once for a prompt, in this order. step: again and again, in this order, with the first after the
    last. contiguous: tensors of one step group that shall lie without a gap.
    """

    always: Sequence[nn.Module] = ()
    job: Mapping[str, Sequence[nn.Module]] = field(default_factory=dict)
    step: Mapping[str, Sequence[nn.Module]] = field(default_factory=dict)
    contiguous: Sequence[Sequence[Tensor]] = ()


class Weights(Protocol):
    """Bring a network's weights to where they are computed with."""

    def lend(self, name: str) -> AbstractContextManager[None]:
        """Have the group's weights where they are computed with, inside of the block."""
        ...

    def job(self) -> AbstractContextManager[None]:
        """Make room on the card for the use of `WeightGroups.job` inside of the block, and give it back afterwards."""
        ...

    def make_room(self) -> bool:
        """Take less of the card, after an allocation failed; return False if nothing can be given up."""
        ...


class InPlace:
    """Leave weights where they lie, because they are computed with there."""

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
    """Lend the groups of these names whenever their modules are called, for a network that does not do so itself."""
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
