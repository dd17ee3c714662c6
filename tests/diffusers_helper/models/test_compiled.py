"""Test fused kernels: they are chosen where they work, and give the same numbers."""

from __future__ import annotations

import shutil

import pytest
import torch

from diffusers_helper.models import attention, compiled
from diffusers_helper.models.compiled import Passes, choose_passes, probe
from diffusers_helper.models.linear import LowRankBranch, set_strengths
from tests.diffusers_helper.inputs import LAYOUTS, in_slabs, inputs, running, velocity

pytestmark = pytest.mark.slow


def test_nothing_is_compiled_without_a_card():
    passes = choose_passes(torch.device("cpu"))
    assert (passes.dual, passes.single) == (compiled.dual, compiled.single) and "CUDA" in passes.reason


def test_a_compiler_that_fails_is_a_reason_and_no_crash(monkeypatch):
    def broken(function):
        def run(x):
            raise RuntimeError("Failed to find C compiler.\nMore lines")

        return run

    monkeypatch.setattr(torch, "compile", broken)
    assert probe(torch.device("cpu")) == "RuntimeError: Failed to find C compiler."


def test_a_compiler_that_computes_something_else_is_not_used(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function: lambda x: function(x) + 1)
    assert probe(torch.device("cpu")).startswith("wrong result")


@pytest.mark.parametrize("reason", ["no triton", ""])
def test_what_the_probe_says_decides(monkeypatch, reason):
    monkeypatch.setattr(compiled, "obstacle", lambda device: reason)
    passes = choose_passes(torch.device("cuda"))
    assert passes.reason == reason and (passes.dual is compiled.dual) == bool(reason)


def test_off_is_off_without_a_trial(monkeypatch):
    """With compiling switched off no trial is made, so that users whose compiler hangs can go on."""
    monkeypatch.setattr(compiled, "obstacle", lambda device: pytest.fail("tried"))
    assert choose_passes(torch.device("cuda"), "off") == compiled.EAGER


def test_kernels_of_packages_are_left_as_they_are(net):
    """The compiler does not look into them, and goes on behind them: one graph for each kind of block.

    It broke off before them, and what was alive there, 450 MB a block of FramePack's, went through memory once more.
    """
    given, graphs = inputs(LAYOUTS["forward"], 10, 6), []

    def count(graph, examples):
        graphs.append(graph)
        return graph.forward

    def kernel(q, k, v):
        assert not torch.compiler.is_compiling()
        return attention.sdpa(q, k, v)

    expected = velocity(net, given)
    passes = Passes(*(torch.compile(kind, dynamic=True, backend=count) for kind in (compiled.dual, compiled.single)), "")
    net = running(net, attend=attention.opaque("test", kernel), passes=passes)
    for _ in range(2):
        assert (velocity(net, given) - expected).abs().max() <= 1e-5
    assert len(graphs) == 2


def test_the_network_runs_its_blocks_through_the_passes(net):
    calls = []

    def dual(block, *rest):
        calls.append(block)
        return block(*rest)

    def single(block, *rest):
        calls.append(block)
        return block(*rest)

    given = inputs(LAYOUTS["forward"], 10, 6)
    expected = velocity(net, given)
    assert torch.equal(velocity(running(net, passes=Passes(dual, single, "")), given), expected)
    assert calls == [*net.transformer_blocks, *net.single_transformer_blocks]


def traced() -> Passes:
    """Return passes like those of `compiled`, but without generating code from the graphs."""
    return Passes(*(torch.compile(kind, dynamic=True, backend="aot_eager") for kind in (compiled.dual, compiled.single)), "")


def test_compiled_blocks_compute_the_same(net):
    """Through inductor's CPU backend where it has a compiler; two sizes and two strengths, because one compilation has to serve
    all. Weights lie in slabs, as beside any card."""
    layouts = [inputs(LAYOUTS["forward"], 10, 6), inputs(LAYOUTS["one picture"], 8, 6)]
    for layer in net.block_linears().values():
        layer.branches.append(LowRankBranch(0, torch.randn(layer.out_features, 2), torch.randn(2, layer.in_features), 0.1))
    in_slabs(net)
    passes = compiled.compiled() if shutil.which("g++") else traced()
    for strength in (1.0, 0.4):
        set_strengths(net, [strength])
        for given in layouts:
            exact = velocity(net, given)
            assert (velocity(running(net, passes=passes), given) - exact).abs().max() <= 1e-4
