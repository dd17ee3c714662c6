"""Test files of latents: what the existing program reads in ours, what we read in its, and what is refused."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import numpy
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from eichi_utils.cli.main import main
from eichi_utils.exchange import latent_files
from eichi_utils.exchange.latent_files import (
    LatentClip,
    interpolate,
    join,
    put_together,
    read_latents,
    same_size,
    trim,
    write_clip,
    write_latents,
)
from eichi_utils.files import latent_header
from eichi_utils.files.latent_header import LatentInfo, latents_problem, read_info
from eichi_utils.problems import UserError
from eichi_utils.requests.plan import MOST_BETWEEN
from eichi_utils.requests.request import to_json
from tests.diffusers_helper.inputs import GOLDEN
from tests.eichi_utils.helpers import found, latent_file, names_in, request


def test_a_file_of_latents(tmp_path: Path) -> None:
    """Keys, types and sizes of spec "Tensor files"; numbers to the last bit; the request beside them."""
    made, latents = request("reverse", "a.png", prompt="猫"), torch.randn(1, 16, 5, 14, 18)
    write_latents(tmp_path / "x.safetensors", latents, made)
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert torch.equal(file.get_tensor("history_latents"), latents)
        assert torch.equal(file.get_tensor("metadata"), torch.tensor([112, 144, 5], dtype=torch.int32))
        assert json.loads(file.metadata()["eichi"]) == to_json(made)
    assert names_in(tmp_path) == {"x.safetensors"}
    info, again = read_latents(tmp_path / "x.safetensors")
    assert torch.equal(again, latents) and info.request == to_json(made) and info.model == "framepack"
    assert (info.width, info.height, info.latents, info.frames, info.dtype, info.parts) == (144, 112, 5, 17, "F32", ())


@pytest.mark.parametrize(("name", "latents"), [("app", 10), ("combiner", 9)])
def test_the_existing_programs_files(name: str, latents: int) -> None:
    """The app's `metadata` counts pixels and the combiner's latents, so neither is believed."""
    info, numbers = read_latents(GOLDEN / "compat" / f"tensor_{name}.safetensors")
    assert (info.width, info.height, info.latents) == (96, 64, latents) and numbers.shape == (1, 16, latents, 8, 12)
    assert (info.request, info.parts, info.model, info.requests) == (None, (), "", ())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_every_width_of_numbers(dtype: torch.dtype, tmp_path: Path) -> None:
    """Read as float32; what is no number is found in each."""
    latents = torch.randn(1, 16, 3, 4, 6).to(dtype)
    save_file({"history_latents": latents, "other": torch.zeros(3)}, tmp_path / "good.safetensors")
    assert torch.equal(read_latents(tmp_path / "good.safetensors")[1], latents.float())
    for number in (float("nan"), float("inf"), -float("inf")):
        wrong = latents.clone()
        wrong[0, 15, 2, 3, 5] = number
        save_file({"history_latents": wrong, "other": torch.zeros(3)}, tmp_path / "bad.safetensors")
        assert found([latents_problem("files", tmp_path / "bad.safetensors")]) == {("files", "latents_not_finite")}


@pytest.mark.parametrize(
    ("tensors", "key"),
    [
        ({"x": torch.zeros(1)}, "latents_none"),
        ({"history_latents": torch.zeros(1, 4, 3, 4, 6)}, "latents_shape"),
        ({"history_latents": torch.zeros(2, 16, 3, 4, 6)}, "latents_shape"),
        ({"history_latents": torch.zeros(1, 16, 0, 4, 6)}, "latents_shape"),
        ({"history_latents": torch.zeros(16, 3, 4, 6)}, "latents_shape"),
        ({"history_latents": torch.zeros(1, 16, 3, 4, 6, dtype=torch.int32)}, "latents_dtype"),
        ({"history_latents": torch.zeros(1, 16, 3, 4, 6, dtype=torch.float64)}, "latents_dtype"),
    ],
)
def test_files_of_something_else(tensors: dict, key: str, tmp_path: Path) -> None:
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(UserError) as error:
        read_info(tmp_path / "x.safetensors")
    assert found(error.value.problems) == {("append_latents", key)}


def test_what_is_no_safetensors_file(tmp_path: Path) -> None:
    """What is no safetensors file is refused: a picture, an empty or cut-off file, a header that promises too much, a
    folder, no file, no name."""
    good = Path(latent_file(tmp_path / "good.safetensors")).read_bytes()
    for number, data in enumerate((b"\x89PNG" * 20, b"", struct.pack("<Q", 2**60) + b"{}", good[:-7], good[:40])):
        path = tmp_path / f"{number}.safetensors"
        path.write_bytes(data)
        assert found([latents_problem("files", path)]) == {("files", "latents_damaged")}, data[:20]
    assert found([latents_problem("files", tmp_path)]) == {("files", "latents_damaged")}
    assert found([latents_problem("files", tmp_path / "gone")]) == {("files", "latents_missing")}
    assert found([latents_problem("files", 5)]) == {("files", "wrong_type")}
    assert found([latents_problem("files", "a\udcff")]) == {("files", "name_not_unicode")}
    assert latents_problem("files", tmp_path / "good.safetensors") is None


def test_a_file_that_changes_is_judged_anew(tmp_path: Path) -> None:
    """A latents file that changed is checked again: results are kept by the file's state, not by its name."""
    path = Path(latent_file(tmp_path / "x.safetensors", 3))
    assert read_info(path).latents == 3
    latent_file(path, 5)
    assert read_info(path).latents == 5
    path.write_bytes(b"")
    assert found([latents_problem("files", path)]) == {("files", "latents_damaged")}


