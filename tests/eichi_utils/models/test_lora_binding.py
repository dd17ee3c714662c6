"""LoRA on real runs: beside the weights and merged into them, switched on and off, in 8 bits, section by section."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffusers_helper.memory.memory import module_bytes
from diffusers_helper.models import linear
from diffusers_helper.models.transformer import PackedTransformer, TransformerConfig
from eichi_utils.jobs.queue import Stop
from eichi_utils.models import pool as models
from eichi_utils.models.hub import ModelFiles
from eichi_utils.models.lora_binding import fingerprints, read_updates, shapes_of
from eichi_utils.models.lora_fit import fit_problems, remarks, reports, shapes_in
from eichi_utils.models.pool import ModelPool
from eichi_utils.problems import UserError
from eichi_utils.render import section_loop
from eichi_utils.render.section_loop import Decoded, sample_film
from eichi_utils.requests import loras
from eichi_utils.requests.loras import Lora
from eichi_utils.requests.plan import Plan
from eichi_utils.requests.request import Request
from tests.eichi_utils.helpers import THREE, carry_out, changed, found, notices_of, request
from tests.eichi_utils.render.test_effects import conditions_of, differ, latents_of
from tests.lora_files import FAMILIES, write_lora


@pytest.fixture(scope="module")
def files(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A file of every family for the small checkpoint, each with numbers of its own."""
    folder = tmp_path_factory.mktemp("lora")
    shapes = shapes_in(ModelFiles(checkpoint), "framepack")
    made = {}
    for seed, family in enumerate(FAMILIES):
        write_lora(folder / f"{family}.safetensors", family, shapes, alpha=2.0, size=0.05, seed=seed)
        made[family] = str(folder / f"{family}.safetensors")
    return made


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list:
    """What each loading of a transformer was asked for."""
    asked: list = []
    load = models.load_transformer
    monkeypatch.setattr(models, "load_transformer", lambda *given: asked.append(given) or load(*given))
    return asked


