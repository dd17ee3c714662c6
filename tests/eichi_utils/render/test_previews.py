"""Test that nothing waits for previews, and that the host never waits for a card between steps.

The card without a memory is torch's meta device: whatever a step wants to know from it raises, as `item`, `cpu`, a condition
or an index by a mask, and what it sends there is noted.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from diffusers_helper.encoders.text import TextEmbedding
from diffusers_helper.models.attention import sdpa
from diffusers_helper.models.linear import LowRankBranch, quantise
from diffusers_helper.models.narrow import scaled
from diffusers_helper.models.step_cache import FirstBlockCache, TeaCache
from diffusers_helper.models.transformer import PackedTransformer, TransformerConfig
from diffusers_helper.vae.preview import HUNYUAN_PREVIEW
from eichi_utils.jobs.events import Step
from eichi_utils.jobs.queue import Stop
from eichi_utils.models.hub import ModelFiles
from eichi_utils.models.pool import ModelPool
from eichi_utils.render import section_loop
from eichi_utils.render.conditions import Conditions
from eichi_utils.render.previews import with_previews
from eichi_utils.render.section_loop import sample_film
from tests.diffusers_helper.inputs import running
from tests.eichi_utils.helpers import carry_out, request
from tests.fake_device import FakeDevice

pytestmark = pytest.mark.model

CPU, META = torch.device("cpu"), torch.device("meta")
STEPS = 4


def steps_seen(card: FakeDevice | None) -> tuple[list, list]:
    """Run `with_previews` over five steps; return its items, each with the number of steps asked for until then."""
    asked = []

    def steps():
        for step in range(5):
            asked.append(step)
            yield step, torch.full((1, 16, 2, 4, 6), -0.1 * step - 0.1)

    found = [(item, len(asked)) for item in with_previews(steps(), HUNYUAN_PREVIEW, CPU, card)]
    return [item for item, _ in found], [count for _, count in found]


def test_a_card_has_its_next_step_before_anybody_waits_for_this_one():
    """Previews show the same pictures of the same steps; on a card the copy is awaited only after the next step is queued."""
    plain, at_once = steps_seen(None)
    card = FakeDevice()
    late, ahead = steps_seen(card)
    assert at_once == [1, 2, 3, 4, 5] and ahead == [2, 3, 4, 5, 5]
    assert card.waits == [2, 3, 4, 5, 5]
    for a, b in zip(late, plain, strict=True):
        assert (a.step, a.preview) == (b.step, b.preview) and torch.equal(a.latents, b.latents)
    assert [done.step for done in plain] == list(range(5)) and len({done.preview for done in plain}) == 5


def test_a_film_on_a_card_has_every_steps_own_preview(
    checkpoint: Path, pool: ModelPool, pictures: list[str], tmp_path: Path, cheap_decode: None
) -> None:
    wanted = request("reverse", pictures[0], seconds=1, window=4.5, steps=3)
    runs = []
    for name, where in (("plain", pool), ("card", ModelPool(checkpoint, device="cpu", card=FakeDevice(), reserve_gb=0.0))):
        events = [event for event in carry_out(wanted, where, tmp_path / name) if isinstance(event, Step)]
        runs.append([(event.section, event.step, event.preview) for event in events])
    assert runs[0] == runs[1] and [(section, step) for section, step, _ in runs[0]] == [
        (0, 0),
        (0, 1),
        (0, 2),
        (1, 0),
        (1, 1),
        (1, 2),
    ]


class MetaCard(FakeDevice):
    """Simulate a card that accepts data and gives none back."""

    def fetch(self, tensor):
        assert tensor.is_meta and tensor.dtype == torch.uint8
        return lambda: torch.zeros(tensor.shape, dtype=torch.uint8)


class MetaPool:
    """Lend one network on the meta device."""

    def __init__(self, net: PackedTransformer):
        self.net, self.card, self.files = net, MetaCard(), ModelFiles()

    @contextmanager
    def transformer(self, *given: object) -> Iterator[PackedTransformer]:
        yield self.net


class Sent(TorchDispatchMode):
    """Note what is sent from the host to the card: torch waits for it unless it is in locked memory."""

    def __init__(self, found: list[str]):
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        tensors = [arg for arg in args if isinstance(arg, torch.Tensor)]
        moved = isinstance(made, torch.Tensor) and made.is_meta and tensors and not any(tensor.is_meta for tensor in tensors)
        if moved or (function.name().startswith("aten::copy_") and len({tensor.device for tensor in tensors}) > 1):
            self.found.append(str(function))
        return made


class Made(TorchFunctionMode):
    """Note tensors made of Python numbers, which are sent to the card without an operator."""

    def __init__(self, found: list[str]):
        super().__init__()
        self.found = found

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in (torch.tensor, torch.as_tensor, torch.from_numpy, torch.Tensor.new_tensor):
            self.found.append(function.__name__)
        return function(*args, **(kwargs or {}))


@pytest.fixture
def net() -> PackedTransformer:
    config = TransformerConfig(
        num_attention_heads=2, attention_head_dim=16, num_layers=2, num_single_layers=2, num_refiner_layers=1,
        text_embed_dim=32, pooled_projection_dim=16, rope_axes_dim=(4, 6, 6), image_proj_dim=12,
    )  # fmt: skip
    return PackedTransformer(config).eval().requires_grad_(False)


def sent_between_steps(net: PackedTransformer, **fields: object) -> list[str]:
    """Return everything that is sent to the card from a section's first pass to the event of its last step."""
    negative = TextEmbedding(torch.randn(1, 3, 32), torch.randn(1, 16), 3, 3)
    prompt = TextEmbedding(torch.randn(1, 5, 32), torch.randn(1, 16), 5, 5)
    made = request("forward", "start", seconds=0.5, window=4.5, steps=STEPS, **fields)
    conditions = Conditions(
        prompts={made.prompt: prompt},
        image=torch.randn(1, 7, 12),
        latents={"start": torch.randn(1, 16, 1, 6, 8)},
        negative=negative if made.cfg_scale != 1.0 else None,
    )
    found: list[str] = []
    before: list[int] = []
    step = net.step

    def counted(*given):
        before.append(len(found))
        return step(*given)

    net.step = counted
    with Sent(found), Made(found):
        for event in sample_film(made, made.plan(), conditions, MetaPool(net.to(META)), Stop()):
            if isinstance(event, Step) and event.step == STEPS - 1:
                break
    assert before[0], "the noise of the section is sent before its first step"
    assert len(before) == STEPS * (2 if conditions.negative else 1)
    return found[before[0] :]


