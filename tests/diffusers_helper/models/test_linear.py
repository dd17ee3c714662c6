"""Test linear layers with side branches and with 8-bit weights."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from diffusers_helper.memory.memory import module_bytes
from diffusers_helper.models.linear import (
    KroneckerBranch,
    Linear,
    LowRankBranch,
    PatchConv,
    branches,
    layers,
    quantise,
    remove_branches,
    set_strengths,
    strengths,
)
from tests.diffusers_helper.inputs import LAYOUTS, inputs, velocity


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def low_rank(layer: nn.Module, slot: int = 0, rank: int = 3, size: float = 0.2) -> LowRankBranch:
    rows, columns = layer.weight.shape[0], layer.weight[0].numel()
    return LowRankBranch(slot, size * random(rows, rank, seed=slot + 1), size * random(rank, columns, seed=slot + 50), 0.5)


def delta_of(branch: LowRankBranch | KroneckerBranch) -> torch.Tensor:
    if isinstance(branch, KroneckerBranch):
        return branch.scale * torch.kron(branch.left, branch.right)[branch.rows[0] : branch.rows[1]]
    return branch.scale * branch.up @ branch.down


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_branches_it_is_torchs_linear_to_the_bit(dtype):
    layer = Linear(24, 40).to(dtype)
    x = random(2, 5, 24).to(dtype)
    assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))
    assert set(layer.state_dict()) == {"weight", "bias"}


def test_a_wide_input_is_computed_wide():
    """A float32 input, such as the head's, is computed in float32 on weights of 16 bits."""
    layer = Linear(24, 40).bfloat16()
    x = random(1, 5, 24)
    assert torch.equal(layer(x), F.linear(x, layer.weight.float(), layer.bias.float()))


@pytest.mark.parametrize("shape", [(7, 24), (1, 7, 24), (2, 3, 24)])
def test_branches_add_what_merging_adds(shape):
    """Side branches of two products and of a Kronecker product add what merging adds, each at its strength; the input is
    unchanged."""
    layer = Linear(24, 40)
    layer.branches.extend(
        [low_rank(layer, 0), low_rank(layer, 1), KroneckerBranch(2, random(8, 4), random(10, 6), 0.3, (40, 80))]
    )
    set_strengths(layer, [0.8, -0.3, 1.7])
    x = random(*shape)
    before = x.clone()
    total = sum(branch.strength * delta_of(branch) for branch in layer.branches)
    assert (layer(x) - F.linear(x, layer.weight + total, layer.bias)).abs().max() <= 1e-5
    assert torch.equal(x, before)


def test_many_tokens_and_few_get_the_same_branches():
    """A branch added to a copy of the weight or to its product, whichever is smaller, gives the same sums, and the weight is
    unchanged."""
    layer = Linear(24, 40)
    layer.branches.extend([low_rank(layer, 0), KroneckerBranch(1, random(8, 4), random(10, 6), 0.3, (40, 80))])
    set_strengths(layer, [0.8, -0.3])
    before = layer.weight.clone()
    many = random(2, 20, 24)
    few = many[:, :3]
    assert layer.merges(many) and not layer.merges(few)
    assert (layer(many)[:, :3] - layer(few)).abs().max() <= 1e-5
    assert torch.equal(layer.weight, before)
    set_strengths(layer, [0.0, 0.0])
    assert not layer.merges(many)


def test_branches_stay_beside_8_bits():
    layer = Linear(24, 40)
    weight, layer.weight_scale = quantise(layer.weight, "int8", torch.float32)
    layer.weight = nn.Parameter(weight, requires_grad=False)
    layer.branches.append(low_rank(layer))
    x = random(2, 20, 24)
    assert not layer.merges(x)
    wanted = F.linear(x, layer.wide_weight(torch.float32) + delta_of(layer.branches[0]), layer.bias)
    assert (layer(x) - wanted).abs().max() <= 1e-5


def test_branches_of_a_patch_convolution():
    layer = PatchConv(4, 12, (1, 2, 2))
    layer.branches.extend([low_rank(layer), KroneckerBranch(1, random(3, 4), random(4, 4), 0.3, (0, 12))])
    set_strengths(layer, [0.8, -1.1])
    x = random(1, 4, 3, 6, 8)
    total = sum(branch.strength * delta_of(branch) for branch in layer.branches).view_as(layer.weight)
    merged = F.conv3d(x, layer.weight + total, layer.bias, stride=(1, 2, 2))
    assert (layer(x) - merged).abs().max() <= 1e-5


@pytest.mark.parametrize("make", [lambda: Linear(24, 40), lambda: PatchConv(4, 12, (1, 2, 2))], ids=["linear", "conv"])
def test_strength_zero_is_none_to_the_bit(make):
    """A branch with strength 0 changes no bit of the output, even if its factors multiply to NaN or infinity."""
    layer = make()
    x = random(1, 5, 24) if isinstance(layer, Linear) else random(1, 4, 3, 6, 8)
    plain = layer(x)
    branch = low_rank(layer)
    branch.up.fill_(float("inf"))
    layer.branches.append(branch)
    set_strengths(layer, [0.0])
    assert torch.equal(layer(x), plain)