def weights_of(net: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_beside_equals_merged_for_every_family(family: str, files: dict, pool: ModelPool, pictures: list, cheap_decode) -> None:
    """Through whole samplings: what is computed before the loop (modulation, refiner, embedders) is changed too."""
    plain = request("single", pictures[0])
    with_lora = changed(plain, loras=(Lora(files[family], 0.7),))
    beside = latents_of(with_lora, pool)
    merged = latents_of(changed(with_lora, merge_loras=True), pool)
    assert differ(beside, latents_of(plain, pool))
    assert (beside - merged).abs().max() <= 1e-5 * max(1.0, merged.abs().max().item())


def test_several_at_once_are_the_sum(files: dict, pool: ModelPool, pictures: list, cheap_decode) -> None:
    """0.8 of one and -0.3 of another, in either way and order; and twelve."""
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
        assert again is net and list(linear.branches(net)) == []
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
        assert again is net and list(linear.branches(net)) != first
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
    """Blocks' linears in 8 bits with a scale for every channel, everything else as it was, factors on top."""
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
    """Same prompt, another strength: tables made for the first section must not serve the second, which are as if nothing was
    kept."""
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
    """Its scale multiplies every LoRA's strength there and nowhere else, and nothing is loaded for it."""
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
    """It is asked for, and takes the loading's time each time; beside the weights it would take none."""
    it = request("reverse", pictures[0], loras=(Lora(files["peft"]),), merge_loras=True, **{**THREE, "seconds": 1.2})
    for scales, keys in (({}, []), ({1: 0.5}, ["lora_merged_again"])):
        events = carry_out(changed(it, section_lora_scales=scales), pool, tmp_path, str(len(keys)))
        assert [notice.key for notice in notices_of(events)] == keys


@pytest.mark.parametrize("kind", ["shape", "no_modules", "dora", "not_finite"])
def test_a_file_that_does_not_fit_fails_the_job_before_it_starts(
    kind: str, files: dict, pool: ModelPool, pictures: list, tmp_path: Path, loads: list
) -> None:
    """Nothing is loaded, nothing written; the file is named with its slot."""
    path = tmp_path / "bad.safetensors"
    tensors = load_file(files["kohya_framepack"])
    if kind == "shape":
        tensors["lora_unet_proj_out.lora_up.weight"] = torch.zeros(7, 2)
    elif kind == "not_finite":
        tensors["lora_unet_proj_out.alpha"] = torch.tensor(float("nan"))
    elif kind == "dora":
        tensors["lora_unet_proj_out.dora_scale"] = torch.zeros(64, 1)
    else:
        tensors = {f"unknown_{name}": tensor for name, tensor in tensors.items()}
    save_file(tensors, path)
    it = request("single", pictures[0], loras=(Lora(files["peft"]), Lora(str(path))))
    with pytest.raises(UserError) as error:
        carry_out(it, pool, tmp_path / "out")
    assert found(error.value.problems) == {("loras/1/file", f"lora_{kind}")}
    assert error.value.problems[0].values["file"] == str(path)
    assert not (tmp_path / "out").exists() and loads == []


@pytest.mark.parametrize("merge", [False, True])
def test_numbers_that_are_none_are_found_before_the_job_and_read_once(
    merge: bool, files: dict, checkpoint: Path, pictures: list, tmp_path: Path, loads: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They passed as good and made every film black. A file is looked through once, however often it is asked about."""
    read, look = [], loras.first_not_finite
    monkeypatch.setattr(loras, "first_not_finite", lambda *given: read.append(given[0]) or look(*given))
    path, pool = tmp_path / "a.safetensors", ModelPool(checkpoint, device="cpu")
    shutil.copy(files["peft"], path)
    it = request("single", pictures[0], loras=(Lora(str(path)), Lora(str(path), 0.1)), merge_loras=merge)
    assert fit_problems(it.loras, pool.files, "framepack") == ()
    carry_out(it, pool, tmp_path / "good")
    assert read == [path] and len(loads) == 1
    key = "transformer.single_transformer_blocks.0.attn.to_k.lora_B.weight"
    tensors = load_file(path)
    tensors[key][-1, -1] = float("inf")
    save_file(tensors, path)
    with pytest.raises(UserError) as error:
        carry_out(it, pool, tmp_path / "out")
    assert [problem.values for problem in error.value.problems] == [{"file": str(path), "name": key}] * 2
    assert found(error.value.problems) == {(f"loras/{number}/file", "lora_not_finite") for number in (0, 1)}
    # As a page sees it.
    assert found(it.check()) == set()
    assert found(fit_problems(it.loras, pool.files, "framepack")) == found(error.value.problems)
    assert read == [path, path] and len(loads) == 1 and not (tmp_path / "out").exists()


def test_keys_that_are_not_used_may_hold_anything(files: dict, checkpoint: Path, tmp_path: Path) -> None:
    """A text encoder's factors are passed over, whatever is in them."""
    extra = {"lora_te1_x.lora_up.weight": torch.full((2, 2), float("nan"))}
    save_file({**load_file(files["peft"]), **extra}, tmp_path / "a.safetensors")
    (report,) = reports((Lora(str(tmp_path / "a.safetensors")),), ModelFiles(checkpoint), "framepack")
    assert len(report.text_encoder) == 1


@pytest.mark.parametrize(
    ("extra", "key"),
    [
        (("proj_out.lora_B.bias", "proj_out.diff_b"), "lora_biases"),
        (("proj_out.lora_B.bias", "something"), "lora_others"),
        (("no_such.lora_A.weight", "proj_out.bias"), "lora_partial"),
    ],
)
def test_what_is_left_out_is_called_by_its_name(extra: tuple, key: str, files: dict, checkpoint: Path, tmp_path: Path) -> None:
    """Where all updates fit and only biases do not, it said "52 of 52 updates fit; the rest is left out"."""
    path = tmp_path / "a.safetensors"
    save_file({**load_file(files["peft"]), **{name: torch.zeros(2, 2) for name in extra}}, path)
    (remark,) = remarks((Lora(str(path)),), ModelFiles(checkpoint), "framepack")
    assert remark.key == key and remark.values["example"] in extra
    if key != "lora_partial":
        assert remark.values["count"] == len(extra)


def test_loha_beside_8_bits_and_16_keeps_its_four_factors(checkpoint: Path, tmp_path: Path) -> None:
    """It was held as a product of rank * rank, in numbers more than a LoHa's file by half its rank. Both ways of using them,
    by low and by high rank, are its formula, and another strength is at hand."""
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


def test_a_partly_known_file_is_used_and_said(files: dict, pool: ModelPool, pictures: list, tmp_path: Path) -> None:
    path = tmp_path / "partly.safetensors"
    extra = {f"lora_unet_no_such_block.{end}.weight": torch.zeros(2, 2) for end in ("lora_up", "lora_down")}
    extra["lora_te_text_model.lora_up.weight"] = torch.zeros(2, 2)
    save_file({**load_file(files["kohya_framepack"]), **extra}, path)
    it = request("single", pictures[0], loras=(Lora(str(path)),))
    said = {notice.key: notice.values for notice in notices_of(carry_out(it, pool, tmp_path / "out"))}
    assert set(said) == {"lora_partial", "lora_text_encoder"}
    assert said["lora_partial"]["found"] == said["lora_partial"]["used"] + 1
    assert said["lora_text_encoder"] == {"file": str(path), "count": 1}
    whole = changed(it, loras=(Lora(files["kohya_framepack"]),))
    assert torch.equal(latents_of(it, pool), latents_of(whole, pool))
    assert notices_of(carry_out(whole, pool, tmp_path / "out", "other")) == []


def test_a_file_that_vanishes_or_changes_meanwhile(files: dict, checkpoint: Path, tmp_path: Path) -> None:
    """Between two sections: gone is said, and another file under the same name is read anew."""
    pool = ModelPool(checkpoint, device="cpu")
    path = tmp_path / "a.safetensors"
    shutil.copy(files["peft"], path)
    with pool.transformer("framepack", "auto", (Lora(str(path)),)) as net:
        first = next(linear.branches(net)).up.clone()
    shutil.copy(files["dotted"], path)
    with pool.transformer("framepack", "auto", (Lora(str(path)),)) as net:
        assert not torch.equal(next(linear.branches(net)).up, first)
    path.unlink()
    with pytest.raises(UserError) as error, pool.transformer("framepack", "auto", (Lora(str(path)),)):
        pass
    assert found(error.value.problems) == {("loras/0/file", "lora_missing")}
    with pool.transformer("framepack") as net:
        assert list(linear.branches(net)) == []


def test_the_alpha_of_peft_lies_beside_the_file(checkpoint: Path, tmp_path: Path) -> None:
    """PEFT saves adapter_model.safetensors with adapter_config.json; without it a strength would be silently another one."""
    shapes = shapes_in(ModelFiles(checkpoint), "framepack")
    path = tmp_path / "adapter_model.safetensors"
    plain = write_lora(path, "peft_default", shapes, rank=2, only=("proj_out",))["proj_out"]
    deltas = {}
    for text in (None, '{"r": 2, "lora_alpha": 6, "alpha_pattern": {}}', '{"r": 2, "lora_alpha": 6, "alpha_pattern": []}'):
        if text is not None:
            (tmp_path / "adapter_config.json").write_text(text)
        ((update,),) = read_updates((Lora(str(path)),), shapes)
        deltas[text] = update.delta()
    scales = [torch.linalg.norm(delta) / torch.linalg.norm(plain) for delta in deltas.values()]
    assert torch.stack(scales).tolist() == pytest.approx([1.0, 3.0, 3.0])


@pytest.mark.parametrize("merge", [False, True])
def test_another_alpha_beside_the_file_is_another_lora(merge: bool, checkpoint: Path, tmp_path: Path) -> None:
    """adapter_config.json was changed, and the old strength acted on until the program was started again; and an alpha in it
    that is no number passed as good."""
    pool = ModelPool(checkpoint, device="cpu")
    path, config = tmp_path / "adapter_model.safetensors", tmp_path / "adapter_config.json"
    write_lora(path, "peft_default", shapes_in(ModelFiles(checkpoint), "framepack"), rank=2, only=("proj_out",))
    chosen, prints, seen = (Lora(str(path), 1.0),), set(), []
    for alpha in (None, 2, 6):
        if alpha:
            config.write_text(f'{{"r": 2, "lora_alpha": {alpha}}}')
        prints.add(fingerprints(chosen))
        with pool.transformer("framepack", "auto", chosen, merge) as net:
            seen.append(net.proj_out(torch.ones(1, net.proj_out.in_features)))
    assert len(prints) == 3 and torch.equal(seen[0], seen[1]) and differ(seen[1], seen[2])
    assert fit_problems(chosen, pool.files, "framepack") == ()
    config.write_text('{"r": 2, "lora_alpha": NaN}')
    with pytest.raises(UserError) as error:
        reports(chosen, pool.files, "framepack")
    assert error.value.problems[0].values == {"file": str(path), "name": "lora_alpha"}
    assert found(fit_problems(chosen, pool.files, "framepack")) == {("loras/0/file", "lora_not_finite")}


def test_before_the_download_files_are_judged_by_the_published_model(files: dict, tmp_path: Path) -> None:
    """40 GB are not fetched for a LoRA that cannot be used."""
    nothing = ModelFiles(tmp_path)
    shapes = shapes_in(nothing, "framepack_f1")
    with torch.device("meta"):
        assert shapes == shapes_of(PackedTransformer(TransformerConfig()))
    assert shapes["single_transformer_blocks.39.proj_out"] == (3072, 15360) and len(shapes) == 553
    with pytest.raises(UserError) as error:
        reports((Lora(files["peft"]),), nothing, "framepack_f1")
    assert found(error.value.problems) == {("loras/0/file", "lora_shape")}


def test_shapes_are_the_same_with_and_without_weights(pool: ModelPool, checkpoint: Path) -> None:
    for precision in ("auto", "int8"):
        with pool.transformer("framepack", precision) as net:
            assert shapes_of(net) == shapes_in(ModelFiles(checkpoint), "framepack")


@pytest.mark.parametrize("merge", [False, True])
def test_a_file_that_becomes_shorter_while_it_is_read(
    merge: bool, files: dict, checkpoint: Path, tmp_path: Path, monkeypatch
) -> None:
    """A mapped one ended the whole program with SIGBUS. It is a problem of its slot, and the network stays usable."""
    path = tmp_path / "a.safetensors"
    shutil.copy(files["peft"], path)
    judge = loras.layouts

    def judged(*given):
        found = judge(*given)
        os.truncate(path, path.stat().st_size // 2)
        return found

    pool = ModelPool(checkpoint, device="cpu")
    with monkeypatch.context() as changed_meanwhile:
        changed_meanwhile.setattr("eichi_utils.models.lora_binding.layouts", judged)
        with pytest.raises(UserError) as error, pool.transformer("framepack", "auto", (Lora(str(path)),), merge):
            pass
    assert found(error.value.problems) == {("loras/0/file", "lora_changed")}
    with pool.transformer("framepack") as net:
        assert list(linear.branches(net)) == []


def test_updates_are_no_windows_into_their_file(files: dict, checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    shutil.copy(files["peft"], path)
    (updates,) = read_updates((Lora(str(path)),), shapes_in(ModelFiles(checkpoint), "framepack"))
    held = list(updates)
    before = [update.delta() for update in held]
    os.truncate(path, 100)
    assert all(torch.equal(update.delta(), delta) for update, delta in zip(held, before, strict=True))
