"""Test the choice of an attention kernel: a missing or wrong one is never used, and never stops the program."""

from __future__ import annotations

import subprocess
import sys
import types
from types import ModuleType

import pytest
import torch

from diffusers_helper.models import attention
from diffusers_helper.models.attention import HEAD_DIM, LOADERS, choose_attention, sdpa

OTHERS = ("sage", "flash3", "flash", "xformers")


def qkv(dtype=torch.float32, tokens: int = 40):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(1, tokens, 2, HEAD_DIM, generator=generator).to(dtype) for _ in range(3)]


def test_sdpa_is_the_formula():
    """SDPA computes softmax(q k / sqrt(d)) v for every head, with tokens before heads in its input and output."""
    q, k, v = qkv()
    out = sdpa(q, k, v)
    assert out.shape == q.shape
    for head in range(2):
        weights = (q[0, :, head] @ k[0, :, head].T / HEAD_DIM**0.5).softmax(-1)
        assert (out[0, :, head] - weights @ v[0, :, head]).abs().max() <= 1e-5


def test_on_a_cpu_only_sdpa_is_left_and_the_others_say_why():
    """The doctor shows these lines; a computer without a card must start all the same."""
    choice = choose_attention("cpu", torch.float32)
    assert choice.name == "sdpa" and choice.kernel is sdpa
    assert tuple(choice.rejected) == OTHERS
    assert all("CUDA" in reason and "cpu" in reason for reason in choice.rejected.values())


def test_sdpa_can_be_forced():
    choice = choose_attention(torch.device("cpu"), torch.bfloat16, "sdpa")
    assert choice.name == "sdpa" and choice.rejected == {}


def test_an_unknown_kernel_is_named_with_the_known_ones():
    """A typing error in --attention must not mean "auto"."""
    with pytest.raises(ValueError, match=r"'flash4'.*auto, sage, flash3, flash, xformers, sdpa"):
        choose_attention("cpu", torch.float32, "flash4")


@pytest.mark.parametrize("name", OTHERS)
def test_a_forced_kernel_that_cannot_work_is_refused_with_the_reason(name):
    """Whoever forces a kernel must not get another in silence."""
    with pytest.raises(ValueError, match=f"'{name}' does not work here: needs a CUDA device"):
        choose_attention("cpu", torch.bfloat16, name)


class Card(str):
    """Stand in for a CUDA device that is really the CPU."""

    type = "cuda"


