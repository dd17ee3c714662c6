"""Test that the loading benchmark compares the same weights, and runs each case alone in a process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from benchmarks import load
from diffusers_helper.checkpoints.checkpoint import check_transformer
from diffusers_helper.checkpoints.files import weight_files
from diffusers_helper.models.transformer import TransformerConfig

pytestmark = pytest.mark.slow


def rows_of(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, folder: Path, *cases: str) -> dict[str, dict]:
    only = [word for case in cases for word in ("--only", case)]
    monkeypatch.setattr("sys.argv", ["load", "--tiny", "--device", "cpu", "--json", "--folder", str(folder), *only])
    load.main()
    return {row["case"]: row for row in json.loads(capsys.readouterr().out)["rows"]}


def test_all_cases_load_the_same_weights(monkeypatch: pytest.MonkeyPatch, capsys, tmp_path: Path) -> None:
    """All cases load the same weights: bit for bit in 16 bits, nearly the same in 8. No file is left on the disk."""
    monkeypatch.setattr(load, "in_own_process", load.one_case)
    rows = rows_of(monkeypatch, capsys, tmp_path, *load.CASES)
    assert tuple(rows) == tuple(load.CASES)
    assert rows["own"]["error"] == 0.0
    for storage, most in (("int8", 0.02), ("float8", 0.05)):
        made, kept = rows[f"own, {storage}"], rows[f"own, {storage}, kept"]
        assert 0 < made["error"] == kept["error"] < most
    assert all(row["milliseconds"] > 0 and row["floor"] > 0 for row in rows.values())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.process
def test_a_case_has_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch, capsys, tmp_path: Path) -> None:
    """Each case runs in a process of its own: the peak of this process, and what it keeps, would be counted as the case's."""
    own, calls = load.in_own_process, []

    def second_alone(*given):
        calls.append(given)
        return (load.one_case if len(calls) == 1 else own)(*given)

    monkeypatch.setattr(load, "in_own_process", second_alone)
    row = rows_of(monkeypatch, capsys, tmp_path, "own, int8, kept")["own, int8, kept"]
    assert 0 < row["host_gib"] < 2 and row["ratio"] == 1.0


def test_the_kept_slabs_were_really_read(monkeypatch: pytest.MonkeyPatch, capsys, tmp_path: Path) -> None:
    """The case "kept" reads the kept slabs; if it quantised again, it would measure the wrong thing."""
    quantised, quantise = [], load.load_transformer.__globals__["quantise"]
    calls: list[int] = []

    def counting(*given):
        quantised.clear()
        made = load.one_case(*given)
        calls.append(len(quantised))
        return made

    monkeypatch.setattr(load, "in_own_process", counting)
    monkeypatch.setattr(
        "diffusers_helper.checkpoints.checkpoint.quantise", lambda *given: quantised.append(1) or quantise(*given)
    )
    rows_of(monkeypatch, capsys, tmp_path, "own, float8, kept")
    assert calls[0] > calls[1] == 0


def test_the_shards_are_the_hubs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbered files of a limited size and an index, which the program's own check finds whole."""
    monkeypatch.setattr(load, "SHARD_BYTES", 100_000)
    total = load.write_checkpoint(tmp_path / "model", load.TINY, torch.device("cpu"))
    files = weight_files(tmp_path / "model", load.STEM)
    assert len(files) > 2 and files[0].name == f"diffusion_pytorch_model-00001-of-{len(files):05}.safetensors"
    assert total < check_transformer(tmp_path / "model") < total + 20_000 * len(files)
    with safe_open(files[0], framework="pt") as opened:
        (name, *_) = opened.keys()
        assert opened.get_tensor(name).dtype == torch.bfloat16
    index = json.loads((tmp_path / "model" / f"{load.STEM}.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == total


def test_the_sizes_are_what_they_are_called() -> None:
    """The size called "published" has the 25.7 GB of the published checkpoint."""
    for size, expected in (("full", 25.7), ("middle", 1.0)):
        with torch.device("meta"):
            net = load.PackedTransformer(load.SIZES[size])
        assert sum(p.numel() for p in net.parameters()) * 2 / 1e9 == pytest.approx(expected, rel=0.1)
    assert load.SIZES["full"] == TransformerConfig()


def test_the_floor_counts_what_is_read(tmp_path: Path) -> None:
    """Kept slabs instead of the steps' weights; the tables' come from the checkpoint in any case."""
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "a.safetensors").write_bytes(bytes(1000))
    total, config = 26_000_000_000, TransformerConfig()
    assert load.bytes_read("own, int8", config, total, kept) == load.bytes_read("diffusers", config, total, kept) == total
    assert load.bytes_read("own, int8, kept", config, total, kept) == pytest.approx(total - 18.1e9, rel=0.01)
