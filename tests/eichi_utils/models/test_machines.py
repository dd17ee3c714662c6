"""Test common machines: what is chosen for each or why it is refused, and that the pool then does what was chosen."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from diffusers_helper.memory import memory
from diffusers_helper.models.execution import Execution
from eichi_utils.models import loaded_networks
from eichi_utils.models import pool as pool_module
from eichi_utils.models.pool import ModelPool
from eichi_utils.models.requirements import EIGHT_BITS, WORKING_BYTES, ExecutionChoice, Machine, choose, stages
from eichi_utils.models.sizes import PUBLISHED
from eichi_utils.problems import UserError
from tests.eichi_utils.helpers import say_everything
from tests.fake_device import FakeDevice

GIB = 2**30
# Tokens of a section of 640 x 608.
TOKENS = 18_300
# GiB.
MEMORY = (12, 16, 24, 32, 40, 64, 128)
CARDS = (None, 6, 8, 12, 16, 24, 80)
# GiB that the system and a browser have taken: of the memory, and of a card together with the usual reserve.
TAKEN, CARD_TAKEN = {"Linux": 1.5, "Windows": 3.0}, 1.0
PRECISIONS = ("auto", "bfloat16", "int8", "float8")
TIGHT = "memory (narrow)"
REFUSED = {"too_little_memory": "memory", "too_little_memory_narrow": TIGHT, "too_little_card_memory": "card"}
# (memory, system) -> the choice for each of PRECISIONS without a card, and then with one; it is the same for every card from
# 6 GiB on, because weights that have no room there pass through it.
EXPECTED = {
    (12, "Linux"): ("memory", "memory", TIGHT, TIGHT, TIGHT, "memory", TIGHT, TIGHT),
    (16, "Linux"): ("memory", "memory", TIGHT, TIGHT, "float8", "memory", "int8", "float8"),
    (24, "Linux"): ("memory", "memory", TIGHT, TIGHT, "bfloat16", "bfloat16", "int8", "float8"),
    (32, "Linux"): ("memory", "bfloat16", "int8", "float8", "bfloat16", "bfloat16", "int8", "float8"),
    (64, "Linux"): ("auto", "bfloat16", "int8", "float8", "bfloat16", "bfloat16", "int8", "float8"),
}
EXPECTED |= {(40, "Linux"): EXPECTED[32, "Linux"], (128, "Linux"): EXPECTED[64, "Linux"]}
EXPECTED |= {(size, "Windows"): EXPECTED[size, "Linux"] for size in MEMORY}


def machine(size: int, system: str, card: int | None) -> Machine:
    free = None if card is None else int((card - CARD_TAKEN) * GIB)
    return Machine(int((size - TAKEN[system]) * GIB), free, narrow="float8", total=size * GIB)


def outcome(precision: str, here: Machine) -> tuple[str, ExecutionChoice | None]:
    """Return the chosen precision and the choice, or the reason why there is none and None."""
    try:
        choice = choose(PUBLISHED, precision, TOKENS, here)
    except UserError as error:
        (problem,) = say_everything(error.problems)
        return REFUSED[problem.key], None
    return choice.precision, choice


class CountedWeights:
    """Stand in for the streamer: count the card memory that it may take, and move nothing."""

    job_bytes = 0

    def __init__(self, card: FakeDevice, size: int):
        self.card_bytes, self.step_bytes = 0, size

    def fit(self, room: int) -> None:
        self.card_bytes = min(room, self.step_bytes)

    def lock(self, most: int) -> None:
        self.locked = min(most, self.step_bytes)

    def leave(self, short: int | None) -> None:
        self.card_bytes = 0

    def close(self) -> None:
        pass

    def job(self):
        return nullcontext()


class Weights(nn.Module):
    """Stand in for a network with `size` bytes of weights that are never written."""

    def __init__(self, size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size, dtype=torch.uint8, device="meta"), requires_grad=False)
        self.config = SimpleNamespace(dim=3072)

    def weight_groups(self) -> int:
        return self.weight.numel()

    def running_with(self, execution: Execution) -> Weights:
        return self


class WatchedPool:
    """Run the real pool with weights that are only sizes. loads: counts. peak: of the computer's memory, in bytes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, card: int | None):
        device = None if card is None else FakeDevice(capacity=int((card - CARD_TAKEN) * GIB))
        self.pool = ModelPool(device="cpu", card=device, reserve_gb=0)
        if card is not None:
            types = {"transformer": torch.bfloat16, "encoder": torch.float16}
            self.pool.placement = dataclasses.replace(self.pool.placement, **types)
        self.loads, self.peak, self.sizes = Counter(), 0, {}
        for name in ("_load_text", "_load_vision", "_folder"):
            monkeypatch.setattr(self.pool, name, getattr(self, name))
        monkeypatch.setattr(self.pool, "_load_module", lambda load, folder, dtype: self.load(folder.name))
        for name, stand_in in {
            "PackedTransformer": Weights,
            "between_layers": lambda *_: nullcontext(),
            "lent_while_called": lambda *_: nullcontext(),
            "language_layers": lambda _: (),
            "text_weight_groups": lambda encoders: self.sizes["text_encoder"],
            "bind": lambda net, loras, bound: (),
            "choose_product": lambda device: None,
        }.items():
            monkeypatch.setattr(pool_module, name, stand_in)
        monkeypatch.setattr(loaded_networks, "Streamer", CountedWeights)
        monkeypatch.setattr(memory, "move", lambda module, device: 0)

    def _folder(self, name: str) -> Path:
        return Path("transformer" if name == "framepack" else name)

    def load(self, name: str) -> tuple[Weights, tuple[nn.Module, ...]]:
        self.loads[name] += 1
        there = sum(self.sizes[other] for other in self.pool.networks.loaded)
        self.peak = max(self.peak, there + self.sizes[name])
        weights = Weights(self.sizes[name])
        return weights, (weights,)

    def _load_text(self) -> tuple[SimpleNamespace, tuple[nn.Module, ...]]:
        return SimpleNamespace(llama=None, clip=None), self.load("text_encoder")[1]

    def _load_vision(self) -> tuple[SimpleNamespace, tuple[nn.Module, ...]]:
        return SimpleNamespace(model=None), self.load("image_encoder")[1]

    def film(self, choice: ExecutionChoice, sections: int) -> None:
        """Lend the networks that a film needs, in its order."""
        self.sizes = {
            name: need.host
            for name, need in stages(PUBLISHED, choice.precision, TOKENS, on_card=self.pool.card is not None).items()
        }
        self.pool.follow_choice(choice)
        for lend in (self.pool.text, self.pool.vision, self.pool.vae):
            with lend():
                pass
        for _ in range(sections):
            with self.pool.transformer("framepack", choice.precision, tokens=TOKENS):
                pass
            with self.pool.vae():
                pass