class TorchWithCard:
    """Stand in for torch in the attention module: every device is a Card."""

    def __init__(self, capability: tuple[int, int] = (8, 9)):
        self.cuda = types.SimpleNamespace(get_device_capability=lambda device: capability)

    @staticmethod
    def device(name):
        return Card("cpu")

    def __getattr__(self, name):
        return getattr(torch, name)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the choice of a kernel believe that there is a CUDA device."""
    monkeypatch.setattr(attention, "torch", TorchWithCard())


def works(q, k, v):
    return sdpa(q, k, v)


def like_int8(q, k, v):
    """Compute attention with the error of the 8-bit kernels, 1.5 percent."""
    out = sdpa(q, k, v)
    noise = torch.randn(out.shape, generator=torch.Generator().manual_seed(0)).to(out.dtype)
    return out + 0.015 * noise * out.float().norm() / noise.float().norm()


def wrong(q, k, v):
    """Compute attention with heads and tokens exchanged, as a kernel of another layout would."""
    return torch.nn.functional.scaled_dot_product_attention(q, k, v)


def nothing_but_nan(q, k, v):
    return sdpa(q, k, v) * float("nan")


def raising(error: Exception):
    def fail(*_):
        raise error

    return fail


def loaders(**kernels):
    """Return a loader for each kernel; for None one that fails because the package is absent."""
    table = {
        name: (lambda kernel=kernel: kernel) if kernel else raising(ModuleNotFoundError(f"No module named '{name}'"))
        for name, kernel in kernels.items()
    }
    return {**table, "sdpa": lambda: sdpa}


def choose(monkeypatch, forced="auto", dtype=torch.bfloat16, **kernels):
    monkeypatch.setattr(attention, "LOADERS", loaders(**kernels))
    return choose_attention("cuda", dtype, forced)


def test_the_first_kernel_that_works_is_taken(card, monkeypatch):
    """The first kernel that works, in the order of preference, is taken; the ones after it are not even loaded."""
    choice = choose(monkeypatch, sage=None, flash3=works, flash=raising(AssertionError("must not be called")))
    assert choice.name == "flash3" and choice.kernel is works
    assert choice.rejected == {"sage": "ModuleNotFoundError: No module named 'sage'"}


@pytest.mark.parametrize(
    ("capability", "there", "chosen"),
    [
        ((8, 0), ("sage", "flash3", "flash", "xformers"), "sage"),
        ((8, 9), ("sage", "flash3"), "sage"),
        ((8, 6), ("flash3", "flash"), "flash3"),
        ((12, 0), ("sage", "flash3"), "sage"),
        ((9, 0), ("sage", "flash3", "flash", "xformers"), "flash3"),
        ((9, 0), ("sage", "flash", "xformers"), "sdpa"),
        ((9, 0), (), "sdpa"),
    ],
)
def test_the_order_is_the_cards(monkeypatch, capability, there, chosen):
    """The order of kernels depends on the card: on Hopper FlashAttention 3 and then torch's own come first, elsewhere
    SageAttention."""
    monkeypatch.setattr(attention, "torch", TorchWithCard(capability))
    kernels = {name: works if name in there else None for name in OTHERS}
    assert choose(monkeypatch, **kernels).name == chosen
    # A kernel that is asked for by name is taken all the same.
    assert all(choose(monkeypatch, name, **kernels).name == name for name in there)


def test_eight_bits_inside_are_near_enough(card, monkeypatch):
    """SageAttention is the fastest kernel and not exact; a tolerance that refused it would cost users half of the speed."""
    assert choose(monkeypatch, sage=like_int8).name == "sage"


@pytest.mark.parametrize("kernel", [wrong, nothing_but_nan], ids=lambda kernel: kernel.__name__)
def test_a_kernel_with_wrong_numbers_is_passed_over(card, monkeypatch, kernel):
    """A kernel that imports and runs but gives wrong numbers, because it was built for another card, is passed over; films
    were black or noisy."""
    choice = choose(monkeypatch, sage=kernel, flash=works)
    assert choice.name == "flash"
    assert choice.rejected["sage"].startswith("wrong result: relative error")


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: no kernel image is available for execution on the device\nCompile with ..."),
        NotImplementedError("No operator found for `memory_efficient_attention_forward`"),
        AssertionError("SM89 kernel is not available."),
        ValueError("Unsupported CUDA architecture: sm75"),
        TypeError("flash_attn_func() got an unexpected keyword argument"),
        ImportError("DLL load failed while importing _fused"),
        OSError("libcudart.so.12: cannot open shared object file"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_kernel_that_fails_when_called_is_passed_over(card, monkeypatch, error):
    """Packages import well and fail on the card they find; the reason is the error's first line."""
    choice = choose(monkeypatch, sage=raising(error), flash=works)
    assert choice.name == "flash"
    assert choice.rejected["sage"] == f"{type(error).__name__}: {str(error).splitlines()[0]}"


class TritonError(Exception):
    """Stand in for triton's errors, which derive from Exception alone."""


class CompilationError(TritonError):
    pass


