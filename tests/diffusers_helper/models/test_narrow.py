"""Test products of 8-bit numbers: their error, and that a card without them is never asked for one."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from diffusers_helper.models import narrow
from diffusers_helper.models.blocks import gelu, gelu_bound
from diffusers_helper.models.hadamard import HadamardBranch
from diffusers_helper.models.linear import KroneckerBranch, Linear, LowRankBranch, quantise
from diffusers_helper.models.narrow import LowRank, choose_product, emulated, narrowed, probe
from tests.diffusers_helper.inputs import product_on_a_processor


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_every_token_has_a_scale_of_its_own():
    """Each token has its own scale: if one is a thousand times as large as the others, they stay as exact as before."""
    x = random(5, 64)
    x[2] *= 1000
    q, scale = narrowed(x)
    assert q.dtype == torch.float8_e4m3fn and scale.shape == (5, 1) and q.float().abs().amax(1).eq(448).all()
    error = (q.float() * scale - x).norm(dim=1) / x.norm(dim=1)
    assert error.max() < 0.04


def test_a_token_of_zeros_stays_zeros():
    q, scale = narrowed(torch.zeros(2, 16))
    assert q.float().eq(0).all() and scale.isfinite().all()


@pytest.fixture
def layer() -> Linear:
    layer = Linear(128, 64).requires_grad_(False)
    weight, layer.weight_scale = quantise(layer.weight, "float8", torch.float32)
    layer.weight = torch.nn.Parameter(weight, requires_grad=False)
    return layer


def test_the_error_is_that_of_8_bits(layer):
    """The error of a product is that of 3 bits of mantissa in weights and inputs: about 3.7 percent of the result, not more."""
    x = random(2, 7, 128)
    wide = layer(x)
    made = layer(x, emulated)
    assert made.shape == wide.shape and made.dtype == wide.dtype
    assert 1e-3 < ((made - wide).norm() / wide.norm()).item() < 0.05


def test_branches_see_what_is_multiplied(layer):
    """The input in 8 bits, which is all that the card keeps of it; their own factors stay wide."""
    x = random(1, 7, 128)
    before = layer(x, emulated)
    layer.branches.append(LowRankBranch(0, random(64, 2), random(2, 128, seed=1), 0.5))
    branch = layer.branches[0]
    q, scale = narrowed(x[0])
    seen = (q.float() * scale)[None]
    assert torch.allclose(layer(x, emulated) - before, 0.5 * F.linear(F.linear(seen, branch.down), branch.up), atol=1e-3)


def test_branches_of_other_kinds_are_added_beside_the_product(layer):
    """LoHa and LoKr have no place in it; forgotten, such a file would do nothing on a card."""
    x = random(1, 7, 128)
    before = layer(x, emulated)
    hadamard = HadamardBranch(0, random(64, 2), random(2, 128, seed=1), random(64, 2, seed=2), random(2, 128, seed=3), 0.5)
    kronecker = KroneckerBranch(0, random(8, 16, seed=4), random(8, 8, seed=5), 0.5, (0, 64))
    for branch in (hadamard, kronecker):
        layer.branches = torch.nn.ModuleList([branch])
        expected = branch.add_to(torch.zeros_like(before), x)
        assert expected.norm() > before.norm() / 10
        assert torch.allclose(layer(x, emulated) - before, expected, atol=1e-3)


def test_other_weights_are_multiplied_as_before():
    layer = Linear(24, 40)
    x = random(3, 24)
    assert torch.equal(layer(x, emulated), F.linear(x, layer.weight, layer.bias))


def test_a_machine_without_a_card_widens():
    assert choose_product(torch.device("cpu")) is None


@pytest.mark.parametrize(
    ("capability", "works", "chosen"), [((8, 6), True, None), ((9, 0), False, None), ((9, 0), True, narrow.scaled)]
)
def test_capability_and_probe_decide(monkeypatch, capability, works, chosen):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(narrow, "probe", lambda device, product: works)
    assert choose_product(torch.device("cuda")) is chosen


def test_the_probe_finds_wrong_and_broken_products():
    def broken(*given: object) -> torch.Tensor:
        raise RuntimeError("no kernel image is available")

    cpu = torch.device("cpu")
    assert probe(cpu, emulated) and not probe(cpu, broken)
    assert not probe(cpu, lambda *given: emulated(*given) * 1.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("around", [-3.0, -1.0, 0.0, 0.4, 5.0])
def test_what_gelu_does_not_exceed(dtype: torch.dtype, around: float):
    """The bound of GELU is near its values where they are large, with a thousandth for processors that compute a tensor's
    ends differently."""
    x = (random(200, 64) + around).to(dtype)
    bound, made = gelu_bound(x), gelu(x).abs().amax(-1, keepdim=True)
    assert bound.shape == made.shape and (bound * 1.001 >= made).all()
    assert (bound <= made * 1.25)[made > 0.8].all()


@pytest.mark.parametrize("ranks", [3, 8, 40])
@pytest.mark.parametrize("size", [1e-3, 0.02, 0.3])
@pytest.mark.parametrize("outlier", [1.0, 1000.0])
def test_a_low_rank_addition_to_a_product_in_8_bits(monkeypatch, ranks: int, size: float, outlier: float):
    """A low-rank addition is right to a hundredth of itself for inputs of any size, and the product stays the same. When
    both shared a scale, outliers of a token or a few small rows spoilt one or the other."""
    monkeypatch.setattr(narrow, "_product", product_on_a_processor)
    x = random(1, 300, 64) * random(1, 300, 1, seed=5).exp()
    x[..., 3] *= outlier
    wide = random(512, 64, seed=1)
    wide[:5] *= 1e-4
    wide[:, 3] /= outlier
    weight, scale = quantise(wide, "float8", torch.float32)
    added, bias = LowRank(size * random(ranks, 64, seed=2), random(512, ranks, seed=3)), random(512, seed=4)
    bias[:5] = 0
    made, without = narrow.scaled(x, weight, scale, bias, None, added), narrow.scaled(x, weight, scale, bias)
    q, scales = narrowed(x[0])
    exact = F.linear(F.linear(q.float() * scales, added.down), added.up)
    assert made.shape == (1, 300, 512) and made.dtype == x.dtype
    # Results are bfloat16 first.
    assert (made[0] - without[0] - exact).norm() < 0.01 * exact.norm() + 0.004 * without.norm()
    assert ((made[0] - without[0] - exact)[:, :5]).norm() < 0.02 * exact[:, :5].norm()


def test_the_probe_adds_as_well():
    """The probe tests the addition too: a card on which only that failed was found in the middle of a film."""

    def product(x, weight, scale, bias, largest=None, added=None):
        if added is not None:
            raise RuntimeError("no kernel image is available")
        return emulated(x, weight, scale, bias)

    assert not probe(torch.device("cpu"), product)
