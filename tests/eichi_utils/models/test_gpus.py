"""Test the list of the driver's cards without a card: NVML is replaced."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pynvml
import pytest

from eichi_utils.models import gpus
from eichi_utils.models.catalogue import Models
from eichi_utils.models.gpus import Card, cards, visible
from eichi_utils.models.requirements import narrow_format
from eichi_utils.render.engine import Engine

GIB = 2**30
ADA = Card("NVIDIA GeForce RTX 4090", "580.95", (8, 9), 24 * GIB, 23 * GIB, "GPU-8d2e1111")
TURING = Card("Tesla T4", "580.95", (7, 5), 15 * GIB, 14 * GIB, "GPU-8f000000")


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> list[Card | None]:
    """Simulate a driver and return the list of its cards; None is one that has fallen off the bus."""
    found: list[Card | None] = [ADA, None, TURING]

    def handle(index: int) -> Card:
        if (card := found[index]) is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
        return card

    stand_ins = {
        "Init": lambda: None,
        "Shutdown": lambda: None,
        "SystemGetDriverVersion": lambda: "580.95",
        "DeviceGetCount": lambda: len(found),
        "DeviceGetHandleByIndex": handle,
        "DeviceGetMemoryInfo": lambda card: SimpleNamespace(total=card.total, free=card.free),
        "DeviceGetName": lambda card: card.name,
        "DeviceGetCudaComputeCapability": lambda card: list(card.capability),
        "DeviceGetUUID": lambda card: card.uuid,
    }
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(pynvml, f"nvml{name}", stand_in)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return found


def test_cards_as_the_driver_describes_them(driver: list, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cards are read from the driver's description; a lost card is left out and does not hide the others."""
    assert cards() == (ADA, TURING)
    assert [narrow_format(card.capability) for card in cards()] == ["float8", "int8"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert cards() == (TURING,)


def test_cuda_counts_as_the_driver_does(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """CUDA's own order begins with the fastest card: what was checked was another one's memory."""
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "FASTEST_FIRST")
    engine = Engine(Models(tmp_path), tmp_path / "out", device="cpu")
    assert engine.pool and os.environ["CUDA_DEVICE_ORDER"] == "FASTEST_FIRST"
    monkeypatch.delenv("CUDA_DEVICE_ORDER")
    engine = Engine(Models(tmp_path), tmp_path / "out", device="cpu")
    assert engine.pool and os.environ["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


def test_no_driver_means_no_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(gpus.pynvml, "nvmlInit", missing)
    assert cards() == ()


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (None, (ADA, TURING)),
        ("", ()),
        ("1", (TURING,)),
        ("1,0", (TURING, ADA)),
        ("-1", ()),
        ("0,7,1", (ADA,)),
        ("GPU-8f", (TURING,)),
        ("GPU-8d2e1111, 1", (ADA, TURING)),
        ("GPU-8", ()),
    ],
)
def test_cards_that_the_variable_leaves(wanted: str | None, expected: tuple[Card, ...]) -> None:
    """CUDA_VISIBLE_DEVICES is read as CUDA reads it: the first word that names no card, or several, ends the list."""
    assert visible((ADA, TURING), wanted) == expected
