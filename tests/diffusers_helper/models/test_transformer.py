"""Test the transformer: names of its parameters, and its numbers against diffusers' class."""

from __future__ import annotations

import itertools
import json
import math

import pytest
import torch
from torch import Tensor

from diffusers_helper.models.transformer import Clean, PackedTransformer, TransformerConfig
from tests.diffusers_helper.inputs import GRIDS, LAYOUTS, Inputs, inputs, running, section_of, velocity

pytestmark = pytest.mark.slow

SIGMAS = [7 * t / (1 + 6 * t) for t in (1 - i / 25 for i in range(25))]
PARTS = ("clean", "clean_2x", "clean_4x", "image")


def hub_shapes() -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of FramePackI2V_HY on the hub, typed by hand."""
    shapes: dict[str, tuple[int, ...]] = {}

    def linear(name: str, out: int, *rest: int) -> None:
        shapes[f"{name}.weight"] = (out, *rest)
        shapes[f"{name}.bias"] = (out,)

    linear("x_embedder.proj", 3072, 16, 1, 2, 2)
    linear("clean_x_embedder.proj", 3072, 16, 1, 2, 2)
    linear("clean_x_embedder.proj_2x", 3072, 16, 2, 4, 4)
    linear("clean_x_embedder.proj_4x", 3072, 16, 4, 8, 8)
    linear("image_projection.up", 9216, 1152)
    linear("image_projection.down", 3072, 9216)
    for embedder, width in (
        ("time_text_embed.timestep_embedder", 256),
        ("time_text_embed.guidance_embedder", 256),
        ("time_text_embed.text_embedder", 768),
        ("context_embedder.time_text_embed.timestep_embedder", 256),
        ("context_embedder.time_text_embed.text_embedder", 4096),
    ):
        linear(f"{embedder}.linear_1", 3072, width)
        linear(f"{embedder}.linear_2", 3072, 3072)
    linear("context_embedder.proj_in", 3072, 4096)
    for i in range(2):
        block = f"context_embedder.token_refiner.refiner_blocks.{i}"
        linear(f"{block}.norm1", 3072)
        linear(f"{block}.norm2", 3072)
        for name in ("to_q", "to_k", "to_v", "to_out.0"):
            linear(f"{block}.attn.{name}", 3072, 3072)
        linear(f"{block}.ff.net.0.proj", 12288, 3072)
        linear(f"{block}.ff.net.2", 3072, 12288)
        linear(f"{block}.norm_out.linear", 6144, 3072)
    for i in range(20):
        block = f"transformer_blocks.{i}"
        linear(f"{block}.norm1.linear", 18432, 3072)
        linear(f"{block}.norm1_context.linear", 18432, 3072)
        for name in ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"):
            linear(f"{block}.attn.{name}", 3072, 3072)
        for name in ("norm_q", "norm_k", "norm_added_q", "norm_added_k"):
            shapes[f"{block}.attn.{name}.weight"] = (128,)
        for name in ("ff", "ff_context"):
            linear(f"{block}.{name}.net.0.proj", 12288, 3072)
            linear(f"{block}.{name}.net.2", 3072, 12288)
    for i in range(40):
        block = f"single_transformer_blocks.{i}"
        linear(f"{block}.norm.linear", 9216, 3072)
        for name in ("to_q", "to_k", "to_v"):
            linear(f"{block}.attn.{name}", 3072, 3072)
        for name in ("norm_q", "norm_k"):
            shapes[f"{block}.attn.{name}.weight"] = (128,)
        linear(f"{block}.proj_mlp", 12288, 3072)
        linear(f"{block}.proj_out", 3072, 15360)
    linear("norm_out.linear", 6144, 3072)
    linear("proj_out", 64, 3072)
    return shapes


def test_the_full_model_has_the_names_and_shapes_of_the_hub():
    """The published shards load strictly: one renamed module, and nobody can start."""
    with torch.device("meta"):
        net = PackedTransformer(TransformerConfig())
    found = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    assert found == hub_shapes()
    assert len(found) == 1274
    assert sum(math.prod(shape) for shape in found.values()) == 12_874_314_816


def test_diffusers_class_agrees_about_the_full_model():
    """The oracle of the tests below is the same network."""
    from diffusers import HunyuanVideoFramepackTransformer3DModel

    with torch.device("meta"):
        net = HunyuanVideoFramepackTransformer3DModel(has_image_proj=True, has_clean_x_embedder=True)
    assert {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()} == hub_shapes()


def test_state_dicts_load_strictly_both_ways(net, oracle):
    """A LoRA merged here must be usable there, and every name of the hub's file must find its place here."""
    oracle.load_state_dict(net.state_dict(), strict=True)
    net.load_state_dict(oracle.state_dict(), strict=True)
    assert set(net.state_dict()) == set(oracle.state_dict())


