"""Test the pool on a card that is too small: what stays, passes through or leaves, and that the film is the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from diffusers_helper.encoders.text import encode_prompt
from diffusers_helper.memory.budget import Budget
from diffusers_helper.models import compiled
from diffusers_helper.models.transformer import PackedTransformer, TransformerConfig
from diffusers_helper.vae.vae_decode import Decoder
from eichi_utils.files.paths import Outputs
from eichi_utils.jobs.queue import Jobs
from eichi_utils.models import requirements
from eichi_utils.models.pool import ModelPool
from eichi_utils.models.requirements import ExecutionChoice, Needs
from eichi_utils.problems import UserError
from eichi_utils.render import driver, encoding
from eichi_utils.render.engine import Engine
from tests.eichi_utils.helpers import SHORT, carry_out, decoded, found, last_preview, request
from tests.fake_device import FakeDevice

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def deep(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a checkpoint with nine single blocks, so that some can stay on the card and some leave."""
    folder = Path(shutil.copytree(checkpoint, tmp_path_factory.mktemp("deep") / "models"))
    config = folder / "transformer" / "config.json"
    document = {**json.loads(config.read_text()), "num_single_layers": 9}
    config.write_text(json.dumps(document))
    net = PackedTransformer(TransformerConfig.from_json(document))
    save_file(net.state_dict(), folder / "transformer" / "diffusion_pytorch_model.safetensors")
    return folder


def on_card(checkpoint: Path, card: FakeDevice, reserve_gb: float = 0.0) -> ModelPool:
    return ModelPool(checkpoint, device="cpu", card=card, reserve_gb=reserve_gb)


def test_without_a_card_nothing_moves(pool: ModelPool) -> None:
    assert pool.card is None
    with pool.transformer("framepack") as net:
        assert pool.networks.loaded["transformer"].streamer is None
        assert net.execution.weights.make_room() is False


