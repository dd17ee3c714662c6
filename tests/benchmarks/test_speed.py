"""Test that the speed benchmarks run, compare the right outputs, and compute their floors."""

from __future__ import annotations

import dataclasses
import json
import sys
from dataclasses import replace

import pytest
import torch
from diffusers import AutoencoderKLHunyuanVideo
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import __main__ as everything
from benchmarks import decode, film, lora, measure, section, step
from diffusers_helper.memory.budget import Budget
from diffusers_helper.memory.streaming import Streamer
from diffusers_helper.models.transformer import TransformerConfig
from tests.fake_device import FakeDevice

pytestmark = pytest.mark.slow


def document_of(module, arguments: list[str], monkeypatch, capsys) -> dict[str, dict]:
    monkeypatch.setattr("sys.argv", ["benchmark", "--tiny", "--device", "cpu", "--json", *arguments])
    module.main()
    return {row["case"]: row for row in json.loads(capsys.readouterr().out)["rows"]}


def only(*cases: str) -> list[str]:
    return [word for case in cases for word in ("--only", case)]


def test_a_step_of_the_own_class_is_the_others(monkeypatch, capsys):
    """The own class and diffusers' have the same weights by name and the same inputs; otherwise the ratio would compare
    different things."""
    cases = ("diffusers", "accelerate, sequential", "own", "own, int8")
    rows = document_of(step, ["--steps", "1", "--sizes", "64x48", *only(*cases)], monkeypatch, capsys)
    assert tuple(rows) == cases
    assert rows["own"]["error"] == 0.0 == rows["accelerate, sequential"]["error"] and 0 < rows["own, int8"]["error"] < 0.1
    assert all(row["milliseconds"] > 0 and row["floor"] > 0 for row in rows.values())


def test_without_a_card_a_step_needs_no_further_flag(monkeypatch):
    """The first case that wants a card ended the program, and the rows before it were lost."""
    asked = {}
    monkeypatch.setattr(step, "measure", lambda config, sizes, cases, *rest: asked.update(sizes=sizes, cases=cases) or iter(()))
    monkeypatch.setattr(step, "report", lambda *_: "")
    monkeypatch.setattr("sys.argv", ["benchmark", "--tiny", "--device", "cpu"])
    step.main()
    assert asked["sizes"] == [(64, 48)] and set(step.CASES) - set(asked["cases"]) == set(step.ON_A_CARD)
    monkeypatch.setattr("sys.argv", ["benchmark", "--tiny", "--device", "cpu", *only(step.ON_A_CARD[0])])
    with pytest.raises(SystemExit):
        step.main()


def test_a_streamed_step_is_a_resident_one():
    """A streamed step gives the resident step's result, on a card too small for the blocks, through the benchmark's own
    wiring."""
    config = replace(step.TINY, num_layers=3, num_single_layers=3)
    cpu = torch.device("cpu")
    work = step.Work(config, 64, 48, cpu, torch.float32)
    net = step.own(config, cpu, torch.float32, None, False)
    exact = work.own(net)()
    tokens = step.tokens_of(work)
    least = Streamer(FakeDevice(), net.weight_groups()).least_bytes
    estimate = Budget(0).estimate(tokens, config.dim, 4)
    card = FakeDevice(capacity=least + estimate + 1000)
    net, streamer = step.streamed(net, card, tokens, 4)
    assert not streamer.resident and card.locked
    assert torch.equal(work.own(net)(), exact) and card.copied > 0
    streamer.close()


def test_decoding_is_diffusers_picture(monkeypatch, capsys):
    cases = ("diffusers", "diffusers, tiles in space", "own", "own, a film's next stretch", "own, 3 GiB")
    rows = document_of(decode, ["--steps", "1", "--sizes", "16x32", "--latents", "14", *only(*cases)], monkeypatch, capsys)
    assert tuple(rows) == cases and rows["own"]["error"] < 1e-4
    assert rows["own, a film's next stretch"]["error"] > 0.1, "nothing was taken from what was kept"


def test_a_section_of_the_own_classes_is_the_others(monkeypatch, capsys):
    rows = document_of(section, ["--sampling", "2", "--sizes", "32x32", *only("diffusers", "own")], monkeypatch, capsys)
    assert tuple(rows) == ("diffusers", "own") and rows["own"]["error"] < 1e-4 and rows["own"]["floor"] > 0


def test_the_tokens_of_a_step_are_counted_as_published():
    """17,500 of latents at 640x608; with the text here of 60 tokens and the picture's 729."""
    work = step.Work(step.TINY, 640, 608, torch.device("cpu"), torch.float32)
    assert step.tokens_of(work) == 17_500 + 60 + 729


def test_the_floor_of_a_step_is_the_published_count():
    """495.4 TFLOP at 18,293 tokens, by a counter on the meta device."""
    assert step.operations(TransformerConfig(), 18_293) == pytest.approx(495.4e12, rel=2e-3)


def test_the_floor_of_decoding_is_what_diffusers_computes():
    with torch.device("meta"):
        vae = AutoencoderKLHunyuanVideo(**decode.TINY).requires_grad_(False)
        with FlopCounterMode(display=False) as counter:
            vae.decoder(torch.empty(1, 16, 5, 6, 4))
    convolutions = counter.get_flop_counts()["Global"][torch.ops.aten.convolution]
    assert decode.operations(vae, 5, 6, 4) == convolutions


