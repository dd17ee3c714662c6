"""Can this machine do it at all, and how? Said before anything is loaded, with figures, instead of a process that the system
ends. Without torch, so that a plan can be printed with the same figures."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from diffusers_helper.memory.budget import Budget
from eichi_utils.files.latent_header import CELL
from eichi_utils.models.hub import ModelFiles, Place
from eichi_utils.models.sizes import ModelSize, TransformerSize
from eichi_utils.problems import Problem, UserError
from eichi_utils.requests.plan import Plan, Section

CGROUP = Path("/sys/fs/cgroup")
# GiB of a card that are left to others where nobody says anything else, and at most.
RESERVE_GB, MOST_RESERVED = 0.5, 80
# Of a picture, 729, and of a prompt, at most 256.
CONTEXT_TOKENS = 985
# Bytes of a number: on a card everything is computed in 16 bits, on a CPU in 32 unless told otherwise.
CARD_BYTES, HOST_BYTES = 2, 4
EIGHT_BITS = ("int8", "float8")
# Of the computer's memory, beside the weights, while a network runs on a card: torch, its driver, the compiler, the buffers
# that weights pass through and the smaller networks. benchmarks.film grew by 2.8 GiB more than its weights.
WORKING_BYTES = 3 * 2**30
# Compute capability of the first cards that multiply 8-bit floating-point numbers.
FLOAT8_CAPABILITY = (8, 9)
# Segments and film stand side by side, each with about a tenth of a byte for a pixel at a usual CRF and up to 1.5 at the
# lowest; with some room the promise holds for noise too.
BYTES_PER_PIXEL, LOSSLESS_BYTES_PER_PIXEL, LOSSLESS_CRF = 1.0, 4.0, 10
SPARE_BYTES = 16 * 2**20
# Cells by which the decoder's tiles overlap.
TILE_OVERLAP = 8


@dataclass(frozen=True)
class Needs:
    """Bytes of the computer's memory, and of the card's, computing included; 0 without a card."""

    host: int
    card: int


@dataclass(frozen=True)
class Machine:
    """What can be had: bytes of memory and of the card, None without one. wide, narrow: the precisions that "auto" means."""

    host: int
    card: int | None = None
    wide: str = "bfloat16"
    narrow: str = "int8"


@dataclass(frozen=True)
class Way:
    """How a film is made: its precision, and what that needs. instead: what 16 bits would have needed, where they do not fit.

    chosen: whether there was a choice.
    """

    precision: str
    needs: Needs
    instead: Needs | None = None
    chosen: bool = False


def needs(size: ModelSize, precision: str, tokens: int, *, on_card: bool) -> Needs:
    """The most that one of the stages takes; they follow each other, and what was lent can be dropped. precision: of the
    transformer, as in a request. tokens: of a step."""
    every = stages(size, precision, tokens, on_card=on_card).values()
    working = WORKING_BYTES if on_card else 0
    return Needs(max(stage.host for stage in every) + working, max(stage.card for stage in every))


def stages(size: ModelSize, precision: str, tokens: int, *, on_card: bool) -> dict[str, Needs]:
    """What a film remembers is counted to the computer's memory, because it lies there where the card has no room for it."""
    own = CARD_BYTES if on_card else HOST_BYTES
    sample = transformer_needs(size.transformer, precision, tokens, on_card=on_card)
    found = {"sample": Needs(sample.host + size.film * own, sample.card)}
    for name, part in (("text", size.text), ("vision", size.vision), ("vae", size.vae)):
        host = part.whole - part.mapped if on_card else part.whole
        found[name] = Needs(host * own, (part.card + part.work) * own if on_card else 0)
    return found


def transformer_needs(size: TransformerSize, precision: str, tokens: int, *, on_card: bool) -> Needs:
    """The least that sampling takes. What only tables are made of stays in the files, beside a card and where they have its
    type."""
    wide = CARD_BYTES if on_card or precision == "bfloat16" else HOST_BYTES
    narrow = 1 if precision in EIGHT_BITS else wide
    if not on_card:
        return Needs((size.whole - size.linear) * wide + size.linear * narrow, 0)
    largest = max(size.block_linear * narrow + size.block_rest * wide, size.job * wide)
    work = Budget(0).estimate(tokens, size.width, wide)
    return Needs(size.linear * narrow + (size.rest + size.copied) * wide, size.always * wide + 2 * largest + work)


def choose(size: ModelSize, precision: str, tokens: int, machine: Machine) -> Way:
    """With "auto" on a card 16 bits where they fit, else 8; otherwise what was asked for. Without a card "auto" stays as it is.

    Raises UserError where nothing fits.
    """
    on_card = machine.card is not None
    free = on_card and precision == "auto"
    names = (machine.wide, machine.narrow) if free else (precision,)
    ways = [Way(name, needs(size, name, tokens, on_card=on_card)) for name in names]
    for way in ways:
        if not any(too_little(way, machine)):
            return Way(way.precision, way.needs, ways[0].needs if way is not ways[0] else None, free)
    raise UserError(too_little(ways[-1], machine))


