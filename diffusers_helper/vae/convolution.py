"""Convolutions of a VAE on a processor."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class OneDnnConv3d(nn.Conv3d):
    """The same through oneDNN whatever the size. PyTorch leaves small inputs (batch x channels x frames x rows up to 20480, see
    `use_mkldnn` in ATen's Convolution.cpp) to a kernel of its own, which takes five times as long."""

    def forward(self, input: Tensor) -> Tensor:
        """Convolve (1, channels, T, h, w) by oneDNN, or as torch does what that would round or pad otherwise."""
        plain = input.dim() == 5 and input.device.type == "cpu" and input.dtype == self.weight.dtype == torch.float32
        trained = torch.is_grad_enabled() or torch.is_autocast_enabled("cpu")
        if not plain or trained or self.padding_mode != "zeros" or isinstance(self.padding, str):
            return super().forward(input)
        return torch.mkldnn_convolution(input, self.weight, self.bias, self.padding, self.stride, self.dilation, self.groups)


def use_onednn(net: nn.Module) -> None:
    """Let its convolutions over time and space be quick ones, where PyTorch was built with oneDNN."""
    if torch.backends.mkldnn.is_available():
        for module in net.modules():
            if type(module) is nn.Conv3d:
                module.__class__ = OneDnnConv3d
