"""Test LoRA in real runs: beside the weights and merged, on and off, on 8-bit weights, section by section."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from diffusers_helper.memory.memory import module_bytes
from diffusers_helper.models import linear
from eichi_utils.jobs.queue import Stop
from eichi_utils.models.hub import ModelFiles
from eichi_utils.models.lora_fit import shapes_in
from eichi_utils.models.pool import ModelPool
from eichi_utils.render import section_loop
from eichi_utils.render.section_loop import Decoded, sample_film
from eichi_utils.requests.loras import Lora
from eichi_utils.requests.plan import Plan
from eichi_utils.requests.request import Request
from tests.eichi_utils.helpers import THREE, carry_out, changed, notices_of, request
from tests.eichi_utils.render.test_effects import conditions_of, differ, latents_of
from tests.lora_files import FAMILIES, write_lora

pytestmark = pytest.mark.model


def weights_of(net: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_beside_equals_merged_for_every_family(family: str, files: dict, pool: ModelPool, pictures: list, cheap_decode) -> None:
    """A LoRA beside the weights equals a merged one through whole samplings, for every family, in what is computed before
    the loop too."""
    plain = request("single", pictures[0])
    with_lora = changed(plain, loras=(Lora(files[family], 0.7),))
    beside = latents_of(with_lora, pool)
    merged = latents_of(changed(with_lora, merge_loras=True), pool)
    assert differ(beside, latents_of(plain, pool))
    assert (beside - merged).abs().max() <= 1e-5 * max(1.0, merged.abs().max().item())


def test_several_at_once_are_the_sum(files: dict, pool: ModelPool, pictures: list, cheap_decode) -> None:
    """Several LoRA at once add up in any way and order: 0.8 of one and -0.3 of another, and twelve."""
    one, other = Lora(files["peft"], 0.8), Lora(files["kohya_hunyuan"], -0.3)
    base = request("single", pictures[0])
    results = [
        latents_of(changed(base, loras=chosen, merge_loras=merge), pool)
        for chosen in ((one, other), (other, one))
        for merge in (False, True)
    ]
    for result in results[1:]:
        assert (result - results[0]).abs().max() <= 1e-5 * max(1.0, results[0].abs().max().item())
    alone = latents_of(changed(base, loras=(one,)), pool)
    assert differ(results[0], alone)
    many = changed(base, loras=tuple(Lora(files["peft"], 0.8 / 12) for _ in range(12)))
    assert (latents_of(many, pool) - alone).abs().max() <= 1e-5 * max(1.0, alone.abs().max().item())


def test_strengths_belong_to_their_slots(files: dict, pool: ModelPool, pictures: list, cheap_decode) -> None:
    """Swapping the strengths of two files is another film; in other programs the list's order decided."""
    one, other = files["peft"], files["dotted"]
    base = request("single", pictures[0])
    straight = latents_of(changed(base, loras=(Lora(one, 1.0), Lora(other, 0.0))), pool)
    assert differ(straight, latents_of(changed(base, loras=(Lora(one, 0.0), Lora(other, 1.0))), pool))
    assert torch.equal(straight, latents_of(changed(base, loras=(Lora(one, 1.0),)), pool))


def test_zero_is_none_and_off_is_as_before_to_the_bit(files: dict, checkpoint: Path, pictures: list, cheap_decode) -> None:
    pool = ModelPool(checkpoint, device="cpu")
    base = request("single", pictures[0])
    plain = latents_of(base, pool)
    with pool.transformer("framepack") as net:
        before = weights_of(net)
    assert torch.equal(latents_of(changed(base, loras=(Lora(files["peft"], 0.0),)), pool), plain)
    assert differ(latents_of(changed(base, loras=(Lora(files["peft"], 2.0),)), pool), plain)
    with pool.transformer("framepack") as again:
        assert again.proj_out is net.proj_out and list(linear.branches(net)) == []
        after = weights_of(net)
    assert set(after) == set(before) and all(torch.equal(after[name], before[name]) for name in before)
    assert torch.equal(latents_of(base, pool), plain)


