"""What is too small is said in figures before anything is loaded; what is enough is not refused."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
import torch

from diffusers_helper.models.transformer import PackedTransformer, TransformerConfig
from diffusers_helper.streaming import Streamer
from eichi_utils import models
from eichi_utils.models import ModelPool
from eichi_utils.preflight import host_available, needs, problems
from eichi_utils.problems import UserError
from tests.eichi_utils.helpers import carry_out, found, request, say_everything
from tests.fake_device import FakeDevice

GIB = 2**30


@pytest.fixture(scope="module")
def full() -> PackedTransformer:
    with torch.device("meta"):
        return PackedTransformer(TransformerConfig())


def test_what_the_published_model_needs(full: PackedTransformer) -> None:
    """18.1 GB in 16 bits, 9.1 in 8; of the card about a gigabyte; on a CPU 51 GB in 32 bits."""
    wide, narrow = (needs(full, torch.bfloat16, storage, on_card=True) for storage in (None, "int8"))
    assert round(wide.host / 1e9, 1) == 18.1 and round(narrow.host / 1e9, 1) == 9.1
    assert 0.9 * GIB < narrow.card <= wide.card < 1.4 * GIB
    assert needs(full, torch.float32, None, on_card=False).card == 0
    assert round(needs(full, torch.float32, None, on_card=False).host / 1e9) == 51


def test_six_gigabytes_are_enough_for_the_card(full: PackedTransformer) -> None:
    needed, work = needs(full, torch.bfloat16, None, on_card=True), int(2.5 * GIB)
    assert list(problems(needed, work, 20 * GIB, 6 * GIB)) == []
    found_problems = say_everything(problems(needed, work, 16 * GIB, 3 * GIB))
    assert [problem.key for problem in found_problems] == ["too_little_memory", "too_little_card_memory"]
    assert found_problems[0].values == {"needed": "16.9", "free": "16.0"}


def test_the_figures_are_those_of_streaming(checkpoint: Path) -> None:
    with ModelPool(checkpoint, device="cpu").transformer("framepack") as net:
        needed = needs(net, torch.float32, None, on_card=True)
        streamer = Streamer(FakeDevice(), net.parts())
        assert needed.card <= max(streamer.least_bytes, streamer.job_bytes + streamer.least_bytes)


def test_a_card_too_small_ends_a_run_before_it_works(checkpoint: Path, pictures: list[str], tmp_path: Path) -> None:
    card = FakeDevice(capacity=1000)
    pool = ModelPool(checkpoint, device="cpu", card=card, reserve_gb=0)
    with pytest.raises(UserError) as error:
        carry_out(request("single", pictures[0]), pool, tmp_path / "out")
    assert found(error.value.problems) == {("", "too_little_card_memory")}
    assert pool._loaded == {} and card.allocations == 0


def test_too_little_memory(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is loaded already is not needed a second time."""
    pool = ModelPool(checkpoint, device="cpu")
    monkeypatch.setattr(models, "host_available", lambda: 1000)
    with pytest.raises(UserError) as error:
        pool.preflight("framepack", "auto", 100)
    assert found(error.value.problems) == {("", "too_little_memory")}
    with pool.transformer("framepack"):
        pass
    pool.preflight("framepack", "auto", 100)


@pytest.mark.parametrize(("limit", "expected"), [("max", None), ("5000000", 5_000_000 - 3_000_000 + 1_000_000)])
def test_a_container_may_have_less(limit: str, expected: int | None, tmp_path: Path) -> None:
    """Files in the container's cache count as used there, though the system gives them up when it must."""
    (tmp_path / "memory.max").write_text(limit + "\n")
    (tmp_path / "memory.current").write_text("3000000\n")
    (tmp_path / "memory.stat").write_text("anon 2000000\nfile 1000000\n")
    if expected is None:
        assert host_available(tmp_path) > psutil.virtual_memory().total // 50
    else:
        assert host_available(tmp_path) == expected
    assert host_available(tmp_path / "none") > 0