def test_a_table_names_the_machine():
    row = measure.Row("64x48", "own", 12.0, 1.5, 0.0, 3.0, 4.0, 6.0)
    lines = measure.report([row], torch.device("cpu"), as_json=False).splitlines()
    assert "CPU" in lines[0] and lines[-1] == "| 64x48 | own | 12 | 1.50 | 0.0e+00 | 3.0 | 4.0 | 6 |"


@pytest.mark.process
def test_several_programs_in_one_go(monkeypatch, capsys):
    """Tables come last, and one that fails does not take the others along."""
    said = {"step": ("| own |", ""), "decode": ("half a table", "exit code 1"), "section": ('{"rows": []}', "")}
    asked = []

    def run(program, flags, minutes):
        asked.append((program, flags))
        return said[program]

    with monkeypatch.context() as patch:
        patch.setattr(everything, "run", run)
        assert everything.main(['step --only "own, compiled"', "decode", "step"]) == 1
        out, err = capsys.readouterr()
        assert asked[0] == ("step", ["--only", "own, compiled"]) and err == "decode: exit code 1\n"
        assert out.count("| own |") == 2 and out.index("## step --only") < out.index("## step\n") and "half" not in out
        assert everything.main(["section", "decode", "--json"]) == 1
        assert asked[-1] == ("decode", ["--json"])
        document = json.loads(capsys.readouterr().out)
        assert document == {"results": {"section": {"rows": []}}, "failed": {"decode": "exit code 1"}}
    said, why = everything.run("__main__", ["--help"], 1.0)
    assert said.startswith("usage: python -m benchmarks") and why == ""
    assert everything.run("nothing", [], 1.0) == ("", "exit code 1")
    assert everything.run("step", [], 0.0001) == ("", "took more than 0.0001 minutes")


def test_a_film_from_loading_to_its_last_frame(tmp_path, capsys, monkeypatch):
    """Every stage is timed, and the two peaks of memory are of this process; a stage between two looks used to have none."""
    monkeypatch.setattr(film, "PERIOD", 60.0)
    model = film.write_model(tmp_path / "model", True, torch.device("cpu"))
    flags = ["--model", str(model), "--device", "cpu", "--size", "128", "--steps", "2", "--seconds", "0.5"]
    film.main([*flags, "--json"])
    result = json.loads(capsys.readouterr().out)
    assert result["frames"] == 37 and result["size"] == "128x128" and result["step_ms"] > 0
    parts = result["seconds"]
    assert {"check", "text", "vision", "encode", "sample", "decode", "save", "first step of section 1"} <= set(parts)
    assert set(result["host_peaks"]) == {"load"} | {name for name in parts if not name.startswith("first step")}
    assert all(0 < own <= every <= result["host_gib"] + 0.01 for every, own in result["host_peaks"].values())
    fields = {field.name: result[field.name] for field in dataclasses.fields(film.Result)}
    monkeypatch.setattr(film, "measure", lambda *_: film.Result(**fields))
    film.main(flags)
    assert "| sample, s |" in capsys.readouterr().out


def test_a_lora_beside_the_weights(capsys, monkeypatch):
    """A LoRA beside the weights is measured before it is applied, after it, and at another strength, which reuses the
    network and makes new tables."""
    flags = ["--tiny", "--device", "cpu", "--size", "64x48", "--precision", "int8", "--rank", "4", "--steps", "1"]

    def here(command: list[str], check: bool) -> None:
        """Run the other process's code in this one, so that PyTorch is not imported again."""
        assert command[:2] == [sys.executable, "-c"] and check
        with monkeypatch.context() as patched:
            patched.setattr(sys, "argv", command[1:2] + command[3:])
            exec(command[2], {})

    monkeypatch.setattr(lora.subprocess, "run", here)
    lora.main([*flags, "--json"])
    result = json.loads(capsys.readouterr().out)
    assert (result["rank"], result["layers"], result["precision"]) == (4, 17, "int8") and result["difference"] > 0
    for phase in ("without", "beside", "other_strength"):
        assert result[phase]["step_ms"] > 0 and result[phase]["ready_ms"] > 0
    assert result["cost"] == pytest.approx(100 * (result["beside"]["step_ms"] / result["without"]["step_ms"] - 1))
    phases = {name: lora.Measured(**result[name]) for name in ("without", "beside", "other_strength")}
    again = lora.Result(**{field.name: result[field.name] for field in dataclasses.fields(lora.Result)} | phases)
    monkeypatch.setattr(lora, "measure", lambda *_: again)
    lora.main(flags)
    assert "| another strength |" in capsys.readouterr().out


def test_the_published_encoders_have_their_published_sizes():
    """The encoders have their published sizes; with other sizes the benchmark would measure another program's memory."""
    with torch.device("meta"):
        sizes = {name: sum(p.numel() for p in make().parameters()) for name, make in film.ENCODERS.items()}
    assert sizes["text_encoder"] == pytest.approx(7.5e9, rel=0.01)
    assert sizes["text_encoder_2"] == pytest.approx(123e6, rel=0.01)
    assert sizes["image_encoder"] == pytest.approx(428e6, rel=0.01)
    assert sizes["vae"] == pytest.approx(246e6, rel=0.01)