def too_little(way: Way, machine: Machine) -> Iterator[Problem]:
    """What is too small for it."""
    if way.needs.host > machine.host:
        values = {"needed": gib(way.needs.host), "free": gib(machine.host)}
        narrow = way.precision in EIGHT_BITS
        yield Problem("", "too_little_memory_narrow", values) if narrow else Problem("", "too_little_memory", values)
    if machine.card is not None and way.needs.card > machine.card:
        yield Problem("", "too_little_card_memory", {"needed": gib(way.needs.card), "free": gib(machine.card)})


def figures(way: Way, machine: Machine, disk: int, disk_free: int) -> dict[str, Any]:
    """What a way needs and what there is, in GiB, for sentences; those of a card are "" without one."""
    card = way.needs.card if machine.card is not None else None
    instead = way.instead or Needs(0, 0)
    return {
        "precision": way.precision,
        "memory": gib(way.needs.host),
        "memory_free": gib(machine.host),
        "card": gib(card) if card is not None else "",
        "card_free": gib(machine.card) if card is not None else "",
        "disk": gib(disk),
        "disk_free": gib(disk_free),
        "wide_memory": gib(instead.host),
        "wide_card": gib(instead.card),
    }


def step_tokens(section: Section, height: int, width: int) -> int:
    """About how many tokens a step has; height, width: of the latents."""
    clean = sum(len(ref.at) for ref in section.clean)
    coarse = sum(len(ref.at) / part for ref, part in ((section.clean_2x, 8), (section.clean_4x, 64)) if ref)
    return int((len(section.frames) + clean + coarse) * (height // 2) * (width // 2)) + CONTEXT_TOKENS


def most_tokens(plan: Plan, height: int, width: int) -> int:
    """Of a step of the plan's largest section; height, width: of the latents."""
    return max(step_tokens(section, height, width) for section in plan.samplings)


def film_cells(plan: Plan, height: int, width: int, tile: int | None = None) -> int:
    """Of a latent, where the film is decoded in order and remembers something for each of them, else 0.

    height, width: in cells. tile: side in pixels of the tiles that are asked for, None for whole frames where they fit. Tiles
    overlap, and each remembers all of its own.
    """
    side = (tile or 0) // CELL
    again = (side / (side - TILE_OVERLAP)) ** 2 if TILE_OVERLAP < side < max(height, width) else 1.0
    return int(height * width * again) if plan.vae_cache else 0


def output_bytes(frames: int, height: int, width: int, crf: int) -> int:
    """Disk space to ask for before films of so many frames and pixels are begun."""
    return SPARE_BYTES + int(frames * height * width * film_bytes_per_pixel(crf))


def film_bytes_per_pixel(crf: int) -> float:
    return BYTES_PER_PIXEL if crf >= LOSSLESS_CRF else LOSSLESS_BYTES_PER_PIXEL


def download_bytes(files: ModelFiles, missing: Sequence[Place]) -> int:
    """Return about how many bytes are still to be downloaded for these components.

    What is there of them already is left out: their own files, and what interrupted downloads of their repositories left.
    Repositories hold other models too, whose files help nobody here.
    """
    needed = sum(max(0, int(place.gigabytes * 1e9) - files.present_bytes(place)) for place in missing)
    return max(0, needed - sum(files.interrupted_bytes(repository) for repository in {place.repository for place in missing}))


def download_problems(files: ModelFiles, missing: Sequence[Place]) -> tuple[Problem, ...]:
    """Whether the disk has room for what is missing."""
    needed, free = download_bytes(files, missing), disk_free(files.cache)
    if needed <= free:
        return ()
    values = {"folder": str(files.cache), "needed": gib(needed), "free": gib(free)}
    return (Problem("models", "too_little_disk", values),)


def disk_free(folder: Path) -> int:
    """Bytes; a folder that does not exist yet is judged by the nearest one above it that does."""
    place = folder.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    return shutil.disk_usage(place).free


def narrow_format(capability: tuple[int, int]) -> str:
    """The 8-bit format for a card: multiplied as it is where there are units for it, else the more exact one."""
    return "float8" if capability >= FLOAT8_CAPABILITY else "int8"


def host_available(cgroup: Path = CGROUP) -> int:
    """Bytes that programs can still have, swap included, and no more than the container is allowed."""
    there = psutil.virtual_memory().available + psutil.swap_memory().free
    try:
        limit = (cgroup / "memory.max").read_text().strip()
        used = int((cgroup / "memory.current").read_text())
        cached = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
        return there if limit == "max" else min(there, int(limit) - used + int(cached.get("file", 0)))
    except (OSError, ValueError):
        return there


def own_memory() -> int:
    """Bytes that this process has taken; pages of files are the system's."""
    info = psutil.Process().memory_info()
    return getattr(info, "private", info.rss - getattr(info, "shared", 0))


def gib(size: int) -> str:
    """For reading; a little is not nothing, and less than nothing is."""
    return f"{max(size / 2**30, 0.1 if size > 0 else 0.0):.1f}"
