"""Test that what a transformer runs with is a value that is handed in."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch

from diffusers_helper.models.attention import sdpa
from diffusers_helper.models.execution import Execution
from tests.diffusers_helper.inputs import LAYOUTS, inputs, running, velocity
from tests.test_imports import PRODUCT, ROOT


@torch.no_grad()
def test_a_network_as_it_runs_leaves_the_network_as_it_was(net):
    """The pool set five attributes on a network at every loan, and whoever lent it next ran with what was left there."""
    seen = []

    def attend(q, k, v):
        seen.append(q.shape)
        return sdpa(q, k, v)

    given = inputs(LAYOUTS["forward"], 10, 6)
    plain = velocity(net, given)
    other = running(net, attend=attend)
    assert torch.equal(velocity(other, given), plain) and seen
    seen.clear()
    assert torch.equal(velocity(net, given), plain) and not seen
    assert net.execution == Execution() and other.execution.attend is attend
    # The same weights, not a second network.
    assert all(one is two for one, two in zip(net.parameters(), other.parameters(), strict=True))
    with pytest.raises(AttributeError):
        net.execution = other.execution


def set_from_outside(file: Path) -> list[int]:
    """Return the lines of a file that set an attribute of a network from outside."""
    found = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        parts = (part for whole in targets for part in (whole.elts if isinstance(whole, ast.Tuple) else [whole]))
        attributes = (part for part in parts if isinstance(part, ast.Attribute))
        found += [node.lineno for part in attributes if ast.unparse(part.value) in ("net", "transformer", "loaded.value")]
    return found


def test_nobody_sets_anything_on_a_network(tmp_path):
    """Networks are not modified from outside: only the transformer makes one that runs with other settings (`running_with`)."""
    spoilt = tmp_path / "spoilt.py"
    spoilt.write_text("net.attend, net.passes = kernel, passes\nloaded.value.weights = streamer\nself.net = net\n")
    assert set_from_outside(spoilt) == [1, 1, 2]
    found = {file: lines for file in PRODUCT if (lines := set_from_outside(ROOT / file))}
    assert (
        list(found) == ["diffusers_helper/models/transformer.py"] and len(found["diffusers_helper/models/transformer.py"]) == 1
    )