@pytest.mark.parametrize(
    "error",
    [
        # Triton's compiler call without Python's header files: the most frequent failure of SageAttention on a fresh system.
        subprocess.CalledProcessError(1, ["gcc", "main.c", "-lcuda"]),
        CompilationError("at 1:0: type fp8e4nv not supported in this architecture"),
        # A kernel written for another release of triton.
        AttributeError("module 'triton.language' has no attribute 'libdevice'"),
        KeyError("num_stages"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_kernel_that_cannot_be_compiled_is_passed_over(card, monkeypatch, error):
    """SageAttention's kernels are compiled by triton at the first call, with triton's and subprocess' own errors."""
    monkeypatch.setitem(sys.modules, "triton", types.SimpleNamespace(TritonError=TritonError))
    choice = choose(monkeypatch, sage=raising(error), flash=works)
    assert choice.name == "flash"
    assert choice.rejected["sage"].startswith(type(error).__name__)


@pytest.mark.parametrize(
    "error",
    [
        ImportError("undefined symbol: _ZN3c104cuda9SetDeviceEi"),
        OSError("libcudart.so.12: cannot open shared object file"),
        AttributeError("module 'sageattention' has no attribute 'sageattn'"),
        RuntimeError("operator torchvision::nms does not exist"),
        # A package compiled against another numpy.
        ValueError("numpy.dtype size changed, may indicate binary incompatibility"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_package_that_does_not_import_is_passed_over(card, monkeypatch, error):
    """An attention package that was built for another torch, CUDA, Python or numpy is passed over."""
    monkeypatch.setattr(attention, "LOADERS", {"sage": raising(error), "sdpa": lambda: sdpa})
    choice = choose_attention("cuda", torch.bfloat16)
    assert choice.name == "sdpa"
    assert choice.rejected == {"sage": f"{type(error).__name__}: {error}"}


def test_a_forced_kernel_that_fails_is_refused_with_its_error(card, monkeypatch):
    with pytest.raises(ValueError, match="'sage' does not work here: RuntimeError: no kernel image"):
        choose(monkeypatch, "sage", sage=raising(RuntimeError("no kernel image")), flash=works)


def test_kernels_for_sixteen_bits_are_not_tried_in_float32(card, monkeypatch):
    choice = choose(monkeypatch, dtype=torch.float32, sage=works)
    assert choice.name == "sdpa" and "16-bit" in choice.rejected["sage"]


def test_an_error_without_words_still_has_a_reason(card, monkeypatch):
    """`assert` without a message gives an empty string."""
    assert choose(monkeypatch, sage=raising(AssertionError())).rejected["sage"] == "AssertionError: "


def test_reasons_are_short(card, monkeypatch):
    """Reasons are cut short: a compiler's output of thousands of lines must not fill the doctor's page."""
    assert len(choose(monkeypatch, sage=raising(RuntimeError("x" * 5000))).rejected["sage"]) <= 200


class Package:
    """Stand in for a kernel's package; its function notes how it is called."""

    def __init__(self, monkeypatch, module: str, function: str, result=lambda out: out):
        self.calls = []

        def kernel(q, k, v, **options):
            self.calls.append((q.shape, q.dtype, options))
            return result(sdpa(q, k, v))

        fake = ModuleType(module)
        setattr(fake, function, kernel)
        parts = module.split(".")
        for i in range(1, len(parts)):
            monkeypatch.setitem(sys.modules, ".".join(parts[:i]), ModuleType(".".join(parts[:i])))
        monkeypatch.setitem(sys.modules, module, fake)


@pytest.mark.parametrize(
    ("name", "module", "function", "options"),
    [
        ("sage", "sageattention", "sageattn", {"tensor_layout": "NHD"}),
        ("flash3", "fa3_fwd_interface", "flash_attn_func", {}),
        ("flash", "flash_attn", "flash_attn_func", {}),
        ("xformers", "xformers.ops", "memory_efficient_attention", {}),
    ],
)
def test_each_package_is_called_by_its_own_name_and_layout(card, monkeypatch, name, module, function, options):
    """Each package is called with its own layout: (batch, tokens, heads, dim), but for SageAttention, which expects heads
    first unless told."""
    package = Package(monkeypatch, module, function)
    choice = choose_attention("cuda", torch.bfloat16, name)
    assert choice.name == name
    shape, dtype, given = package.calls[0]
    assert shape[-2:] == (2, HEAD_DIM) and dtype == torch.bfloat16 and given == options
    q, k, v = qkv(torch.bfloat16)
    assert torch.equal(choice.kernel(q, k, v), sdpa(q, k, v))


def test_flash3_that_returns_its_sums_too(card, monkeypatch):
    """Some builds of FlashAttention 3 return (out, log-sum-exp)."""
    Package(monkeypatch, "fa3_fwd_interface", "flash_attn_func", lambda out: (out, out[..., 0]))
    choice = choose_attention("cuda", torch.float16, "flash3")
    q, k, v = qkv(torch.float16)
    assert torch.equal(choice.kernel(q, k, v), sdpa(q, k, v))


def test_sdpa_is_the_last_resort():
    """SDPA is chosen last: it needs no package, so that some kernel is always found."""
    assert tuple(LOADERS)[-1] == "sdpa"
