"""Test that the training passes equal those of the program's networks, and that a run resumes where the last one stopped."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest
import torch
from diffusers import AutoencoderKLHunyuanVideo
from PIL import Image
from safetensors.torch import load_file

from diffusers_helper.models.transformer import Clean, PackedTransformer, TransformerConfig
from miniature import lessons, train_transformer, train_vae, training, vae
from miniature.batched import Inputs, forward_times, reverse_times, rope_table, single_times, velocity
from miniature.captions import every_caption, everyday_captions, trained_captions
from miniature.clips import scenes
from miniature.lessons import FOURTH, said
from miniature.networks import build_encoders
from miniature.optimizer import FlatParameters, Optimizer, orthogonalised
from miniature.pictures import bank, streaked
from miniature.train import main as train_main
from miniature.training import Session
from tests.miniature.steps import run_steps

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def small_vae():
    torch.manual_seed(0)
    return AutoencoderKLHunyuanVideo(block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4).eval()


@torch.no_grad()
@pytest.mark.parametrize("frames", [1, 5])
def test_passes_are_the_vaes(small_vae, frames):
    x = torch.rand(2, 3, frames, 16, 24) * 2 - 1
    latents = small_vae.encode(x).latent_dist.mode()
    made = small_vae.decode(latents).sample
    # One frame takes the 2-D form.
    ours = vae.encode(small_vae, x[:, :, 0] if frames == 1 else x)
    assert torch.allclose(ours.view(latents.shape), latents, atol=1e-4)
    assert torch.allclose(vae.decode(small_vae, ours).view(made.shape), made, atol=1e-3)


def test_padding_has_the_right_gradient():
    x = torch.rand(1, 2, 3, 4, 3, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: vae.EdgePad.apply(t, (1, 1, 1, 1, 2, 0)), x)


@torch.no_grad()
def test_folding_is_exact(small_vae):
    net = copy.deepcopy(small_vae)
    x = torch.rand(4, 3, 1, 32, 32) * 2 - 1
    before = net.decode(net.encode(x).latent_dist.mode()).sample
    z = net.encode(x).latent_dist.mode().transpose(0, 1).flatten(1)
    vae.fold(net, z.mean(1), z.std(1))
    after = net.encode(x).latent_dist.mode()
    assert torch.allclose(net.decode(after).sample, before, atol=1e-4)
    scaled = (after * net.config.scaling_factor).transpose(0, 1).flatten(1)
    assert scaled.mean(1).abs().max() < 1e-3 and (scaled.std(1) - 1).abs().max() < 1e-3


@pytest.mark.parametrize("times", [reverse_times(0), reverse_times(2), forward_times(), single_times()], ids=str)
def test_batches_are_the_programs_steps(times):
    torch.manual_seed(1)
    sizes = {
        "num_attention_heads": 2,
        "attention_head_dim": 32,
        "num_layers": 1,
        "num_single_layers": 1,
        "num_refiner_layers": 1,
    }
    widths = {"text_embed_dim": 8, "pooled_projection_dim": 8, "image_proj_dim": 8, "rope_axes_dim": (4, 14, 14)}
    net = PackedTransformer(TransformerConfig(**sizes, **widths)).requires_grad_(False)
    h, w, n = 6, 10, 2
    noisy, clean, two, four = (torch.randn(n, 16, t, h, w) for t in (len(times.noisy), 2, 2, 16))
    text, pooled, image = torch.randn(n, 5, 8), torch.randn(n, 8), torch.randn(n, 3, 8)
    sigma, guidance = torch.tensor([0.9, 0.3]), torch.tensor([10000.0, 3000.0])
    rope = rope_table(times, h, w, net.config, noisy.device)[:, None].expand(-1, n, -1, -1, -1)
    ours = velocity(net, Inputs(noisy, clean, two, four, rope, sigma, guidance, text, pooled, image))
    for i in range(n):
        rows = slice(i, i + 1)
        job = net.prepare_job(text[rows], pooled[rows], image[rows], guidance[i].item() / 1000, [sigma[i].item()])
        parts = (Clean(clean[rows], times.clean), Clean(two[rows], times.two), Clean(four[rows], times.four))
        section = net.prepare_section(times.noisy, h, w, *parts)
        assert (net.step(noisy[rows], 0, job, section) - ours[rows]).abs().max() < 1e-4


def test_orthogonal_steps():
    values = torch.linalg.svdvals(orthogonalised(torch.randn(2, 12, 40)))
    assert values.min() > 0.6 and values.max() < 1.3


def test_a_gradient_that_is_not_finite_moves_nothing():
    net = torch.nn.Linear(16, 16)
    flat = FlatParameters(net, torch.float32)
    optimizer = Optimizer(flat, lambda name: True)
    optimizer.rate.fill_(0.1)
    before = flat.master.clone()
    flat.grad.fill_(float("nan"))
    optimizer.step()
    assert torch.equal(flat.master, before) and optimizer.skipped == 1
    flat.grad.normal_()
    optimizer.step()
    assert not torch.equal(flat.master, before) and flat.master.isfinite().all()
    assert torch.equal(net.weight.flatten(), flat.master[:256])


def test_a_run_goes_on_from_its_weights(tmp_path, monkeypatch):
    config = {"block_out_channels": (8, 8, 8, 8), "layers_per_block": 1, "norm_num_groups": 4}
    monkeypatch.setattr(vae, "VAE_CONFIG", config)
    monkeypatch.setattr(train_vae, "BLOCK", 2)
    small = {"pictures": 8, "detail": 32, "batch": 4, "clips": 2, "frames": 5, "side": 16}
    weights = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    run_steps(monkeypatch, 6)
    for resume in (False, True):
        session = Session(0.05, tmp_path, "cpu")
        train_vae.train(tmp_path, session, resume, peak=1e-3 if not resume else 0.0, **small)
        kept = load_file(weights)
        if not resume:
            first = kept
    # A rate of 0 keeps every weight but the folded ones.
    assert all(torch.allclose(first[k].float(), kept[k].float(), atol=1e-3) for k in first if "quant" not in k)
    phases = [json.loads(line).get("phase") for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert "pictures" in phases


@pytest.mark.parametrize("stage", ["second", "decoder"])
def test_later_stages_keep_the_latents(tmp_path, monkeypatch, stage):
    """Later training stages keep the latents of the first, because the transformer was trained on them."""
    config = {"block_out_channels": (8, 8, 8, 8), "layers_per_block": 1, "norm_num_groups": 4}
    monkeypatch.setattr(vae, "VAE_CONFIG", config)
    monkeypatch.setattr(train_vae, "BLOCK", 2)
    small = {"pictures": 8, "detail": 32, "batch": 2, "clips": 1, "frames": 5, "side": 16}
    weights = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    run_steps(monkeypatch, 6)
    train_vae.train(tmp_path, Session(0.03, tmp_path, "cpu"), False, peak=1e-3, **small)
    before = load_file(weights)
    train_vae.train(tmp_path, Session(0.05, tmp_path, "cpu"), False, peak=1e-4, stage=stage, **small)
    after = load_file(weights)
    assert any(not torch.equal(before[k], after[k]) for k in before if k.startswith("decoder"))
    assert any(not torch.equal(before[k], after[k]) for k in before if k.startswith("encoder")) == (stage == "second")
    # No statistics are folded again.
    assert torch.allclose(before["quant_conv.weight"].float(), after["quant_conv.weight"].float(), atol=0.02)
    phases = {json.loads(line).get("phase") for line in (tmp_path / "log.jsonl").read_text().splitlines()}
    assert {"joined", "cut"} <= phases


def test_worn_latents_are_softer():
    torch.manual_seed(0)
    z = torch.randn(8, 16, 3, 6, 8)
    made = vae.worn(z)
    rough = made.diff(dim=-1).abs().mean((1, 2, 3, 4)) / z.diff(dim=-1).abs().mean((1, 2, 3, 4))
    assert made.shape == z.shape and rough.max() < 1.15 and rough.min() < 0.7
    flat = vae.worn(torch.ones(8, 16, 3, 6, 8))
    assert (flat > 0.849).all() and (flat < 1.151).all() and flat.std() > 0.02


def test_streaks_go_one_way():
    pictures = bank(torch.arange(20, 28), 48)
    blurred = streaked(torch.arange(8), pictures).float()
    along, across = (blurred.diff(dim=dim).abs().mean((1, 2, 3)) for dim in (3, 2))
    assert blurred.shape == pictures.shape and ((along < 0.6 * across) | (across < 0.6 * along)).sum() >= 6


def test_captions_beyond_the_scenes():
    chosen = scenes(torch.arange(400), 32, {"move": 1, "pan": 1, "zoom": 1}, phrases=4)
    own = chosen.captions()
    plain = replace(FOURTH, tails=0.0, everyday=0.0, empty=0.0)
    assert said(chosen, plain) == own
    changed = [(a, b) for a, b in zip(own, said(chosen, replace(plain, everyday=0.5)), strict=True) if a != b]
    assert len(changed) > 15 and all(b in everyday_captions() and ("in." in a or "closer" in a) for a, b in changed)
    changed = [(a, b) for a, b in zip(own, said(chosen, replace(plain, tails=0.5)), strict=True) if a != b]
    assert len(changed) > 60 and all(b.startswith(a[:-1]) and "camera" in a for a, b in changed)
    assert 10 < said(chosen, replace(plain, empty=0.1)).count("") < 90
    assert set(said(chosen, FOURTH)) <= set(trained_captions())


def test_a_transformer_run_goes_on_from_its_weights(tmp_path, monkeypatch):
    """A run goes on from its weights: two lessons of different sizes at once, and a run that ends before its first step
    loses nothing."""
    monkeypatch.setattr(vae, "VAE_CONFIG", {"block_out_channels": (8, 8, 8, 8), "layers_per_block": 1, "norm_num_groups": 4})
    train_vae.train(tmp_path, Session(1e-4, tmp_path, "cpu"), False, peak=1e-3, pictures=8, detail=32, side=16, batch=2)
    build_encoders(tmp_path)
    small = replace(FOURTH, sections=2, pool=4, height=16, width=32)
    monkeypatch.setattr(train_transformer, "STAGES", {"b": ((1.0, (small, replace(small, height=32, share=0.5))),)})
    monkeypatch.setattr(lessons, "said", lambda chosen, lesson: ["The camera zooms in."] * len(chosen))
    monkeypatch.setattr(train_transformer, "trained_captions", lambda: [*every_caption()[::40], "The camera zooms in."])
    monkeypatch.setattr(train_transformer, "probe", lambda *_: {})
    monkeypatch.setattr(training, "LOOK", 2)
    sizes = {"pictures": 8, "detail": 32, "batch": 1, "chunk": 2}
    weights = tmp_path / "transformer" / "diffusion_pytorch_model.safetensors"
    run_steps(monkeypatch, 2)
    train_transformer.train(tmp_path, Session(0.1, tmp_path, "cpu"), False, 1e-3, stage="b", **sizes)
    first = load_file(weights)
    assert all(tensor.dtype == torch.bfloat16 and tensor.isfinite().all() for tensor in first.values())
    shapes = [json.loads(line).get("shapes") for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [[2, 16, 32], [2, 32, 32]] in shapes
    run_steps(monkeypatch, 0)
    train_transformer.train(tmp_path, Session(1e-4, tmp_path, "cpu"), True, 1e-3, stage="b", **sizes)
    assert all(torch.equal(first[name], tensor) for name, tensor in load_file(weights).items())


def test_photos_are_watched_where_only_the_decoder_is_trained(small_vae, tmp_path):
    """The frozen encoder stays in 32 bits beside a decoder of 16 on a card; the first look at photos ended the training."""
    Image.radial_gradient("L").save(tmp_path / "photo.png")
    mixed = copy.deepcopy(small_vae)
    mixed.decoder.bfloat16()
    mixed.post_quant_conv.bfloat16()
    exact = train_vae.photo_figures(small_vae, tmp_path, side=32)["photo"]
    assert abs(train_vae.photo_figures(mixed, tmp_path, small_vae, side=32)["photo"] - exact) < 0.1


def test_a_lesson_may_draw_all_sections_alike():
    assert {lesson.early for lesson in lessons.WEAKEST} == {1.0} and lessons.STAGES["c"] == ((1.0, lessons.WEAKEST),)
    assert [lesson.share for lesson in lessons.WEAKEST] == [lesson.share for lesson in lessons.SIZES]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["vae", "--stage", "a"], "stages of the vae are first, second, decoder, sampled"),
        (["transformer", "--stage", "sampled"], "stages of the transformer are a, b, c"),
        (["vae", "--minutes", "-1"], "--minutes must be more than 0"),
        (["vae", "--resume"], "vae is not there"),
        (["transformer"], "vae is not there"),
    ],
)
def test_training_that_cannot_begin_says_why(tmp_path, capsys, wrong, said):
    """A stage of the other network was a KeyError, missing weights a traceback."""
    with pytest.raises(SystemExit) as left:
        train_main([*wrong, "--weights", str(tmp_path), "--device", "cpu"])
    assert left.value.code == 2
    assert said in capsys.readouterr().err