def test_a_strength_costs_nothing_and_another_file_no_checkpoint(files: dict, checkpoint: Path, loads: list) -> None:
    """The network stays; for another strength its branches stay too."""
    pool = ModelPool(checkpoint, device="cpu")
    with pool.transformer("framepack", "auto", (Lora(files["peft"], 0.5),)) as net:
        first = list(linear.branches(net))
    for strength in (1.0, 0.0, -2.0):
        with pool.transformer("framepack", "auto", (Lora(files["peft"], strength),)) as net:
            assert list(linear.branches(net)) == first
            assert {branch.strength for branch in first} == {strength}
    with pool.transformer("framepack", "auto", (Lora(files["dotted"], 0.5),)) as again:
        assert again.proj_out is net.proj_out and list(linear.branches(net)) != first
    assert len(loads) == 1


def test_merged_weights_are_loaded_again_exactly_when_they_change(files: dict, checkpoint: Path, loads: list) -> None:
    pool = ModelPool(checkpoint, device="cpu")
    half, full = (Lora(files["peft"], strength) for strength in (0.5, 1.0))
    for count, chosen in enumerate(((half,), (full,), (full, half), ()), 1):
        for _ in range(2):
            with pool.transformer("framepack", "auto", chosen, bool(chosen)) as net:
                assert list(linear.branches(net)) == []
        assert len(loads) == count


def test_a_precision_is_loaded_once_and_counted_exactly(files: dict, checkpoint: Path, loads: list) -> None:
    """In 8 bits the blocks' linears have a scale for each channel, and factors are added; all else stays as it was. It is
    loaded once and counted exactly."""
    pool = ModelPool(checkpoint, device="cpu")
    with pool.transformer("framepack") as net:
        wide = module_bytes(net)
        narrow = {name: layer.weight.shape for name, layer in net.block_linears().items()}
    expected = wide - sum(3 * rows * columns - 4 * rows for rows, columns in narrow.values())
    for precision in ("int8", "float8", "int8"):
        with pool.transformer("framepack", precision) as net:
            assert module_bytes(net) == expected == pool.networks.loaded["transformer"].bytes
            small = {name for name, tensor in net.state_dict().items() if tensor.element_size() == 1}
            assert small == {f"{name}.weight" for name in narrow}
            assert net.dtype == torch.float32
    with pool.transformer("framepack", "int8", (Lora(files["peft"]),)) as net:
        factors = sum(4 * (branch.up.numel() + branch.down.numel()) for branch in linear.branches(net))
        assert factors > 0 and pool.networks.loaded["transformer"].bytes == expected + factors
    with pool.transformer("framepack", "bfloat16") as net:
        assert net.dtype == torch.bfloat16 and module_bytes(net) == wide / 2
    assert [given[2] for given in loads] == [None, "int8", "float8", "int8", None]


@pytest.mark.parametrize("precision", ["int8", "float8", "bfloat16"])
def test_every_precision_makes_nearly_the_same_film(precision: str, pool: ModelPool, pictures: list, cheap_decode) -> None:
    base = request("single", pictures[0])
    exact, other = (latents_of(changed(base, precision=name), pool) for name in ("auto", precision))
    assert 0 < (other - exact).norm() / exact.norm() < 0.1


def with_strengths(it: Request, *strengths: tuple[float, ...] | None) -> Plan:
    plan = it.plan()
    sections = zip(plan.sections, strengths, strict=True)
    return dataclasses.replace(
        plan, sections=tuple(dataclasses.replace(section, lora_strengths=own) for section, own in sections)
    )


