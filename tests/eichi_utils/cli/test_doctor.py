"""Test the doctor's report for machines with cards that this one lacks."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from eichi_utils.cli import doctor
from eichi_utils.cli.doctor import examine, report_lines
from eichi_utils.files import paths
from eichi_utils.files.disk_cache import open_caches
from eichi_utils.models.catalogue import Models
from eichi_utils.models.gpus import Card
from eichi_utils.models.pool import ModelPool
from eichi_utils.models.requirements import Machine
from locales import LANGUAGES, Translator
from tests.eichi_utils.helpers import have_memory
from tests.fake_device import FakeDevice

GIB = 2**30
ADA = Card("NVIDIA GeForce RTX 4090", "580.95", (8, 9), 24 * GIB, 20 * GIB)


@pytest.fixture
def examined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict]:
    """Return `examined(machine, card)`: the doctor's report where the driver knows one card; nothing is downloaded."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(doctor, "cards", lambda: (ADA,))

    def found(machine: Machine, card: FakeDevice | None = None) -> dict:
        monkeypatch.setattr(ModelPool, "machine", lambda pool: machine)
        return examine(Models(), device="cpu", card=FakeDevice() if card is None else card)

    return found


def test_a_card_is_described(examined: Callable[..., dict]) -> None:
    found = examined(Machine(64 * GIB, 20 * GIB, narrow="float8"))
    (card,) = found["cards"]
    expected = {"name": ADA.name, "driver": "580.95", "capability": "8.9", "memory_gib": 24.0, "memory_free_gib": 20.0}
    assert card == expected and json.dumps(found)
    assert found["locks_memory"] is True
    for language in LANGUAGES:
        lines = report_lines(found, Translator(language))
        (line,) = [line for line in lines if ADA.name in line]
        assert all(part in line for part in ("580.95", "8.9", "24.0", "20.0"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("machine", "chosen", "why"),
    [
        (Machine(64 * GIB, 20 * GIB, narrow="float8"), "bfloat16", {"int8": "other_format", "float8": "not_needed"}),
        (Machine(64 * GIB, 20 * GIB), "bfloat16", {"int8": "not_needed", "float8": "no_units"}),
        (Machine(16 * GIB, 20 * GIB), "int8", {"bfloat16": "too_large", "float8": "no_units"}),
        (Machine(16 * GIB, 20 * GIB, narrow="float8"), "float8", {"bfloat16": "too_large", "int8": "other_format"}),
        (Machine(64 * GIB, GIB), None, {"bfloat16": "too_large", "int8": "too_large", "float8": "no_units"}),
    ],
)
def test_the_precision_of_auto_and_why_the_others_are_out(
    machine: Machine, chosen: str | None, why: dict, examined: Callable[..., dict]
) -> None:
    found = examined(machine)
    assert found["precision"] == chosen
    assert {name: reason["key"] for name, reason in found["precision_rejected"].items()} == why
    for language in LANGUAGES:
        t = Translator(language)
        text = "\n".join(report_lines(found, t))
        assert (chosen or t("doctor.nothing_fits")) in text
        if "too_large" in why.values():
            assert "19.8" in text


def test_memory_that_cannot_be_locked(examined: Callable[..., dict]) -> None:
    """The doctor tells if memory cannot be locked, as with limits of Windows and containers, and unlocks what its probe
    locked."""
    card = FakeDevice(lockable=1000)
    found = examined(Machine(64 * GIB, 20 * GIB), card)
    assert found["locks_memory"] is False and card.locked == {}
    assert Translator("en")("doctor.no_locking") in "\n".join(report_lines(found, Translator("en")))
    able = FakeDevice()
    assert examined(Machine(64 * GIB, 20 * GIB), able)["locks_memory"] is True and able.locked == {}


def test_without_the_drivers_program_torch_is_asked(examined: Callable[..., dict], monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclasses.dataclass
    class Properties:
        name: str = "A card"
        major: int = 9
        minor: int = 0

    monkeypatch.setattr(doctor, "cards", lambda: ())
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: Properties())
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (3 * GIB, 4 * GIB))
    (card,) = examined(Machine(64 * GIB, 20 * GIB))["cards"]
    assert (card["name"], card["driver"], card["capability"], card["memory_free_gib"]) == ("A card", None, "9.0", 3.0)


def test_what_is_kept_on_the_disk_is_counted(
    examined: Callable[..., dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "CACHE", tmp_path / "cache")
    open_caches(1).prompts.add("key", 2_500_000, lambda path: path.write_bytes(bytes(2_500_000)))
    found = examined(Machine(64 * GIB, 20 * GIB))
    assert found["cached_bytes"] == {"prompts": 2_500_000, "pictures": 0, "weights": 0}
    assert any(line.endswith(": 2.5 MB") for line in report_lines(found, Translator("en")))


def test_without_a_card_nothing_is_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "cards", lambda: ())
    have_memory(monkeypatch, 128 * GIB)
    found = examine(Models(tmp_path), device="cpu")
    assert (found["precision"], found["locks_memory"], found["cards"]) == ("float32", None, [])
    assert {reason["key"] for reason in found["precision_rejected"].values()} == {"only_asked_for"}


def test_what_fits_without_a_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a computer of 24 GiB without a card the doctor said "none fits", although 8 bits fit when they are chosen."""
    monkeypatch.setattr(doctor, "cards", lambda: ())
    have_memory(monkeypatch, 38 * GIB)
    found = examine(Models(tmp_path), device="cpu")
    reasons = {name: reason["key"] for name, reason in found["precision_rejected"].items()}
    assert found["precision"] is None
    assert reasons["float32"] == "too_large_memory" and reasons["int8"] == "only_asked_for"
    fitting = ", ".join(name for name, key in reasons.items() if key == "only_asked_for")
    for language in LANGUAGES:
        t = Translator(language)
        text = "\n".join(report_lines(found, t))
        assert t("doctor.only_chosen", names=fitting) in text and t("doctor.nothing_fits") not in text
    have_memory(monkeypatch, 4 * GIB)
    found = examine(Models(tmp_path), device="cpu")
    assert {reason["key"] for reason in found["precision_rejected"].values()} == {"too_large_memory"}
    assert Translator("en")("doctor.nothing_fits") in "\n".join(report_lines(found, Translator("en")))