@contextmanager
def with_previews(card: int | None) -> Iterator[WatchedPool]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield WatchedPool(monkeypatch, card)


@pytest.mark.parametrize(("size", "system"), [*EXPECTED])
def test_what_is_chosen_or_refused(size: int, system: str) -> None:
    """Pool and preflight judged the same machine by different rules, and Windows had 16 GiB whatever it had."""
    for card in CARDS:
        found = tuple(outcome(precision, machine(size, system, card))[0] for precision in PRECISIONS)
        expected = EXPECTED[size, system]
        assert found == (expected[:4] if card is None else expected[4:]), card


def test_a_card_below_the_least_is_refused() -> None:
    assert outcome("auto", machine(64, "Linux", 4))[0] == "card"


@pytest.mark.slow
@pytest.mark.parametrize("system", TAKEN)
@pytest.mark.parametrize("card", CARDS)
def test_every_network_is_loaded_once(card: int | None, system: str) -> None:
    """The network of 26 GB was read again for every section on a machine with 32 GiB, and on any with Windows.

    What the whole takes is what was said before, and no more than there is; a second film loads what had to make room for its
    prompt, and what could not stay.
    """
    tried = 0
    for size, precision in product(MEMORY, PRECISIONS):
        here = machine(size, system, card)
        _, choice = outcome(precision, here)
        if choice is None:
            continue
        tried += 1
        beside = WORKING_BYTES if card else 0
        with with_previews(card) as it:
            it.film(choice, sections=4)
            assert it.loads == dict.fromkeys(("text_encoder", "image_encoder", "vae", "transformer"), 1)
            assert it.peak + beside <= choice.peak <= here.host and choice.needs.host <= choice.peak
            it.film(choice, sections=4)
            assert it.loads["transformer"] + it.loads["vae"] <= 4 and it.loads["text_encoder"] == 2
            assert it.peak + beside <= choice.peak
            if card:
                # The text encoder stays in its files there, so that nothing has to make room for it.
                assert it.loads["transformer"] == it.loads["vae"] == 1
    assert tried > 8


def test_what_stays_depends_on_the_room() -> None:
    """Without a card the text encoder takes 28 GiB: on 64 GiB the transformer leaves for it, and on 128 GiB the transformer
    stays."""
    tight, roomy = (outcome("auto", machine(size, "Linux", None))[1] for size in (64, 128))
    assert "transformer" not in tight.beside["text_encoder"] and "transformer" in roomy.beside["text_encoder"]
    assert all("vae" in choice.beside["transformer"] for choice in (tight, roomy))
    assert not any("text_encoder" in names for choice in (tight, roomy) for names in choice.beside.values())


@pytest.mark.parametrize("size", MEMORY)
def test_half_of_the_memory_may_be_locked(size: int) -> None:
    """Half of the memory that the process may ever have, which may be less than the machine's, may be locked."""
    here = machine(size, "Linux", 24)
    choice = next((choice for precision in EIGHT_BITS if (choice := outcome(precision, here)[1])), None)
    assert choice is None or choice.locked == size * GIB // 2
