"""Choose the attention kernel to use on this machine, once, by a small real call, with reasons.

Every kernel has one signature: `kernel(q, k, v)` with tensors of shape (batch, tokens, heads, head_dim), no mask, no causality,
the usual 1/sqrt(head_dim) scale, and the output in the same layout.
"""

from __future__ import annotations

import importlib
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

Kernel = Callable[[Tensor, Tensor, Tensor], Tensor]

# Relative error. Kernels that compute in 8 bits differ from the exact one by 1 to 2 percent (int8 measured: 1.5e-2), broken
# ones by far more.
TOLERANCE = 0.05
HEAD_DIM = 128


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Compute attention by PyTorch's scaled dot-product attention, which picks its own kernel and runs everywhere."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def opaque(name: str, kernel: Kernel) -> Kernel:
    """Register a package's kernel as an operator of torch, which a compiler of the blocks leaves as it is.

    A compiler cannot look into many of these kernels. Around an operator its graph stays in one piece; at a call that it may
    not see the graph would break, and everything that is alive there would go through memory.
    """

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        # Contiguous, as the compiler is told below.
        return kernel(q, k, v).contiguous()

    schema = "(Tensor q, Tensor k, Tensor v) -> Tensor"
    operator = torch.library.custom_op(f"framepack_eichi::{name}", call, mutates_args=(), schema=schema)
    operator.register_fake(lambda q, k, v: torch.empty_like(q, memory_format=torch.contiguous_format))
    return operator


def _load_sage() -> Kernel:
    # SageAttention 1.x and 2.x have this function; 2.x chooses the kernel for the card itself.
    sageattn = importlib.import_module("sageattention").sageattn
    return opaque("sage", lambda q, k, v: sageattn(q, k, v, tensor_layout="NHD"))


def _load_flash3() -> Kernel:
    flash_attn_func = importlib.import_module("fa3_fwd_interface").flash_attn_func

    def flash3(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = flash_attn_func(q, k, v)
        return out[0] if isinstance(out, tuple) else out

    return opaque("flash3", flash3)


def _load_flash() -> Kernel:
    return opaque("flash", importlib.import_module("flash_attn").flash_attn_func)


def _load_xformers() -> Kernel:
    return opaque("xformers", importlib.import_module("xformers.ops").memory_efficient_attention)


# In the usual order of preference. The last, sdpa, always works.
LOADERS: Mapping[str, Callable[[], Kernel]] = {
    "sage": _load_sage,
    "flash3": _load_flash3,
    "flash": _load_flash,
    "xformers": _load_xformers,
    "sdpa": lambda: sdpa,
}


# Kernels to try before the others, by a card's compute capability. On Hopper sdpa runs cuDNN's kernel, which is faster there
# than SageAttention 1 and FlashAttention 2 (measured at 18,289 tokens); only FlashAttention 3 is faster still.
PREFERRED: Mapping[tuple[int, int], tuple[str, ...]] = {(9, 0): ("flash3", "sdpa")}


@dataclass(frozen=True)
class AttentionChoice:
    """Hold the attention kernel that was chosen.

    name: the kernel's. rejected: name -> why that kernel is not used, in English, for the doctor and the log.
    """

    name: str
    kernel: Kernel = field(repr=False, compare=False)
    rejected: Mapping[str, str]


def choose_attention(device: torch.device | str, dtype: torch.dtype, forced: str = "auto") -> AttentionChoice:
    """Choose the first kernel that works on `device` in `dtype`, in the order of preference for it, or the forced one.

    Raises ValueError if the forced kernel is unknown or does not work here, with the reason.
    """
    if forced != "auto" and forced not in LOADERS:
        raise ValueError(f"unknown attention kernel {forced!r}; known are auto, {', '.join(LOADERS)}")
    rejected = {}
    for name in order(torch.device(device)) if forced == "auto" else (forced,):
        kernel, reason = _try(name, torch.device(device), dtype)
        if kernel is not None:
            return AttentionChoice(name, kernel, rejected)
        rejected[name] = reason
    raise ValueError(f"attention kernel {forced!r} does not work here: {rejected[forced]}")


def order(device: torch.device) -> list[str]:
    """Return the names of all kernels in the order in which they are tried on this device."""
    preferred = PREFERRED.get(torch.cuda.get_device_capability(device), ()) if device.type == "cuda" else ()
    return sorted(LOADERS, key=lambda name: preferred.index(name) if name in preferred else len(preferred))


def _try(name: str, device: torch.device, dtype: torch.dtype) -> tuple[Kernel | None, str]:
    if name != "sdpa" and device.type != "cuda":
        return None, f"needs a CUDA device, this is {device.type}"
    if name != "sdpa" and dtype not in (torch.float16, torch.bfloat16):
        return None, f"needs 16-bit numbers, not {dtype}"
    try:
        kernel = LOADERS[name]()
    # A package may be absent, or present but built for another torch, CUDA, numpy or Python.
    except (ImportError, OSError, AttributeError, RuntimeError, ValueError) as error:
        return None, _first_line(error)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 96, 2, HEAD_DIM, generator=generator).to(device, dtype) for _ in range(3))
    try:
        out, exact = kernel(q, k, v).float(), sdpa(q, k, v).float()
    except kernel_errors() as error:
        return None, _first_line(error)
    error = ((out - exact).norm() / exact.norm()).item()
    if not error <= TOLERANCE:
        return None, f"wrong result: relative error {error:.2g} against sdpa"
    return kernel, ""


def kernel_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions by which a kernel reports that it does not work here.

    Kernels raise them for an unsupported card, shape or build, and triton for a kernel or C file that it cannot compile.
    """
    known = (RuntimeError, AssertionError, ValueError, TypeError, AttributeError, LookupError, ImportError, OSError)
    try:
        triton = importlib.import_module("triton")
    except ImportError:
        return (*known, subprocess.SubprocessError)
    return (*known, subprocess.SubprocessError, triton.TritonError)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:200]
