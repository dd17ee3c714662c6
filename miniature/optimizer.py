"""Hold a network's parameters as one vector, and optimize it in steps that can be replayed as a CUDA graph.

Matrices take Muon's steps (orthogonalised momentum; Jordan et al. 2024, with the scale of Liu et al. 2025, "Muon is
scalable"), which move weak directions such as a colour axis as fast as strong ones; everything else takes Adam's.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import torch
from torch import Tensor, nn

# Each parameter begins at a multiple of this many numbers, so that every view is aligned for the GPU's matrix units.
ALIGN = 64
# Coefficients of the quintic iteration of Jordan et al. 2024.
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


class FlatParameters:
    """Hold all trained parameters of a network in one float32 vector, `master`.

    The network's parameters become views of `compute`, its copy in `dtype`, and their gradients views of `grad`.
    """

    def __init__(self, net: nn.Module, dtype: torch.dtype):
        self.named = [(name, p) for name, p in net.named_parameters() if p.requires_grad]
        self.begins, end = [], 0
        for _, p in self.named:
            self.begins.append(end)
            end += -(-p.numel() // ALIGN) * ALIGN
        device = self.named[0][1].device
        self.master = torch.zeros(end, device=device)
        for (_, p), begin in zip(self.named, self.begins, strict=True):
            self.master[begin : begin + p.numel()] = p.detach().flatten().float()
        self.compute = self.master.to(dtype)
        self.grad = torch.zeros_like(self.compute)
        for (_, p), begin in zip(self.named, self.begins, strict=True):
            p.data = self.compute[begin : begin + p.numel()].view(p.shape)
            p.grad = self.grad[begin : begin + p.numel()].view(p.shape)

    def state(self, vector: Tensor) -> dict[str, Tensor]:
        """Split a vector of this layout into copies of its tensors, by parameter name."""
        pairs = zip(self.named, self.begins, strict=True)
        return {name: vector[begin : begin + p.numel()].view(p.shape).clone() for (name, p), begin in pairs}


def orthogonalised(x: Tensor, steps: int = 5) -> Tensor:
    """Return nearly the orthogonal polar factors of matrices (n, rows, columns), by `steps` Newton-Schulz iterations."""
    wide = x.shape[1] > x.shape[2]
    x = x.transpose(1, 2) if wide else x
    dtype = torch.bfloat16 if x.is_cuda else torch.float32
    x = (x / (x.norm(dim=(1, 2), keepdim=True) + 1e-12)).to(dtype)
    a, b, c = NEWTON_SCHULZ
    for _ in range(steps):
        gram = x @ x.transpose(1, 2)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.transpose(1, 2) if wide else x).float()


class Optimizer:
    """Optimize the parameters of `flat`: `step` reads flat.grad and changes flat.master and flat.compute.

    by_muon: whether a matrix of this name takes Muon's steps. decay: weight decay of matrices. ema: decay of the exponential
    mean of the weights, which is kept in the attribute `ema`. The attribute `rate` is the learning rate, a tensor so that
    replayed CUDA graphs see it change; `skipped` counts the steps whose gradient was not finite.
    """

    def __init__(self, flat: FlatParameters, by_muon: Callable[[str], bool], decay: float = 0.01, ema: float = 0.998):
        device, self.flat = flat.master.device, flat
        self.rate = torch.zeros((), device=device)
        self.count, self.skipped = torch.zeros((), device=device), torch.zeros((), device=device)
        self.mean, self.square = torch.zeros_like(flat.master), torch.zeros_like(flat.master)
        self.ema, self.ema_decay = flat.master.clone(), ema
        self.beta, self.decay = torch.full_like(flat.master, 0.9), torch.zeros_like(flat.master)
        self.groups: dict[tuple[int, int], list[int]] = defaultdict(list)
        for (name, p), begin in zip(flat.named, flat.begins, strict=True):
            rows, columns = (p.shape[0], p.numel() // p.shape[0]) if p.ndim > 1 else (1, p.numel())
            if p.ndim > 1:
                self.decay[begin : begin + p.numel()] = decay
            if min(rows, columns) >= 8 and by_muon(name):
                self.beta[begin : begin + p.numel()] = 0.95
                self.groups[rows, columns].append(begin)

    @torch.no_grad()
    def step(self, clip: float = 1.0) -> None:
        """Change all weights by one step. A gradient that is not finite changes no weight and is counted in `skipped`.

        clip: largest norm of the gradient; a longer one is scaled down to it.
        """
        flat = self.flat
        grad = flat.grad.float()
        norm = grad.norm()
        finite = torch.isfinite(norm)
        grad = torch.nan_to_num(grad, 0.0, 0.0, 0.0) * torch.where(finite, (clip / (norm + 1e-8)).clamp_max(1.0), 0.0)
        self.count += finite
        self.skipped += ~finite
        self.mean.lerp_(grad, 1 - self.beta)
        self.square.lerp_(grad.square(), 0.01)
        mean = self.mean / (1 - self.beta ** self.count.clamp_min(1))
        square = self.square / (1 - 0.99 ** self.count.clamp_min(1))
        update = mean / (square.sqrt() + 1e-8)
        for (rows, columns), begins in self.groups.items():
            ends = [begin + rows * columns for begin in begins]
            # Nesterov momentum: the gradient is mixed into the mean once more.
            nesterov = [torch.lerp(grad[a:b], self.mean[a:b], 0.95) for a, b in zip(begins, ends, strict=True)]
            new = orthogonalised(torch.stack(nesterov).view(-1, rows, columns)) * (0.2 * max(rows, columns) ** 0.5)
            for part, a, b in zip(new.flatten(1), begins, ends, strict=True):
                update[a:b] = part
        rate = self.rate * finite
        flat.master.mul_(1 - rate * self.decay).sub_(rate * update)
        flat.compute.copy_(flat.master)
        # A short mean at first: a long one would still hold the initial weights.
        decay = torch.minimum(torch.full_like(self.count, self.ema_decay), (1 + self.count) / (10 + self.count))
        self.ema.lerp_(flat.master, 1 - decay)
