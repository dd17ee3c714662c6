"""Test the stage that trains the decoder on what the transformer samples."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from miniature import sampled, train_vae, training, vae
from miniature.networks import build_encoders, new_transformer
from miniature.pictures import bank
from miniature.sampled import SampledPool, Sizes, below, first_errors
from miniature.training import Session
from tests.miniature.steps import run_steps

pytestmark = pytest.mark.slow

# Steps of sampling: more would take most of the time, and the tests need no better films.
FEW = (3, 4)


def test_the_decoder_sees_what_is_sampled(tmp_path, monkeypatch):
    """A stage of training on the networks' own first sections keeps the latents, and a log of first frames shows whether it
    worked."""
    monkeypatch.setattr(vae, "VAE_CONFIG", {"block_out_channels": (8, 8, 8, 8), "layers_per_block": 1, "norm_num_groups": 4})
    monkeypatch.setattr(train_vae, "BLOCK", 2)
    monkeypatch.setattr(train_vae, "RENEWED", 1)
    monkeypatch.setattr(sampled, "STEPS", FEW)
    small = {"pictures": 8, "detail": 32, "batch": 2, "clips": 1, "frames": 5, "side": 16}
    train_vae.train(tmp_path, Session(1e-4, tmp_path, "cpu"), False, peak=1e-3, **small)
    build_encoders(tmp_path)
    transformer = tmp_path / "transformer" / "diffusion_pytorch_model.safetensors"
    training.save_half(new_transformer().state_dict(), transformer, torch.bfloat16)
    weights = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    before, other = load_file(weights), load_file(transformer)
    (tmp_path / "log.jsonl").unlink()
    # Filling the pool takes most of the given time on any machine, so the steps are counted: enough for each kind once.
    run_steps(monkeypatch, 10)
    sizes = Sizes(pool=6, chunk=4, batch=2, side=16, watched=2)
    train_vae.train(tmp_path, Session(0.01, tmp_path, "cpu"), False, peak=1e-3, stage="sampled", sizes=sizes, **small)
    after = load_file(weights)
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"decoder", "post_quant_conv"}
    assert all(torch.equal(other[name], tensor) for name, tensor in load_file(transformer).items())
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert {"pictures", "clean", "cut", "joined", "sampled"} == {line["phase"] for line in lines if "phase" in line}
    first = {line["weights"]: line for line in lines if "weights" in line}
    for name in ("plain_first", "plain_first_worst", "hard_first", "hard_first_below_most"):
        assert math.isfinite(first["before"][name]) and first["after"][name] != first["before"][name]
    assert next(line["sampled"] for line in lines if "sampled" in line) == 4


@pytest.fixture(scope="module")
def sampled_pool(tmp_path_factory):
    """Make a pool with the trained miniature, whose weights are part of the program."""
    folder = Path(train_vae.__file__).parent / "checkpoint"
    session = Session(1e-4, tmp_path_factory.mktemp("log"), "cpu")
    source = bank(torch.arange(12), 64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampled, "STEPS", FEW)
        # Their captions are few; all kinds are in the stage above.
        patch.setattr(sampled, "SCENES", {"pan": 1.0, "zoom": 1.0})
        yield SampledPool(session, folder, source, Sizes(pool=6, chunk=4, batch=4, side=48, watched=2))


def test_a_pool_is_what_the_program_decodes(sampled_pool):
    """The start picture's own latent in front; its frame is the truth, and the others are near it."""
    pool = sampled_pool
    pool.fill()
    filled = pool.lost >= 0
    assert filled.sum() == 4
    start = pool.target[filled][:, :, 0]
    assert torch.allclose(vae.encode(pool.before, start), pool.latents[filled][:, :, 0], atol=1e-3)
    made = pool.before.decode(pool.latents[filled]).sample.clamp(-1, 1)
    lost = below(first_errors(made, pool.target[filled]), pool.alone[filled])
    assert torch.allclose(lost, pool.lost[filled], atol=0.1)
    assert (made - pool.target[filled]).square().mean() < 0.02
    assert pool.weight[filled].min() >= 0 and pool.weight[filled].max() <= 1


def test_what_is_worst_is_drawn_and_what_is_best_replaced(sampled_pool):
    pool = sampled_pool
    pool.lost[:] = torch.tensor([-1.0, 0.0, 14.0, 3.0, 0.1, 0.0])
    drawn = []
    for _ in range(200):
        pool.draw()
        drawn += pool.rows.tolist()
    counts = [drawn.count(row) for row in range(6)]
    assert counts[0] == 0 and counts[2] > 3 * counts[3] > 3 * counts[1] > 0
    kept = pool.latents[2:4].clone()
    pool.renew(pool.before)
    assert torch.equal(pool.latents[2:4], kept) and (pool.lost >= 0).all()


def test_a_step_of_the_pool_moves_first_frames_most(sampled_pool):
    """Gradients reach the decoder from both parts, and the errors of what was drawn are kept."""
    pool = sampled_pool
    pool.lost.fill_(2.0)
    pool.draw()
    decoder = copy.deepcopy(pool.before).requires_grad_(True)
    loss, axes = pool.loss(decoder)
    loss.backward()
    assert loss.isfinite() and axes.shape == (3,) and decoder.decoder.conv_in.conv.weight.grad.abs().sum() > 0
    assert (pool.lost[pool.rows] != 2.0).all()
