"""Test `eichi cache`: what it lists, deleting all or one kind, and the flag that limits the cache."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

from eichi_utils.cli import main
from eichi_utils.files import paths
from eichi_utils.files.disk_cache import open_caches
from locales import LANGUAGES, Translator
from tests.eichi_utils.helpers import names_in
from webui.app import read_flags


def cache(capsys: pytest.CaptureFixture, *words: str, language: str = "en") -> tuple[int, str]:
    code = main.main(["cache", *words, "--lang", language])
    return code, capsys.readouterr().out


@pytest.fixture
def filled() -> None:
    caches = open_caches(1)
    for name, count, size in (("prompts", 2, 500_000), ("pictures", 1, 100_000), ("weights", 1, 3_000_000)):
        for number in range(count):
            getattr(caches, name).add(str(number), size, lambda path, size=size: path.write_bytes(bytes(size)))


def test_what_is_there(filled: None, capsys: pytest.CaptureFixture) -> None:
    code, out = cache(capsys)
    assert code == 0
    assert out.splitlines() == [
        str(paths.CACHE),
        "encoded prompts: 2 files, 1.0 MB",
        "encoded pictures: 1 files, 0.1 MB",
        "8-bit weights: 1 files, 3.0 MB",
    ]
    document = json.loads(cache(capsys, "--json")[1])
    assert document == {
        "folder": str(paths.CACHE),
        "deleted_bytes": 0,
        "prompts": {"files": 2, "bytes": 1_000_000},
        "pictures": {"files": 1, "bytes": 100_000},
        "weights": {"files": 1, "bytes": 3_000_000},
    }


def test_deleting(filled: None, capsys: pytest.CaptureFixture) -> None:
    document = json.loads(cache(capsys, "--delete", "weights", "--json")[1])
    assert document["deleted_bytes"] == 3_000_000
    assert [document[kind]["files"] for kind in ("prompts", "pictures", "weights")] == [2, 1, 0]
    code, out = cache(capsys, "--delete")
    assert code == 0 and out.splitlines()[-1] == "Deleted: 1.1 MB"
    assert names_in(paths.CACHE) == {"prompts", "pictures", "weights"}


def test_files_that_cannot_be_deleted_are_told(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache on a read-only disk was "Deleted" with exit code 0, and was still there."""
    open_caches(1).prompts.add("key", 1_000_000, lambda path: path.write_bytes(bytes(1_000_000)))

    def unlink(path: Path, missing_ok: bool = False) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "unlink", unlink)
    assert main.main(["cache", "--delete", "--lang", "en"]) == 1
    out, err = capsys.readouterr()
    assert "1 files" in err and str(paths.CACHE) in err and "Read-only file system" in err
    assert out.splitlines()[-1] == "Deleted: 0.0 MB"
    assert main.main(["cache", "--delete", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["problems"][0]["key"] == "cache_not_deleted"


@pytest.mark.parametrize("language", LANGUAGES)
def test_in_every_language(language: str, capsys: pytest.CaptureFixture) -> None:
    """The cache command prints its sentences in every language, even if the cache has no folder yet."""
    code, out = cache(capsys, "--delete", language=language)
    assert code == 0 and Translator(language)("cli.cache.deleted", megabytes="0.0") in out


def test_a_kind_that_does_not_exist(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as left:
        cache(capsys, "--delete", "films")
    assert left.value.code == 2


def test_rendering_keeps_what_it_encoded(checkpoint, pictures, tmp_path, capsys: pytest.CaptureFixture) -> None:
    """Rendering keeps encoded conditions by default. Size 0 keeps nothing, and a wrong size is bad input."""
    flags = [
        "render", "--mode", "single", "--image", pictures[0], "--prompt", "a cat", "--size", "128", "--steps", "1",
        "--models", str(checkpoint), "--device", "cpu", "--out", str(tmp_path / "out"), "--lang", "en",
    ]  # fmt: skip
    assert main.main([*flags, "--cache-gb", "0"]) == 0 and names_in(paths.CACHE) == set()
    assert main.main([*flags, "--cache-gb", "-1"]) == 2
    assert "--cache-gb" in capsys.readouterr().err
    assert main.main(flags) == 0
    capsys.readouterr()
    document = json.loads(cache(capsys, "--json")[1])
    assert [document[kind]["files"] for kind in ("prompts", "pictures", "weights")] == [1, 2, 0]


def test_the_page_has_the_flag() -> None:
    assert read_flags([]).cache_gb == 24 and read_flags(["--cache-gb", "3"]).cache_gb == 3
