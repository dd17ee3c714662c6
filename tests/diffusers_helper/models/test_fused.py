"""Test layers of one input that run as one product over neighbouring weights: the numbers must be the same."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from diffusers_helper.memory.slabs import lay_out
from diffusers_helper.memory.streaming import Streamer
from diffusers_helper.models import compiled
from diffusers_helper.models.compiled import Passes
from diffusers_helper.models.fused import fuse, project
from diffusers_helper.models.linear import KroneckerBranch, LowRankBranch, quantise, set_strengths
from diffusers_helper.models.narrow import emulated
from diffusers_helper.models.transformer import PackedTransformer, TransformerConfig
from tests.diffusers_helper.inputs import LAYOUTS, in_slabs, inputs, running, velocity
from tests.fake_device import FakeDevice

pytestmark = pytest.mark.slow

GIVEN = inputs(LAYOUTS["forward"], 10, 6)


@pytest.fixture(autouse=True)
def grad_is_off():
    with torch.no_grad():
        yield


def blocks(net: PackedTransformer) -> list[nn.Module]:
    return [*net.transformer_blocks, *net.single_transformer_blocks]


def narrow(net: PackedTransformer, storage: str) -> None:
    for layer in net.block_linears().values():
        weight, layer.weight_scale = quantise(layer.weight, storage, net.dtype)
        layer.weight = nn.Parameter(weight, requires_grad=False)


def add_branches(net: PackedTransformer) -> None:
    """Add side branches of both kinds to two of three layers, so that slices with and without one are neighbours."""
    generator = torch.Generator().manual_seed(1)

    def random(*shape: int) -> torch.Tensor:
        return 0.3 * torch.randn(*shape, generator=generator).to(net.dtype)

    for number, layer in enumerate(net.block_linears().values()):
        out, size = layer.weight.shape
        if number % 3:
            layer.branches.append(LowRankBranch(0, random(out, 2), random(2, size), 1.0))
        if number % 3 == 2:
            layer.branches.append(KroneckerBranch(1, random(out // 4, size // 8), random(8, 8), 0.5, (out, 2 * out)))


CHANGES = {
    "plain": lambda net: None,
    "branches": add_branches,
    "int8": lambda net: narrow(net, "int8"),
    "float8, widened": lambda net: narrow(net, "float8"),
    "float8, branches": lambda net: (narrow(net, "float8"), add_branches(net)),
}


def changed(net: PackedTransformer, change: str) -> PackedTransformer:
    CHANGES[change](net)
    return running(net, product=emulated) if change == "float8, branches" else net


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("change", CHANGES)
def test_fused_is_separate(net, change, dtype):
    """A fused product equals separate products up to the order of additions."""
    net = changed(net.to(dtype), change)
    for strengths in ([1.0, 1.0], [0.5, 0.0]):
        set_strengths(net, strengths)
        assert not any(view for block in blocks(net) for view in block.fused())
        separate = velocity(net, GIVEN)
        names = {name: tensor.clone() for name, tensor in net.state_dict().items()}
        in_slabs(net)
        assert (velocity(net, GIVEN) - separate).abs().max() <= (1e-6 if dtype == torch.float32 else 2e-2)
        assert all(torch.equal(net.state_dict()[name], tensor) for name, tensor in names.items())
        apart(net)


def apart(net: PackedTransformer) -> None:
    """Move every tensor to memory of its own again."""
    for tensor in (*net.parameters(), *net.buffers()):
        tensor.data = tensor.data.clone()


def test_a_wrong_slice_shows(net, monkeypatch):
    """A wrong slice changes the result; otherwise the test above would prove nothing."""
    separate = velocity(net, GIVEN)
    in_slabs(net)
    attention = type(net.transformer_blocks[0].attn)
    monkeypatch.setattr(attention, "latent_layers", lambda self: (self.to_q, self.to_v, self.to_k))
    assert velocity(net, GIVEN).sub(separate).abs().max() > 1e-3


def test_a_block_multiplies_once_with_what_lies_together(net):
    """A dual block makes 8 products for 12 layers, and a single one 2 for 5, because layers that lie together are one
    product."""
    narrow(net, "float8")
    seen = []

    def counted(*given):
        seen.append(tuple(given[1].shape))
        return emulated(*given)

    net = running(net, product=counted)
    velocity(net, GIVEN)
    duals, singles, dim = len(net.transformer_blocks), len(net.single_transformer_blocks), net.config.dim
    assert len(seen) == 12 * duals + 5 * singles
    seen.clear()
    in_slabs(net)
    velocity(net, GIVEN)
    assert len(seen) == 8 * duals + 2 * singles
    assert seen.count((3 * dim, dim)) == 2 * duals and seen.count((7 * dim, dim)) == singles


def test_feed_forwards_tell_a_product_the_largest_of_their_inputs(net):
    """The largest input that a feed-forward passes to a product is nearly what the product finds for itself, and never less."""
    narrow(net, "float8")
    told = []

    def product(x, weight, scale, bias, largest, added):
        if largest is not None:
            found = x.abs().amax(-1, keepdim=True)
            told.append((largest / found).flatten())
            assert (largest >= found * 0.999).all()
        return emulated(x, weight, scale, bias, largest, added)

    chosen = (product, lambda *given: emulated(*given[:4]))
    made = [velocity(running(net, product=one), GIVEN) for one in chosen]
    assert len(told) == 2 * len(net.transformer_blocks) and torch.cat(told).median() < 1.3
    assert (made[0] - made[1]).norm() <= 2e-2 * made[1].norm()


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("change", CHANGES)
def test_weights_are_fused_wherever_they_are_lent(net, change, share):
    """Fused weights in slots and resident ones equal the slabs bit for bit, and the card holds no copy of any byte."""
    net = changed(net, change)
    in_slabs(net)
    expected = velocity(net, GIVEN)
    device = FakeDevice()
    streamer = Streamer(device, net.weight_groups())
    streamer.fit(streamer.least_bytes + int(share * (streamer.step_bytes - streamer.least_bytes)))
    lent = []

    def either(block, *rest):
        lent.extend(rest[-2])
        return block(*rest)

    net = running(net, weights=streamer, passes=Passes(either, either, ""))
    for _ in range(2):
        assert torch.equal(velocity(net, GIVEN), expected)
        assert device.allocated() == streamer.card_bytes
    assert len(lent) == 2 * (2 * len(net.transformer_blocks) + len(net.single_transformer_blocks))
    buffers = [(start, start + size) for start, size in device.buffers.items()]
    for view in lent:
        start = view.weight.data_ptr()
        assert any(first <= start and start + view.weight.numel() * view.weight.element_size() <= end for first, end in buffers)
        assert (view.scale is None) == (change in ("plain", "branches"))


def test_loose_layers_and_layers_of_two_kinds_stay_separate(net):
    """A hidden copy would double the memory; a scale that is not there would be a wrong number."""
    layers = net.transformer_blocks[0].together()[0]
    x = torch.randn(1, 5, net.config.dim)
    separate = [layer(x) for layer in layers]
    assert fuse(layers) is None
    in_slabs(net)
    whole = fuse(layers)
    assert whole.weight.data_ptr() == layers[0].weight.data_ptr()
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(project(x, layers, whole), separate, strict=True))
    _, layers[1].weight_scale = quantise(layers[1].weight, "int8", torch.float32)
    assert fuse(layers) is None


@pytest.mark.parametrize("storage", [None, "int8"])
def test_the_full_model_has_its_neighbours_by_name(storage):
    """The neighbours by name that a loader lays slabs out by are in one slab each, which takes no byte more than its
    tensors."""
    with torch.device("meta"):
        net = PackedTransformer(TransformerConfig())
    rows = net.contiguous()
    assert len(rows) == 3 * (2 * 20 + 40)
    assert rows[0] == tuple(f"transformer_blocks.0.attn.to_{x}.weight" for x in "qkv")
    last = "single_transformer_blocks.39."
    assert rows[-1] == (*(f"{last}attn.to_{x}.weight_scale" for x in "qkv"), f"{last}proj_mlp.weight_scale")
    slab = {}
    for name, layer in net.block_linears().items():
        if name.startswith("transformer_blocks.0."):
            dtype = torch.int8 if storage else torch.bfloat16
            slab |= {f"{name}.weight": (dtype, tuple(layer.weight.shape)), f"{name}.bias": (torch.bfloat16, (len(layer.bias),))}
            if storage:
                slab[f"{name}.weight_scale"] = torch.bfloat16, (len(layer.bias), 1)
    places, _ = lay_out([slab], rows)
    assert set(places) == set(slab)
    for row in rows:
        if row[0] in slab:
            for before, after in itertools.pairwise(row):
                assert places[after].offset == places[before].offset + places[before].bytes


class Counted:
    """Stand in for a compiler and keep the graphs that it is given: one for all blocks of a kind."""

    def __init__(self):
        self.graphs, self.numbers = [], []

    def __call__(self, graph, examples):
        self.graphs.append(graph)
        self.numbers += [example for example in examples if isinstance(example, float | torch.SymFloat)]
        return graph.forward


def test_one_graph_serves_all_blocks_slots_and_strengths(net):
    """A graph for each block would take minutes at the first step, and after eight torch gives up without a word.

    Nor is any number with a point in it given to a graph: a card's compiler made it anew for another strength, for 14 seconds.
    """
    torch.compiler.reset()
    counted = Counted()
    config = {**vars(net.config), "num_layers": 5, "num_single_layers": 7}
    torch.manual_seed(0)
    net = PackedTransformer(TransformerConfig(**config)).eval().requires_grad_(False)
    add_branches_alike(net)
    device = FakeDevice()
    streamer = Streamer(device, net.weight_groups())
    streamer.fit((streamer.least_bytes + streamer.step_bytes) // 2)
    net = running(net, weights=streamer)
    passes = Passes(*(torch.compile(kind, dynamic=True, backend=counted) for kind in (compiled.dual, compiled.single)), "")
    for strength in (1.0, 0.5, -0.7):
        set_strengths(net, [strength])
        for given in (GIVEN, inputs(LAYOUTS["one picture"], 8, 6)):
            expected = velocity(net, given)
            for _ in range(2):
                assert (velocity(running(net, passes=passes), given) - expected).abs().max() <= 1e-5
    assert 0 < len(streamer.resident) < 12
    assert len(counted.graphs) == 2 and not counted.numbers


def add_branches_alike(net: PackedTransformer) -> None:
    generator = torch.Generator().manual_seed(1)
    for layer in net.block_linears().values():
        out, size = layer.weight.shape
        factors = (0.3 * torch.randn(*shape, generator=generator) for shape in ((out, 2), (2, size)))
        layer.branches.append(LowRankBranch(0, *factors, 1.0))
