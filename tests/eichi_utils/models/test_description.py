"""Test `eichi.json`, a model folder's own description, and files of that name with wrong content."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from diffusers_helper.vae.preview import HUNYUAN_PREVIEW
from eichi_utils.files.paths import MINIATURE
from eichi_utils.files.pictures import picture_problem
from eichi_utils.models.description import FILE, Description, Example, read_description
from eichi_utils.problems import UserError
from miniature import export
from miniature.captions import every_caption
from tests.eichi_utils.helpers import found


def write(folder: Path, document: Any) -> Path:
    text = document if isinstance(document, str) else json.dumps(document)
    (folder / FILE).write_text(text, encoding="utf-8")
    return folder


def test_the_hubs_models_have_none(tmp_path: Path) -> None:
    """A model without a description, or with an empty one, is an ordinary one: HunyuanVideo's preview and the program's
    defaults."""
    assert read_description(tmp_path) == Description()
    assert read_description(write(tmp_path, {})) == Description() == Description(preview=HUNYUAN_PREVIEW)


def test_everything_it_can_say(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "examples").mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "examples" / "a.png")
    rows = [[channel / 100, -0.5, 1] for channel in range(16)]
    document = {
        "name": "tiny", "sizes": [128, 192], "size": 192, "steps": 7, "seconds": 2, "step_cache": "none",
        "checkpoints": ["framepack", "framepack_f1"], "preview": {"rows": rows, "bias": [0.5, 0, 1], "explained": 0.9},
        "examples": [{"picture": "../examples/a.png", "prompt": "It moves."}, {"picture": "../gone.png", "prompt": "Gone."}],
        "unknown": {"to": "us"},
    }  # fmt: skip
    described = read_description(write(tmp_path / "model", document))
    assert (described.name, described.sizes) == ("tiny", (128, 192))
    assert described.recommended == {"size": 192, "steps": 7, "seconds": 2, "step_cache": "none"}
    assert described.preview.rows[3] == (0.03, -0.5, 1.0) and described.preview.bias == (0.5, 0.0, 1.0)
    assert described.checkpoints == ("framepack", "framepack_f1")
    assert described.examples == (Example(str(tmp_path / "examples" / "a.png"), "It moves."),)


def test_sizes_alone_recommend_the_first(tmp_path: Path) -> None:
    """A description with sizes alone recommends the first; otherwise a page would begin with a size that the model does not
    have."""
    assert read_description(write(tmp_path, {"sizes": [160, 192]})).recommended == {"size": 160}


@pytest.mark.parametrize(
    "document",
    [
        "", "{", "[]", "5", "null", '"x"', "\ud800".encode("utf-8", "surrogatepass").decode("latin-1"), "[" * 100_000,
        {"sizes": 128}, {"sizes": [129]}, {"sizes": ["128"]}, {"sizes": [True]}, {"sizes": [128], "size": 640},
        {"size": 641}, {"steps": 0}, {"steps": "15"}, {"steps": None}, {"seconds": float("nan")}, {"step_cache": "magic"},
        {"name": 5}, {"checkpoints": "framepack"}, {"checkpoints": [1]},
        {"preview": 5}, {"preview": {}}, {"preview": {"rows": [[0, 0, 0]] * 15, "bias": [0, 0, 0]}},
        {"preview": {"rows": [[0, 0]] * 16, "bias": [0, 0, 0]}}, {"preview": {"rows": [[0, 0, "a"]] * 16, "bias": [0, 0, 0]}},
        {"preview": {"rows": [[0, 0, 0]] * 16, "bias": None}},
        {"examples": {}}, {"examples": [5]}, {"examples": [{"picture": "a.png"}]},
        {"examples": [{"picture": 5, "prompt": "x"}]},
    ],
    ids=lambda document: str(document)[:60],
)  # fmt: skip
def test_a_file_that_says_nonsense(document: Any, tmp_path: Path) -> None:
    """A damaged description is named with the reason; a guess would show a wrong preview or offer sizes that the model
    cannot do."""
    with pytest.raises(UserError) as error:
        read_description(write(tmp_path, document))
    assert found(error.value.problems) == {("models", "description_damaged")}
    (problem,) = error.value.problems
    assert problem.values["file"] == str(tmp_path / FILE) and problem.values["reason"]


def test_the_miniatures_own() -> None:
    """The shipped file is what the export writes, it can be read, and its examples are in the miniature's language."""
    document = json.loads((MINIATURE / FILE).read_text(encoding="utf-8"))
    preview = document.pop("preview")
    assert document == export.described()
    described = read_description(MINIATURE)
    assert described.name == "miniature" and described.sizes == (128, 160, 192)
    assert {"size", "steps"} <= set(described.recommended)
    assert described.preview != HUNYUAN_PREVIEW and described.preview.bias == tuple(preview["bias"])
    assert len(described.examples) == len(document["examples"]) >= 4
    for example in described.examples:
        assert picture_problem("image", example.picture) is None
        assert example.prompt in every_caption()
        assert Path(example.picture).stat().st_size < 30_000


def test_examples_are_pictures_of_the_model(tmp_path):
    """An eichi.json from anywhere once made the page's server show whole folders of the system."""
    folder = tmp_path / "model"
    folder.mkdir()
    outside = tmp_path / "private.png"
    for path in (outside, folder / "own.png", folder / "text.txt"):
        Image.new("RGB", (16, 16)).save(path, format="PNG")
    entries = [{"picture": name, "prompt": "x"} for name in ("../private.png", str(outside), "text.txt", "own.png")]
    (folder / "eichi.json").write_text(json.dumps({"examples": entries}))
    assert [Path(example.picture).name for example in read_description(folder).examples] == ["own.png"]


def test_a_preview_has_finite_numbers(tmp_path):
    rows = [[0.0, 0.0, 0.0]] * 15 + [[float("nan"), 0.0, 0.0]]
    (tmp_path / "eichi.json").write_text(json.dumps({"preview": {"rows": rows, "bias": [0, 0, 0]}}))
    with pytest.raises(UserError):
        read_description(tmp_path)