@pytest.mark.parametrize("text", ["{", "5", '[{"request": 5, "parts": 7}, 8]'])
def test_what_a_header_says_is_not_trusted(text: str, tmp_path: Path) -> None:
    """Anything may stand there; the latents are read all the same."""
    info = read_info(latent_file(tmp_path / "x.safetensors", 3, eichi=text, eichi_parts=text))
    assert info.latents == 3 and info.request is None and info.requests == () and info.model == ""


def test_trimming(tmp_path: Path) -> None:
    info, latents = read_latents(latent_file(tmp_path / "x.safetensors", 6))
    assert torch.equal(trim(info, latents).latents, latents)
    piece = trim(info, latents, 2, 3)
    assert torch.equal(piece.latents, latents[:, :, 2:3])
    assert piece.parts == ({"file": "x.safetensors", "latents": 1, "trim_start": 2, "trim_end": 3},)
    with pytest.raises(UserError) as error:
        trim(info, latents, 3, 3, "trim_end")
    assert found(error.value.problems) == {("trim_end", "latents_too_few")}


def test_interpolated_latents_lie_on_a_line() -> None:
    """Evenly between the two, which are not repeated; 0 to 12 of them."""
    one, other = torch.zeros(1, 16, 1, 2, 2), torch.full((1, 16, 1, 2, 2), 10.0)
    torch.testing.assert_close(interpolate(one, other, 4)[0, 3, :, 1, 1], torch.tensor([2.0, 4.0, 6.0, 8.0]))
    assert interpolate(one, other, 0).shape == (1, 16, 0, 2, 2)
    assert interpolate(one, other, MOST_BETWEEN).shape[2] == 12
    for count in (-1, MOST_BETWEEN + 1):
        with pytest.raises(ValueError, match="0 to 12"):
            interpolate(one, other, count)


def test_joining_keeps_every_latent_once(tmp_path: Path) -> None:
    """Joined files keep each latent once, in order, with the metadata of the parts, after writing and reading again."""
    pieces = [trim(*read_latents(latent_file(tmp_path / f"{name}.safetensors", 3, seed=name))) for name in (1, 2, 3)]
    whole = join(pieces, 1)
    assert whole.latents.shape[2] == 3 * 3 + 2
    for number, piece in enumerate(pieces):
        assert torch.equal(whole.latents[:, :, 4 * number : 4 * number + 3], piece.latents)
    write_clip(tmp_path / "whole.safetensors", whole)
    info, again = read_latents(tmp_path / "whole.safetensors")
    assert torch.equal(again, whole.latents) and info.parts == whole.parts and info.request is None
    assert [(part["file"], part.get("between")) for part in info.parts] == [
        ("1.safetensors", None),
        ("2.safetensors", 1),
        ("3.safetensors", 1),
    ]
    assert torch.equal(join(pieces[:1]).latents, pieces[0].latents)
    part = LatentClip(torch.ones(1, 16, 1, 2, 2), ({"file": "a"},))
    assert put_together(part, part.latents * 2, part).latents[0, 0, :, 0, 0].tolist() == [1.0, 2.0, 1.0]


def test_sizes_and_models_must_agree() -> None:
    def info(name: str, width: int, model: str = "") -> LatentInfo:
        return LatentInfo(name, 3, 64, width, "F32", 9, {"model": model} if model else None)

    assert same_size([info("a", 96), info("b", 96, "framepack"), info("c", 96)]) == []
    wrong = same_size([info("a", 96, "framepack"), info("b", 96, "miniature"), info("c", 64), info("d", 96, "framepack")])
    assert [(problem.key, problem.values["file"]) for problem in wrong] == [
        ("latents_models_differ", "b"),
        ("latents_differ", "c"),
    ]
    assert found(wrong)