def narrow(net: PackedTransformer, storage: str) -> None:
    for layer in net.block_linears().values():
        weight, layer.weight_scale = quantise(layer.weight, storage, torch.float32)
        layer.weight = nn.Parameter(weight, requires_grad=False)


def with_branches(net: PackedTransformer) -> None:
    for layer in net.block_linears().values():
        layer.branches.append(LowRankBranch(0, torch.zeros(layer.out_features, 2), torch.zeros(2, layer.in_features), 0.5))


@pytest.mark.parametrize(
    ("change", "fields"),
    # Guidance is outside of the network, so it is tried with one kind of weights.
    [
        pytest.param(lambda net: None, {}, id="plain"),
        pytest.param(lambda net: None, {"cfg_scale": 2.0, "guidance_rescale": 0.5}, id="real guidance"),
        pytest.param(lambda net: narrow(net, "int8"), {}, id="int8"),
        pytest.param(lambda net: narrow(net, "float8"), {}, id="float8"),
        pytest.param(with_branches, {}, id="branches"),
    ],
)
def test_without_a_step_cache_the_host_never_waits_in_a_step(net, change, fields):
    """Without a step cache the host never waits within a step, to read a number or to send one; sampler, guidance and
    preview included."""
    change(net)
    assert sent_between_steps(net, **fields) == []


def test_the_narrow_product_does_not_wait():
    """All steps of an 8-bit product but the product itself, which needs a card, run without sending anything to the card."""
    x, weight = torch.empty(1, 32, 64, device=META), torch.empty(64, 64, device=META).to(torch.float8_e4m3fn)
    found: list[str] = []
    with Sent(found), Made(found):
        made = scaled(x, weight, torch.ones(64, 1, device=META), torch.ones(64, device=META))
    assert made.shape == x.shape and found == []


@pytest.mark.parametrize(
    "spoil",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.sum()),
        lambda x: x.cpu(),
        lambda x: x[x > 0],
        lambda x: x.tolist(),
        lambda x: x.numpy(),
    ],
)
def test_a_step_that_asks_the_card_shows(net, monkeypatch, spoil):
    def attend(q, k, v):
        spoil(q)
        return sdpa(q, k, v)

    # prepare_job attends to the prompt too, before the steps.
    make = section_loop.SectionSampler._make_tables
    plain = lambda self, net, *given: make(self, running(net, attend=sdpa), *given)  # noqa: E731
    monkeypatch.setattr(section_loop.SectionSampler, "_make_tables", plain)
    with pytest.raises((RuntimeError, NotImplementedError, TypeError), match=r"(?i)meta"):
        sent_between_steps(running(net, attend=attend))


@pytest.mark.parametrize(
    "spoil",
    [lambda x: x + torch.ones(1).to(x.device), lambda x: x.new_tensor([1.0]), lambda x: torch.tensor(2, device=x.device)],
)
def test_a_step_that_sends_shows(net, spoil):
    def attend(q, k, v):
        spoil(q)
        return sdpa(q, k, v)

    assert len(sent_between_steps(running(net, attend=attend))) == 4 * STEPS


class Asked(TorchDispatchMode):
    """Count single numbers that are read."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function.name() in ("aten::item", "aten::is_nonzero", "aten::_local_scalar_dense")
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(("name", "kind"), [("teacache", TeaCache), ("first_block", FirstBlockCache)])
def test_a_step_cache_asks_for_one_number_a_step(net, name, kind):
    """A step cache reads one number from the card at each step, to decide whether to skip it; not at the first and the last
    step, which are always computed."""
    with pytest.raises(RuntimeError, match="item"):
        sent_between_steps(net, step_cache=name)
    cache = kind(0.15, STEPS)
    with Asked() as asked:
        for step in range(STEPS):
            cache.must_compute(torch.full((1, 5, 32), 1.0 + step))
    assert asked.count == STEPS - 2