@torch.inference_mode()
def reference(oracle, given: Inputs, sigma: float = 0.7, guidance: float = 10.0, padding: int = 0) -> Tensor:
    """Run the same pass in diffusers' class, with `padding` masked tokens of wrong values after the text."""
    dtype = oracle.dtype
    text = torch.nn.functional.pad(given.text, (0, 0, 0, padding), value=3.0)
    mask = torch.arange(text.shape[1])[None] < given.text.shape[1]
    layout = given.layout
    return oracle(
        hidden_states=given.x.to(dtype),
        # Time and guidance are rounded to the weights' dtype, as the original does.
        timestep=torch.tensor([sigma * 1000]).to(dtype).float(),
        encoder_hidden_states=text.to(dtype),
        encoder_attention_mask=mask,
        pooled_projections=given.pooled.to(dtype),
        image_embeds=given.image.to(dtype),
        indices_latents=torch.tensor(layout.times),
        guidance=torch.tensor([guidance * 1000]).to(dtype).float(),
        latents_clean=given.clean.to(dtype),
        indices_latents_clean=torch.tensor(layout.clean),
        latents_history_2x=given.clean_2x.to(dtype),
        indices_latents_history_2x=torch.tensor(layout.clean_2x),
        latents_history_4x=given.clean_4x.to(dtype),
        indices_latents_history_4x=torch.tensor(layout.clean_4x),
        return_dict=False,
    )[0].float()


@pytest.mark.parametrize("grid", GRIDS, ids="{0[0]}x{0[1]}".format)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_float32_equals_diffusers(net, oracle, layout, grid):
    """Order of tokens and of modulation parts, padding of 2x and 4x, positions, text before or after the image: all at once.

    10x6, 20x22 and 16x12 latents need every combination of padding at the three resolutions.
    """
    given = inputs(LAYOUTS[layout], *grid)
    expected = reference(oracle, given)
    assert (velocity(net, given) - expected).abs().max() <= 1e-6 * max(1.0, expected.abs().max().item())


@pytest.mark.parametrize("grid", GRIDS, ids="{0[0]}x{0[1]}".format)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_bfloat16_is_bit_equal_to_diffusers(net, oracle, layout, grid):
    """In bfloat16 without the float32 head the network equals diffusers' bit for bit; a sum in another order would show."""
    given = inputs(LAYOUTS[layout], *grid)
    net = running(net.to(torch.bfloat16), float32_head=False)
    assert torch.equal(velocity(net, given), reference(oracle.to(torch.bfloat16), given))


def test_text_without_padding_equals_masked_padding(net, oracle):
    """The original pads text to 512 and masks; ours arrives cropped. The padding must not be seen."""
    given = inputs(LAYOUTS["forward"], 16, 12)
    expected = reference(oracle, given, padding=20)
    assert (velocity(net, given) - expected).abs().max() <= 1e-6 * max(1.0, expected.abs().max().item())


def test_time_is_rounded_to_the_weights_precision(net, oracle):
    """0.99408 is time 996 in bfloat16, not 994.08: so the model was published, and films show the difference."""
    net = running(net.to(torch.bfloat16), float32_head=False)
    given = inputs(LAYOUTS["forward"], 10, 6)
    rounded, next_door = (velocity(net, given, sigma) for sigma in (0.996, 0.99408))
    assert torch.equal(rounded, next_door)
    assert not torch.equal(rounded, velocity(net, given, 0.980))


def test_tables_for_all_steps_equal_tables_for_one(net):
    """Tables computed for all steps before the loop equal those computed for one step alone."""
    given = inputs(LAYOUTS["reverse, last section"], 10, 6)
    section = section_of(net, given)
    together = net.prepare_job(given.text, given.pooled, given.image, 10.0, SIGMAS)
    for i, sigma in enumerate(SIGMAS):
        alone = net.prepare_job(given.text, given.pooled, given.image, 10.0, [sigma])
        pairs = [(together.context, alone.context), (together.head, alone.head)]
        pairs += zip(together.single, alone.single, strict=True)
        for ours, theirs in zip(together.dual, alone.dual, strict=True):
            pairs += zip(ours, theirs, strict=True)
        for table, row in pairs:
            assert (table[i] - row[0]).abs().max() <= 4e-7 * max(1.0, row.abs().max().item())
        if i % 8 == 0:
            difference = net.step(given.x, i, together, section) - net.step(given.x, 0, alone, section)
            assert difference.abs().max() <= 1e-5


def test_every_context_is_optional_and_has_an_effect(net):
    """One-frame generation drops streams; diffusers' class cannot, and the early eichi switches for it changed nothing."""
    full = inputs(LAYOUTS["one picture"], 10, 6)
    results = {}
    for count in range(len(PARTS) + 1):
        for missing in itertools.combinations(PARTS, count):
            results[missing] = velocity(net, full.without(*missing))
            assert results[missing].isfinite().all() and results[missing].shape == full.x.shape
    assert len(results) == 16
    for one, other in itertools.combinations(results, 2):
        assert (results[one] - results[other]).abs().max() > 1e-4, f"missing {one} is like missing {other}"


