"""Test that the quality benchmark measures differences: other settings differ from full precision, and it not from itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from benchmarks import quality
from eichi_utils.render import section_loop
from miniature.pictures import bank

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the benchmark: one scene of few small pictures in one mode, four steps, two settings beside full precision."""
    monkeypatch.setattr(quality, "bank", lambda seeds, side: bank(seeds[:4], side // 4))
    monkeypatch.setattr(quality, "STEPS", 4)
    monkeypatch.setattr(quality, "MODES", quality.MODES[:1])
    chosen = ("full precision", "int8", "teacache")
    monkeypatch.setattr(quality, "CASES", {case: quality.CASES[case] for case in chosen})


@pytest.fixture(autouse=True)
def cheap_decode(monkeypatch: pytest.MonkeyPatch) -> None:
    """Show latents as colours instead of decoding them, which is most of a tiny film's time."""

    def decode_frames(vae, latents, kept, room, side):
        yield latents[:, :3].mean(2, keepdim=True).expand(-1, -1, 4 * latents.shape[2] - 3, -1, -1)

    monkeypatch.setattr(section_loop, "decode_frames", decode_frames)


def test_figures(checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """The figures are right for random weights: the exact film equals itself, 8 bits have an error and fewer bytes, and a
    step cache has fewer steps."""
    monkeypatch.setattr("sys.argv", ["quality", str(checkpoint), "--count", "1", "--json"])
    quality.main()
    document = json.loads(capsys.readouterr().out)
    rows = {row["case"]: row for row in document["rows"]}
    assert list(rows) == list(quality.CASES) and "CPU" in document["machine"]["device"]
    exact = rows["full precision"]
    assert (exact["error"], exact["computed_steps"], exact["films"]) == (0.0, 4, 1) and exact["decibels"] > 100
    narrow, cached = rows["int8"], rows["teacache"]
    assert 0 < narrow["error"] < 0.2 and 20 < narrow["decibels"] < 100
    assert narrow["computed_steps"] == 4 and narrow["megabytes"] < exact["megabytes"]
    assert 2 <= cached["computed_steps"] < 4 and cached["error"] > 0 and cached["megabytes"] == exact["megabytes"]
    for row in rows.values():
        assert row["worst_error"] >= row["error"] and row["worst_decibels"] <= row["decibels"] and row["seconds"] > 0


def test_step_caches_side_by_side(checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """Both kinds of step cache are measured, and work done in a skipped step is not counted as a computed step."""
    caches = {name: {**quality.PLAIN, "step_cache": name, "cache_threshold": 1.0} for name in ("teacache", "first_block")}
    monkeypatch.setattr(quality, "CACHES", {"full precision": quality.PLAIN, **caches})
    monkeypatch.setattr("sys.argv", ["quality", str(checkpoint), "--count", "1", "--caches", "--steps", "6", "--json"])
    quality.main()
    found = {row["case"]: row for row in json.loads(capsys.readouterr().out)["rows"]}
    assert set(found) == {"full precision", *caches} and all(row["steps"] == 6 for row in found.values())
    assert found.pop("full precision")["computed_steps"] == 6
    assert all(2 <= row["computed_steps"] < 6 and row["error"] > 0 for row in found.values())


def test_a_checkpoint_that_is_replaced_meanwhile(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Rows of two networks compared with each other look like an error of 8-bit weights."""
    folder = Path(shutil.copytree(checkpoint, tmp_path / "models"))

    def measured(*given: object) -> list:
        file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
        file.write_bytes(file.read_bytes()[:-1] + b"x")
        return []

    monkeypatch.setattr(quality, "measure", measured)
    monkeypatch.setattr("sys.argv", ["quality", str(folder), "--json"])
    with pytest.raises(SystemExit) as left:
        quality.main()
    assert left.value.code == 2 and "replaced" in capsys.readouterr().err


def test_a_table_for_the_readme() -> None:
    rows = [quality.Row(case, 2, 4.0, 4, 0.01, 0.02, 50.0, 40.0, 1.0, 3.2) for case in ("full precision", "int8")]
    lines = quality.table(rows).splitlines()
    assert len(lines) == 4 and len({line.count("|") for line in lines}) == 1
    assert lines[3] == "| int8 | 4.0 of 4 | 0.0100 (0.0200) | 50.0 (40.0) | 1.0 | 3.2 |"
