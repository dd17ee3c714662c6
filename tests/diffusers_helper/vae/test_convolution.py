"""Test that the fast convolutions give the numbers of PyTorch's own, in less time."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from diffusers_helper.vae.convolution import OneDnnConv3d, use_onednn
from eichi_utils.models.components import load_vae

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch was built without oneDNN")


def both(x: torch.Tensor, **settings) -> tuple[nn.Conv3d, nn.Conv3d]:
    torch.manual_seed(0)
    plain, quick = nn.Conv3d(x.shape[1], 8, **settings), nn.Sequential(nn.Conv3d(x.shape[1], 8, **settings))
    quick[0].load_state_dict(plain.state_dict())
    use_onednn(quick)
    assert type(quick[0]) is OneDnnConv3d
    return plain, quick[0]


@pytest.mark.parametrize(
    "settings",
    [
        {"kernel_size": 3},
        {"kernel_size": 1},
        {"kernel_size": 3, "stride": (1, 2, 2)},
        {"kernel_size": 3, "padding": 1, "bias": False},
        {"kernel_size": 3, "padding": 1, "padding_mode": "replicate"},
    ],
    ids=str,
)
@pytest.mark.parametrize("shape", [(1, 8, 3, 9, 7), (1, 4, 7, 40, 24), (2, 16, 3, 5, 3)])
@torch.no_grad()
def test_the_same_numbers(settings, shape):
    x = torch.randn(shape)
    plain, quick = both(x, **settings)
    torch.testing.assert_close(quick(x), plain(x), atol=1e-5, rtol=1e-5)


def test_what_is_trained_or_wider_or_elsewhere_is_left_to_pytorch():
    """oneDNN's function has no gradient here, and a card's memory is not its."""
    x = torch.randn(1, 4, 3, 5, 5)
    plain, quick = both(x, kernel_size=3)
    quick(x).sum().backward()
    plain(x).sum().backward()
    assert torch.equal(quick.weight.grad, plain.weight.grad)
    with torch.no_grad():
        assert torch.equal(quick.double()(x.double()), plain.double()(x.double()))
        assert quick.to("meta")(x.double().to("meta")).shape == (1, 8, 1, 3, 3)


@pytest.mark.parametrize(("quicker", "slow"), [(False, True), (True, False)])
@torch.no_grad()
def test_a_small_film_does_not_go_the_slow_way(quicker, slow):
    """A small film takes the fast convolution: one of 112 x 144 used to take six times as long to decode."""
    layer = both(torch.empty(1, 8, 3, 30, 30), kernel_size=3)[quicker]
    with torch.profiler.profile() as seen:
        layer(torch.randn(1, 8, 3, 30, 30))
    assert any("slow_conv3d" in event.key for event in seen.key_averages()) is slow


def test_the_program_loads_a_quick_vae(checkpoint):
    net = load_vae(checkpoint / "vae", torch.float32)
    assert all(isinstance(layer, OneDnnConv3d) for layer in net.modules() if isinstance(layer, nn.Conv3d))
