"""Speed up the convolutions of a VAE on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class OneDnnConv3d(nn.Conv3d):
    """Compute a 3D convolution through oneDNN, whatever its size.

    PyTorch leaves small inputs (batch x channels x frames x rows up to 20480, see `use_mkldnn` in ATen's Convolution.cpp) to a
    kernel of its own, which takes five times as long.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Convolve (1, channels, T, h, w) through oneDNN, or as torch does where oneDNN would round or pad differently."""
        plain = input.dim() == 5 and input.device.type == "cpu" and input.dtype == self.weight.dtype == torch.float32
        trained = torch.is_grad_enabled() or torch.is_autocast_enabled("cpu")
        if not plain or trained or self.padding_mode != "zeros" or isinstance(self.padding, str):
            return super().forward(input)
        return torch.mkldnn_convolution(input, self.weight, self.bias, self.padding, self.stride, self.dilation, self.groups)


def use_onednn(net: nn.Module) -> None:
    """Let the 3D convolutions of a network run through oneDNN, where PyTorch was built with it."""
    if torch.backends.mkldnn.is_available():
        for module in net.modules():
            if type(module) is nn.Conv3d:
                module.__class__ = OneDnnConv3d