def test_branches_are_no_part_of_the_checkpoint_but_move_and_count_with_their_layer():
    layer = Linear(24, 40)
    names, bytes_before = set(layer.state_dict()), module_bytes(layer)
    layer.branches.append(low_rank(layer))
    assert set(layer.state_dict()) == names
    assert module_bytes(layer) == bytes_before + 4 * 3 * (24 + 40)
    assert layer.to("meta").branches[0].up.is_meta
    remove_branches(nn.ModuleList([layer]))
    assert module_bytes(layer) == bytes_before and list(branches(layer)) == []


def test_slots_have_strengths_of_their_own(net):
    names = layers(net)
    for slot, name in ((0, "proj_out"), (1, "proj_out"), (1, "x_embedder.proj")):
        names[name].branches.append(low_rank(names[name], slot))
    assert strengths(net) == ((0, 1.0), (1, 1.0))
    set_strengths(net, [0.5, -2.0])
    assert strengths(net) == ((0, 0.5), (1, -2.0))
    assert [branch.strength for branch in names["proj_out"].branches] == [0.5, -2.0]


@pytest.mark.slow
def test_every_layer_of_the_network_can_have_a_branch_and_each_is_heard(net):
    """Modulation, refiner and embedders are computed before the loop; a LoRA there must not be lost on the way."""
    given = inputs(LAYOUTS["forward"], 10, 6)
    plain = velocity(net, given)
    found = layers(net)
    weights = {name for name, tensor in net.state_dict().items() if name.endswith(".weight") and tensor.ndim > 1}
    assert {f"{name}.weight" for name in found} == weights
    for name, layer in found.items():
        layer.branches.append(low_rank(layer, size=0.5))
        assert not torch.equal(velocity(net, given), plain), name
        layer.branches = nn.ModuleList()
    assert torch.equal(velocity(net, given), plain)


def test_a_network_with_branches_equals_one_with_merged_weights(net):
    """All layers at once, through the whole forward pass."""
    given = inputs(LAYOUTS["forward"], 10, 6)
    for layer in layers(net).values():
        layer.branches.append(low_rank(layer, size=0.15))
    set_strengths(net, [0.8])
    beside = velocity(net, given)
    with torch.no_grad():
        for layer in layers(net).values():
            layer.weight += 0.8 * delta_of(layer.branches[0]).view_as(layer.weight)
    remove_branches(net)
    merged = velocity(net, given)
    assert (beside - merged).abs().max() <= 1e-5 * max(1.0, merged.abs().max().item())


def test_the_wide_head_has_its_branches(net):
    """Branches act on the head too, which computes in float32 with 16-bit weights, factors included."""
    given = inputs(LAYOUTS["forward"], 10, 6)
    net.to(torch.bfloat16)
    plain = velocity(net, given)
    net.proj_out.branches.append(low_rank(net.proj_out, size=0.5))
    changed = velocity(net, given)
    assert changed.dtype == torch.float32 and not torch.equal(changed, plain)


# Root mean square of the error against that of normally distributed weights.
ERRORS = {"int8": 0.0095, "float8": 0.028}


@pytest.mark.parametrize("storage", ERRORS)
@pytest.mark.parametrize("std", [0.05, 0.002, 1e-6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_eight_bits_with_a_scale_lose_equally_little_of_large_and_small_weights(storage, std, dtype):
    """Weights in 8 bits with a scale lose as little when small as when large; without it float8 loses a quarter of weights
    of 0.002."""
    weight = std * random(64, 512)
    layer = Linear(512, 64).to(dtype)
    layer.weight = nn.Parameter(torch.empty(0), requires_grad=False)
    kept, scale = quantise(weight, storage, dtype)
    layer.weight, layer.weight_scale = nn.Parameter(kept, requires_grad=False), scale
    assert kept.element_size() == 1 and scale.dtype == dtype and scale.shape == (64, 1)
    wide = layer.wide_weight(dtype)
    assert wide.dtype == dtype
    error = ((wide.float() - weight).norm() / weight.norm()).item()
    assert ERRORS[storage] / 3 < error < ERRORS[storage]
    x = random(1, 5, 512).to(dtype)
    assert torch.equal(layer(x), F.linear(x, wide, layer.bias))


@pytest.mark.parametrize("storage", ERRORS)
def test_channels_do_not_disturb_each_other_and_zeros_stay_zeros(storage):
    """A channel of large weights does not reduce the precision of the others, and a channel of zeros stays zero."""
    weight = random(4, 256)
    weight[1] *= 1e4
    weight[2] = 0
    kept, scale = quantise(weight, storage, torch.float32)
    wide = kept.float() * scale
    errors = (wide - weight).norm(dim=1) / weight.norm(dim=1).clamp_min(1e-9)
    assert errors.max() < ERRORS[storage] * 1.3 and (wide[2] == 0).all() and wide.isfinite().all()


def test_the_scale_is_saved_with_the_weight():
    """A state dict of 8-bit weights without their scales would be worth nothing."""
    layer = Linear(8, 8)
    kept, layer.weight_scale = quantise(layer.weight.detach(), "int8", torch.float32)
    layer.weight = nn.Parameter(kept, requires_grad=False)
    assert set(layer.state_dict()) == {"weight", "bias", "weight_scale"}
    assert module_bytes(layer) == 64 + 4 * 8 + 4 * 8