def test_positions_of_clean_latents_matter(net):
    """A plan that says where a picture is in time must be heard."""
    given = inputs(LAYOUTS["one picture"], 10, 6)
    job = net.prepare_job(given.text, given.pooled, given.image, 10.0, [0.7])
    near, far = (
        net.step(given.x, 0, job, net.prepare_section((1,), 10, 6, Clean(given.clean, times))) for times in ((0, 2), (0, 30))
    )
    assert (near - far).abs().max() > 2e-5


def test_the_head_in_float32_is_a_bit_better_than_bfloat16(net):
    """The head in float32 is about 2e-3 better, only in 16 bits. It is the original's
    `high_quality_fp32_output_for_inference`, on by default."""
    given = inputs(LAYOUTS["forward"], 16, 12)
    assert net.execution.float32_head
    plain = running(net, float32_head=False)
    assert torch.equal(velocity(plain, given), velocity(net, given))
    net.to(torch.bfloat16)
    narrow = velocity(plain, given)
    assert torch.equal(narrow, narrow.bfloat16().float())
    wide = velocity(net, given)
    assert wide.dtype == torch.float32 and not torch.equal(wide, wide.bfloat16().float())
    assert 1e-5 < ((wide - narrow).norm() / wide.norm()).item() < 1e-2


@pytest.mark.parametrize("layout", ["forward", "reverse, padding 3", "one picture"])
def test_bfloat16_is_near_float32(net, layout):
    """The network in bfloat16 is near float32, for a moment and a guidance that 16 bits hold exactly; others are rounded
    before embedding, as published."""
    given, made = inputs(LAYOUTS[layout], 10, 6), []
    for dtype in (torch.float32, torch.bfloat16):
        net.to(dtype)
        made.append(velocity(net, given, sigma=0.5, guidance=10.24))
    assert 1e-3 < ((made[1] - made[0]).norm() / made[0].norm()).item() < 7e-3


@pytest.mark.parametrize("sides", [(15, 12), (16, 13), (135, 120)])
def test_odd_latent_sides_are_refused(net, sides):
    """Odd latent sides are refused: eichi offered 960x1080, which has 135 latents on a side, and failed in the middle of the
    first step."""
    with pytest.raises(ValueError, match=f"{sides[0]}x{sides[1]}.*multiples of 16"):
        net.prepare_section((0,), *sides)


def test_config_reads_the_hubs_json_and_passes_over_the_rest():
    """config.json has a class name, a version and nulls that are not ours."""
    document = json.loads(
        '{"_class_name": "HunyuanVideoTransformer3DModelPacked", "_diffusers_version": "0.33.0.dev0", "num_layers": 3,'
        ' "image_condition_type": null, "mlp_ratio": null, "rope_axes_dim": [16, 56, 56], "has_image_proj": true}'
    )
    config = TransformerConfig.from_json(document)
    assert config == TransformerConfig(num_layers=3)
    assert config.dim == 3072


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rope_axes_dim": [16, 56, 64]}, "rope_axes_dim"),
        ({"attention_head_dim": 64}, "rope_axes_dim"),
        # The sum is right, but there are three axes, and every frequency turns a pair of dimensions.
        ({"rope_axes_dim": [64, 64]}, "rope_axes_dim"),
        ({"rope_axes_dim": [15, 57, 56]}, "rope_axes_dim"),
        ({"patch_size": 4}, "patch size"),
        ({"patch_size_t": 2}, "patch size"),
    ],
)
def test_config_refuses_sizes_that_cannot_belong_together(change, message):
    """A config.json of another video model is named by its contradicting sizes before 25 GB are read."""
    with pytest.raises(ValueError, match=message):
        TransformerConfig.from_json(change)


def test_a_checkpoint_without_guidance_ignores_it(tiny):
    """`guidance_embeds: false` has no guidance embedder, and the scale then changes nothing."""
    config = TransformerConfig.from_json({**tiny[1], "guidance_embeds": False})
    net = PackedTransformer(config).eval()
    assert not any("guidance_embedder" in name for name in net.state_dict())
    given = inputs(LAYOUTS["one picture"], 10, 6)
    assert torch.equal(velocity(net, given, guidance=1.0), velocity(net, given, guidance=10.0))


def test_the_guidance_scale_is_heard(net):
    """Scale 10 is embedded as 10000."""
    given = inputs(LAYOUTS["one picture"], 10, 6)
    assert not torch.equal(velocity(net, given, guidance=1.0), velocity(net, given, guidance=10.0))