def test_numbers_are_judged_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A number that is not finite is found in whatever piece of the file it lies."""
    monkeypatch.setattr("eichi_utils.files.latent_header.AT_ONCE", 7)
    for place in (0, 6, 7, -1):
        path = Path(latent_file(tmp_path / f"{place}.safetensors", 1, 16, 16))
        assert latents_problem("files", path) is None
        with safe_open(path, "np") as file:
            numbers = file.get_tensor("history_latents").copy()
        numbers.reshape(-1)[place] = numpy.nan
        save_file({"history_latents": torch.from_numpy(numbers)}, tmp_path / f"bad{place}.safetensors")
        assert found([latents_problem("files", tmp_path / f"bad{place}.safetensors")]) == {("files", "latents_not_finite")}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"seed": 1e309}', "1e309"),
        ('{"model": NaN}', "NaN"),
        ('{"seed": 1' + "0" * 400 + "}", "401 digits"),
        ("[" * 100_000, "64 levels"),
        ('[{"parts":' * 300 + "1" + "}]" * 300, "64 levels"),
        ('{"prompt": "\\ud800"}', "surrogate"),
    ],
)
def test_a_description_that_could_not_be_kept_is_said(text: str, reason: str, tmp_path: Path) -> None:
    """Parts of parts of parts ended `eichi tensors info` with a RecursionError, and a seed of 1e309 was shown as "seed inf"."""
    for name in ("eichi", "eichi_parts"):
        (problem,) = [latents_problem("files", latent_file(tmp_path / "x.safetensors", 3, **{name: text}))]
        assert problem.key == "latents_unsafe" and reason in problem.values["reason"]


@pytest.mark.parametrize("name", ["latents_parts_nested_300", "latents_seed_1e309"])
def test_hostile_files_end_in_a_sentence(name: str, capsys: pytest.CaptureFixture) -> None:
    file = str(Path(__file__).parents[2] / "cases" / "hostile" / f"{name}.safetensors")
    assert main(["tensors", "info", file, "--lang", "en"]) == 2
    output = capsys.readouterr()
    assert "not read:" in output.out and "Traceback" not in output.out + output.err


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no such files")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    """Opening one that nobody writes to waits for ever."""
    os.mkfifo(tmp_path / "pipe.safetensors")
    for file in (tmp_path / "pipe.safetensors", "/dev/zero"):
        problem = latents_problem("files", file)
        assert problem.key == "latents_damaged" and problem.values["reason"] == "it is no regular file"


def test_latents_are_not_a_window_into_their_file(tmp_path: Path) -> None:
    """A mapped file that is written anew while a film uses it ends the whole program with SIGBUS."""
    path = tmp_path / "x.safetensors"
    latent_file(path, 4, 32, 32)
    info, latents = read_latents(path)
    kept = latents.clone()
    os.truncate(path, 100)
    assert torch.equal(latents, kept) and info.latents == 4


def test_latents_that_become_shorter_while_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A latents file that becomes shorter between reading its header and reading its numbers ends as a problem."""
    path = tmp_path / "x.safetensors"
    latent_file(path, 4, 32, 32)
    header = latent_header.read_header(path)
    os.truncate(path, 2000)
    monkeypatch.setattr(latent_header, "read_header", lambda file: header)
    assert found([latents_problem("files", path)]) == {("files", "latents_damaged")}
    monkeypatch.setattr(latent_files, "read_info", lambda *given: latent_header._info(str(path)))
    monkeypatch.setattr(latent_files, "read_header", lambda file: header)
    with pytest.raises(UserError) as error:
        read_latents(path, "files")
    assert found(error.value.problems) == {("files", "latents_damaged")}


def test_a_film_that_is_gone_on_with_again_and_again_stays_readable(tmp_path: Path) -> None:
    """Each time its parts are a level deeper, and the thirtieth file would have been refused as nested without an end."""
    path = tmp_path / "x.safetensors"
    latent_file(path, 2)
    for _ in range(40):
        info, latents = read_latents(path)
        write_clip(path, trim(info, latents))
    assert latents_problem("files", path) is None
    deepest, part = 0, {"parts": list(read_info(path).parts)}
    while "parts" in part:
        (part,), deepest = part["parts"], deepest + 1
    assert deepest > 20 and part["latents"] == 2
