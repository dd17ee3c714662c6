"""Test slabs: exact sizes, views at whole pages, and what moves in one copy."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from diffusers_helper.memory.slabs import ALIGNMENT, PAGE, Arena, fused, lay_out, runs
from diffusers_helper.models.transformer import PackedTransformer, TransformerConfig

SLABS = [
    {"a": (torch.int8, (3, 5)), "b": (torch.bfloat16, (3, 1)), "c": (torch.float32, ())},
    {"d": (torch.float8_e4m3fn, (7,)), "e": (torch.bfloat16, (2, 2))},
]


def test_tensors_lie_at_their_places_and_slabs_at_pages():
    arena = Arena(SLABS)
    assert arena.buffer.data_ptr() % PAGE == 0 and arena.bytes == arena.buffer.numel()
    assert [arena.places[name].offset for name in "abc"] == [0, ALIGNMENT, 2 * ALIGNMENT]
    assert arena.places["d"].offset == PAGE and arena.bytes == PAGE + ALIGNMENT + 8
    values = {name: torch.randn(shape).mul(9).to(dtype) for slab in SLABS for name, (dtype, shape) in slab.items()}
    views = {name: arena.put(name, value) for name, value in values.items()}
    for name, value in values.items():
        assert torch.equal(views[name].float(), value.float()) and views[name].dtype == value.dtype
        assert views[name].untyped_storage().data_ptr() == arena.buffer.untyped_storage().data_ptr()
    assert "a" in arena and "z" not in arena


@pytest.mark.parametrize("wrong", [torch.zeros(3, 5), torch.zeros(5, 3, dtype=torch.int8), torch.zeros(15, dtype=torch.int8)])
def test_what_does_not_fit_is_refused(wrong):
    """A tensor of another shape or dtype is refused: copy_ would broadcast or convert it without a word."""
    with pytest.raises(ValueError, match="a is"):
        Arena(SLABS).put("a", wrong)


@pytest.mark.slow
def test_the_full_model_takes_its_own_size():
    """The blocks that run at every step take 18.1 GB in bfloat16; one slab for each adds less than a thousandth."""
    with torch.device("meta"):
        net = PackedTransformer(TransformerConfig())
    slabs = []
    for modules in net.weight_groups().step.values():
        names = {f"{number}/{name}": p for number, module in enumerate(modules) for name, p in module.named_parameters()}
        slabs.append({name: (torch.bfloat16, tuple(p.shape)) for name, p in names.items()})
    exact = sum(2 * torch.Size(shape).numel() for slab in slabs for _, shape in slab.values())
    _, size = lay_out(slabs)
    assert round(exact / 1e9, 1) == 18.1 and exact < size < 1.001 * exact


def test_neighbours_lie_without_a_gap_wherever_they_are_named():
    """Tensors named as neighbours lie in a slab without a gap, wherever the list names them; the slab's others may begin
    anywhere."""
    slab = {"a": (torch.int8, (5, 4)), "x": (torch.float32, (3,)), "b": (torch.int8, (2, 4)), "c": (torch.int8, (1, 4))}
    places, size = lay_out([{"first": (torch.int8, (1,))}, slab], [("a", "b", "c"), ("scale of a", "scale of b")])
    assert [places[name].offset - PAGE for name in "abcx"] == [0, 20, 28, ALIGNMENT] and size == PAGE + ALIGNMENT + 12


def test_neighbours_are_neighbours_in_a_slot():
    """Neighbours stay neighbours in a slot, even if they are shorter than the alignment, which all other tensors of a run
    fill."""
    arena = Arena([{"a": (torch.float32, (3, 4)), "x": (torch.int8, (1,)), "b": (torch.float32, (5, 4))}], [("a", "b")])
    tensors = [arena.put(name, torch.full(shape, value)) for name, shape, value in (("b", (5, 4), 2.0), ("a", (3, 4), 1.0))]
    found, places, size = runs(tensors)
    slot = torch.zeros(size, dtype=torch.uint8).copy_(found[0].source)
    moved = [place.view(slot) for place in places]
    assert len(found) == 1
    for b, a in (tensors, moved):
        whole = fused([a, b])
        assert whole.data_ptr() == a.data_ptr() and whole.shape == (8, 4)
        assert whole[:, 0].tolist() == [1.0] * 3 + [2.0] * 5
        assert fused([b, a]) is None
    assert fused([tensors[1], moved[0]]) is None


def test_what_only_looks_like_neighbours_is_not_fused():
    memory = torch.zeros(64, dtype=torch.uint8)
    first = memory[:16].view(torch.float32).view(2, 2)
    fitting = memory[16:32].view(torch.float32).view(2, 2)
    assert fused([first, fitting]) is not None
    assert fused([first, memory[20:36].view(torch.float32).view(2, 2)]) is None
    assert fused([first, memory[16:32].view(torch.int32).view(2, 2)]) is None
    assert fused([first, memory[16:32].view(torch.float32).view(1, 4)]) is None
    assert fused([first, fitting.t()]) is None
    assert fused([first, first]) is None
    # Without memory every tensor is at 0.
    assert fused([first.to("meta"), fitting.to("meta")]) is None


def test_a_slab_is_one_run():
    arena = Arena(SLABS)
    tensors = [arena.view(name) for name in "cab"]
    found, places, size = runs(tensors)
    assert len(found) == 1 and size == 2 * ALIGNMENT + 4 == found[0].source.numel()
    for tensor, place, value in zip(tensors, places, (1, 2, 3), strict=True):
        tensor.fill_(value)
        assert place.shape == tuple(tensor.shape)
    slot = torch.zeros(size, dtype=torch.uint8)
    slot.copy_(found[0].source)
    assert [place.view(slot).flatten()[0].item() for place in places] == [1, 2, 3]


def test_odd_beginnings_and_gaps_are_runs_of_their_own():
    """Windows into a file begin where the file wants, even at places a slot cannot have."""
    buffer = torch.arange(200, dtype=torch.uint8).repeat(20)
    windows = [buffer[8:108], buffer[108:110].view(torch.int16), buffer[1032:1040], buffer[3000:3010]]
    loose = torch.full((3,), 7, dtype=torch.uint8)
    tensors = [*windows, loose]
    found, places, size = runs(tensors)
    assert len(found) == 5
    slot = torch.zeros(size, dtype=torch.uint8)
    for run in found:
        assert run.offset % ALIGNMENT == 0
        slot[run.offset : run.offset + run.source.numel()] = run.source
    for tensor, place in zip(tensors, places, strict=True):
        assert torch.equal(place.view(slot), tensor)


def test_windows_that_overlap_or_repeat_are_one_run():
    buffer = torch.arange(200, dtype=torch.uint8).repeat(20)
    found, places, size = runs([buffer[:1000], buffer[256:512], buffer[:1000]])
    assert len(found) == 1 and size == 1000
    assert [place.offset for place in places] == [0, 256, 0]


def test_parameters_point_to_a_slab_in_inference_mode_too():
    layer = nn.Linear(4, 4)
    with torch.inference_mode():
        arena = Arena([{"weight": (torch.float32, (4, 4))}])
        layer.weight.data = arena.put("weight", torch.ones(4, 4))
    assert not layer.weight.is_inference()
    assert torch.equal(layer(torch.ones(1, 4)), 4 + layer.bias[None])