@pytest.mark.parametrize("merge", [False, True])
def test_a_plan_may_give_each_section_its_own_strengths(
    merge: bool, files: dict, pool: ModelPool, pictures: list, cheap_decode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each section may have its own LoRA strengths. Tables made for the first must not serve the second, even for the same
    prompt: it equals a section for which nothing was kept."""
    it = request("forward", pictures[0], loras=(Lora(files["peft"], 0.6),), merge_loras=merge, **THREE)
    _, conditions = conditions_of(it, pool)

    def parts(plan: Plan) -> list[torch.Tensor]:
        return [item.latents for item in sample_film(it, plan, conditions, pool, Stop()) if isinstance(item, Decoded)]

    same = parts(it.plan())
    assert all(map(torch.equal, same, parts(with_strengths(it, None, (0.6,), None))))
    first, second, third = parts(with_strengths(it, None, (-1.5,), None))
    assert torch.equal(first, same[0]) and differ(second, same[1]) and differ(third, same[2])
    with monkeypatch.context() as nothing_kept:
        nothing_kept.setattr(section_loop, "KEPT_TABLES", 0)
        fresh = parts(with_strengths(it, None, (-1.5,), None))
    assert all(map(torch.equal, (first, second, third), fresh))
    off = changed(it, loras=())
    without = [item.latents for item in sample_film(off, off.plan(), conditions, pool, Stop()) if isinstance(item, Decoded)]
    assert all(map(torch.equal, parts(with_strengths(it, (0.0,), (0.0,), (0.0,))), without))


@pytest.mark.parametrize("mode", ["reverse", "forward"])
def test_a_section_may_have_its_lora_stronger_weaker_or_off(
    mode: str, files: dict, checkpoint: Path, pictures: list, cheap_decode, loads: list
) -> None:
    """A section's scale multiplies the strength of each LoRA in that section alone, and no file is loaded for it."""
    pool = ModelPool(checkpoint, device="cpu")
    pair = Lora(files["peft"], 0.8), Lora(files["kohya_hunyuan"], -0.4)
    it = request(mode, pictures[0], loras=pair, **THREE)

    def parts(wanted: Request) -> list[torch.Tensor]:
        plan, conditions = conditions_of(wanted, pool)
        return [item.latents for item in sample_film(wanted, plan, conditions, pool, Stop()) if isinstance(item, Decoded)]

    same = parts(it)
    first, second, third = parts(changed(it, section_lora_scales={1: 0.5, 2: 1.0}))
    assert torch.equal(first, same[0]) and differ(second, same[1]) and differ(third, same[2])
    halved = changed(it, loras=tuple(dataclasses.replace(lora, strength=lora.strength / 2) for lora in pair))
    assert all(map(torch.equal, parts(changed(it, section_lora_scales=dict.fromkeys(range(3), 0.5))), parts(halved)))
    off = changed(it, section_lora_scales=dict.fromkeys(range(3), 0.0))
    assert all(map(torch.equal, parts(off), parts(changed(it, loras=()))))
    assert len(loads) == 1


def test_merging_anew_for_every_section_is_said(
    files: dict, pool: ModelPool, pictures: list, tmp_path: Path, cheap_decode
) -> None:
    """Merging a LoRA anew for each section is announced: it repeats the loading, where a LoRA beside the weights would take
    no time."""
    it = request("reverse", pictures[0], loras=(Lora(files["peft"]),), merge_loras=True, **{**THREE, "seconds": 1.2})
    for scales, keys in (({}, []), ({1: 0.5}, ["lora_merged_again"])):
        events = carry_out(changed(it, section_lora_scales=scales), pool, tmp_path, str(len(keys)))
        assert [notice.key for notice in notices_of(events)] == keys


def test_loha_beside_8_bits_and_16_keeps_its_four_factors(checkpoint: Path, tmp_path: Path) -> None:
    """LoHa was held as one product of rank * rank, larger than its file by half its rank. Both ways of using the four
    factors, for low and for high rank, follow its formula, and the strength can be changed."""
    shapes = shapes_in(ModelFiles(checkpoint), "framepack")
    pool = ModelPool(checkpoint, device="cpu")
    for rank in (2, 12):
        path = tmp_path / f"{rank}.safetensors"
        expected = write_lora(path, "loha", shapes, rank=rank, alpha=3.0)
        stored = sum(tensor.numel() for name, tensor in load_file(path).items() if not name.endswith("alpha"))
        for precision in ("auto", "int8"):
            with pool.transformer("framepack", precision, (Lora(str(path), -0.7),)) as net:
                branches = list(linear.branches(net))
                assert sum(module_bytes(branch) for branch in branches) == stored * net.dtype.itemsize
                for name, layer in linear.layers(net).items():
                    if isinstance(layer, linear.Linear):
                        x = torch.randn(3, layer.in_features)
                        (branch,) = layer.branches
                        wanted = -0.7 * x @ expected[name].T
                        assert torch.allclose(branch.add_to(torch.zeros(3, layer.out_features), x), wanted, atol=1e-5)
                        assert torch.allclose(
                            branch.added_to(torch.zeros_like(expected[name])), -0.7 * expected[name], atol=1e-6
                        )