@pytest.mark.parametrize("mode", ["reverse", "single"])
def test_a_film_through_a_small_card_is_the_same(
    mode: str,
    checkpoint: Path,
    pool: ModelPool,
    pictures: list[str],
    tmp_path: Path,
    cheap_decode: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A whole run with no block on the card, prompts and LLaMA included, makes the same film."""
    wanted = request(mode, pictures[0], **({"seconds": 0.5, "window": 4.5} if mode == "reverse" else {}))
    plain = last_preview(carry_out(wanted, pool, tmp_path / "plain"))
    card = FakeDevice()
    small = on_card(checkpoint, card)
    monkeypatch.setattr(small.budget, "for_weights", lambda available, work: 0)
    assert last_preview(carry_out(wanted, small, tmp_path / "card")) == plain
    streamer = small.networks.loaded["transformer"].streamer
    assert streamer.resident == () and card.copied > 0


def test_prompts_pass_through_the_language_model_layer_by_layer(checkpoint: Path, pool: ModelPool) -> None:
    """Afterwards it is neither on the card nor in memory, and its layers have no hooks."""
    with pool.text() as encoders:
        plain = [encode_prompt(encoders, prompt) for prompt in ("a cat", "a dog runs over a hill")]
    card = FakeDevice()
    other = on_card(checkpoint, card)
    with other.text() as encoders:
        streamer = other.networks.loaded["text_encoder"].streamer
        assert card.allocated() == streamer.card_bytes == streamer.step_bytes + streamer.job_bytes
        for wanted, prompt in zip(plain, ("a cat", "a dog runs over a hill"), strict=True):
            embedding = encode_prompt(encoders, prompt)
            assert torch.equal(embedding.tokens, wanted.tokens) and torch.equal(embedding.pooled, wanted.pooled)
    assert card.allocated() == 0 and "text_encoder" not in other.networks.loaded
    assert not encoders.llama.layers[0]._forward_pre_hooks


def test_the_budget_is_what_is_free_less_reserve_and_computing(deep: Path) -> None:
    """First by an estimate of the section's tokens, then by what the section before was seen to take."""
    card = FakeDevice(work=5000)
    roomy = on_card(deep, card)
    with roomy.transformer("framepack", tokens=100) as net:
        streamer = net.execution.weights
        everything = streamer.resident
        assert len(everything) == len(net.weight_groups().step)
    kind = next(kind for kind in roomy.budget._measured)
    assert roomy.budget.work(kind) == 6250
    # Something else takes memory: blocks leave at the next section.
    card.capacity = streamer.least_bytes + streamer.job_bytes + 3 * streamer._step["dual/0"].bytes
    with roomy.transformer("framepack", tokens=100) as net:
        assert net.execution.weights is streamer and 0 < len(streamer.resident) < len(everything)
        assert card.allocated() + streamer.job_bytes <= card.capacity
    # And come back when it is free again.
    card.capacity = 2**40
    with roomy.transformer("framepack", tokens=100):
        assert streamer.resident == everything


def test_others_leave_for_the_transformer_and_it_for_them(deep: Path) -> None:
    """A network that was never measured gets the whole card; afterwards others leave only as far as room is missing."""
    card = FakeDevice()
    pool = on_card(deep, card)
    with pool.transformer("framepack", tokens=10) as net:
        streamer = net.execution.weights
    with pool.vae():
        assert streamer.card_bytes == 0 == card.allocated()
    with pool.transformer("framepack", tokens=10):
        assert streamer.card_bytes == streamer.step_bytes
    with pool.vae():
        assert streamer.card_bytes == streamer.step_bytes
    vae = pool.networks.loaded["vae"].bytes
    card.capacity = streamer.step_bytes + vae - 1
    with pool.vae():
        assert 0 < streamer.card_bytes < streamer.step_bytes
    # A longer stretch or a larger picture may take more than was seen.
    with pool.vae(1000):
        assert streamer.card_bytes == 0


def test_dropped_networks_leave_the_card(checkpoint: Path) -> None:
    card = FakeDevice()
    pool = on_card(checkpoint, card)
    with pool.transformer("framepack", tokens=10):
        assert card.allocated() > 0 and card.locked
    pool.follow_choice(ExecutionChoice("auto", Needs(0, 0), beside={"image_encoder": frozenset()}))
    with pool.vision():
        assert card.allocated() == 0 and card.locked == {}


def test_the_estimate_at_full_size() -> None:
    """2.5 GiB for 18,289 tokens of 3072 in 16 bits were measured with the published model."""
    budget = Budget(2**30)
    assert 2.3 * 2**30 < budget.estimate(18_289, 3072, 2) < 2.7 * 2**30
    assert budget.for_weights(6 * 2**30, 2 * 2**30) == 3 * 2**30 and budget.for_weights(0, 1) == 0
    budget.measure("a", 5)
    budget.measure("a", 3)
    # With a quarter for gaps: where the weights took all else, a film's second section at 960x960 ran out of memory.
    assert budget.work("a") == 6 and budget.work("b") is None


def test_tokens_of_a_section_in_the_usual_size(pictures: list[str]) -> None:
    """17,500 of latents at 640 x 608, and a picture and a prompt."""
    plan = request("reverse", pictures[0], seconds=5, window=9).plan()
    section = plan.sections[1]
    assert abs(requirements.step_tokens(section, 80, 76) - requirements.CONTEXT_TOKENS - 17_500) < 100


@pytest.mark.parametrize("wrong", [-1, 81, float("nan")])
def test_a_reserve_no_card_has(wrong: float, checkpoint: Path) -> None:
    with pytest.raises(UserError) as error:
        ModelPool(checkpoint, device="cpu", reserve_gb=wrong)
    assert found(error.value.problems) == {("reserve_gb", "out_of_range")}


def test_the_engine_hands_on_what_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Engine(device="cpu", reserve_gb=3).pool.budget.reserve == 3 * 2**30
    monkeypatch.setattr(compiled, "obstacle", lambda device: "")
    assert Engine(device="cpu").pool.passes.reason == ""
    assert Engine(device="cpu", compiler="off").pool.passes == compiled.EAGER


def failing_once(work):
    """Let the first call fail because the card is full."""
    failures = [torch.OutOfMemoryError("injected")]

    def call(*given):
        if failures:
            raise failures.pop()
        return work(*given)

    return call


@pytest.mark.parametrize("owner,name", [(encoding, "encode_prompt"), (encoding, "encode_image"), (encoding, "encode_picture")])
def test_encoding_is_repeated_in_what_others_give_up(
    owner: object, name: str, checkpoint: Path, pool: ModelPool, pictures: list[str], tmp_path: Path, cheap_decode: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Something else takes the card's memory in mid-run; the transformer of the film before leaves, the film is the same."""
    wanted = request("single", pictures[0])
    plain = last_preview(carry_out(wanted, pool, tmp_path / "plain"))
    card = FakeDevice()
    small = on_card(checkpoint, card)
    with small.transformer("framepack", tokens=10) as net:
        streamer = net.execution.weights
    left: list[int] = []
    monkeypatch.setattr(streamer, "leave", lambda wanted=None, leave=streamer.leave: left.append(1) or leave(wanted))
    # Estimate no work, so that nothing leaves the card before memory runs out.
    monkeypatch.setattr(small.budget, "work", lambda kind: 0)
    monkeypatch.setattr(owner, name, failing_once(getattr(owner, name)))
    assert last_preview(carry_out(wanted, small, tmp_path / "card")) == plain
    assert left


def test_decoding_goes_on_in_smaller_tiles(
    checkpoint: Path, pool: ModelPool, tmp_path: Path, pictures: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A film of as many frames, where a whole frame, 14 x 18 cells, finds no room."""
    wanted = request("reverse", pictures[0], **SHORT)
    small, tile, failed = on_card(checkpoint, FakeDevice()), Decoder.tile, []

    def limited(self, z, *cache):
        if max(z.shape[-2:]) > 16:
            failed.append(1)
            raise torch.OutOfMemoryError("injected")
        return tile(self, z, *cache)

    monkeypatch.setattr(Decoder, "tile", limited)
    events = carry_out(wanted, small, tmp_path)
    assert failed == [1] and len(decoded(events[-1].files[0])) == events[-1].frames == 21


def test_memory_that_nobody_can_give_is_said_in_a_sentence(
    checkpoint: Path, pictures: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Memory that cannot be freed ends the job with a sentence, not with a traceback."""

    def full(self, *_):
        raise torch.OutOfMemoryError("injected")

    monkeypatch.setattr(Decoder, "tile", full)
    small = on_card(checkpoint, FakeDevice())
    jobs = Jobs(lambda wanted, job, stop: driver.run(wanted, wanted.plan(), small, Outputs(tmp_path, job), stop))
    *_, view = jobs.follow(jobs.submit(request("reverse", pictures[0], **SHORT)).id)
    jobs.close()
    assert view.state == "failed" and found(view.problems) == {("", "out_of_card_memory")}
    assert not [record for record in caplog.records if record.exc_info]


def test_decoding_leaves_the_reserve_to_others(checkpoint: Path) -> None:
    small = on_card(checkpoint, FakeDevice(capacity=3 * 2**30), reserve_gb=1)
    assert small.room.free() == 2 * 2**30
    assert ModelPool(checkpoint, device="cpu").room.free() is None
