"""What a run needs, what this machine has, and how the one is made with the other: decided once, before anything is loaded.

The sentence before a run, the plan that is printed and the pool that lends networks all go by `choose`. Without torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from diffusers_helper.memory.budget import Budget
from eichi_utils.files.latent_header import CELL
from eichi_utils.files.pictures import fitted_size
from eichi_utils.models.disk_space import download_bytes, download_problems, gib, made_bytes
from eichi_utils.models.host_memory import HostMemory, host_memory, own_memory
from eichi_utils.models.hub import ModelFiles, Place
from eichi_utils.models.lora_fit import fit_problems, size_with
from eichi_utils.models.sizes import ModelSize, TransformerSize, model_size, with_film
from eichi_utils.problems import Problem, UserError
from eichi_utils.requests.plan import Plan, Section
from eichi_utils.requests.request import Request

# GiB of a card that are left to others where nobody says anything else, and at most.
RESERVE_GB, MOST_RESERVED = 0.5, 80
# Of a picture, 729, and of a prompt, at most 256.
CONTEXT_TOKENS = 985
# Bytes of a number: on a card everything is computed in 16 bits, on a CPU in 32 unless told otherwise.
CARD_BYTES, HOST_BYTES = 2, 4
EIGHT_BITS = ("int8", "float8")
# Of the computer's memory, beside networks, while one runs on a card: torch, its driver, the compiler and the buffers that
# weights pass through. benchmarks.film grew by 2.8 GiB more than the transformer's weights, of which the VAE was 0.46.
WORKING_BYTES = 5 * 2**29
# Networks that are lent by turns, once in every section.
TOGETHER = MappingProxyType({"transformer": ("vae",), "vae": ("transformer",)})
# In the order of what loading them takes. The text encoder never stays: it is large, and only prompts need it.
DEAREST = ("transformer", "vae", "image_encoder")
# Of the computer's memory, what weights may lock; more starves the system.
LOCKED_SHARE = 0.5
# Compute capability of the first cards that multiply 8-bit floating-point numbers.
FLOAT8_CAPABILITY = (8, 9)
# Cells by which the decoder's tiles overlap.
TILE_OVERLAP = 8


@dataclass(frozen=True)
class Needs:
    """Bytes of the computer's memory, and of the card's, computing included; 0 without a card."""

    host: int
    card: int


@dataclass(frozen=True)
class Machine:
    """What can be had: bytes of memory and of the card, None without one. wide, narrow: the precisions that "auto" means.

    total: bytes of memory that the machine has, or that this process may ever have; 0 counts as `host`.
    """

    host: int
    card: int | None = None
    wide: str = "bfloat16"
    narrow: str = "int8"
    total: int = 0


class NetworkMemory:
    """What networks of this process can have of the computer's memory.

    What the process took since this was made is theirs: weights, and what the first use of a card takes.
    """

    def __init__(self) -> None:
        self._began = own_memory()

    def now(self) -> HostMemory:
        """Return the memory that there is for networks now, with what they hold already."""
        found = host_memory()
        return replace(found, available=found.available + max(0, own_memory() - self._began))


@dataclass(frozen=True)
class ExecutionChoice:
    """How a film is made: its precision, and what that needs. instead: what 16 bits would have needed, where they do not fit.

    chosen: whether there was a choice. beside: of each stage's network, those that stay in memory while it is lent; the others
    are dropped before it is loaded. locked: bytes of weights that may be locked in memory. peak: bytes of the computer's memory
    that the whole takes with all that stays; at least `needs.host`.
    """

    precision: str
    needs: Needs
    instead: Needs | None = None
    chosen: bool = False
    beside: Mapping[str, frozenset[str]] = field(default_factory=dict)
    locked: int = 0
    peak: int = 0


def needs(size: ModelSize, precision: str, tokens: int, *, on_card: bool) -> Needs:
    """Return the least with which every network of a film is loaded once. precision: of the transformer, as in a request.
    tokens: of a step.

    Stages follow each other, and what was lent can be dropped; but every section is sampled and then decoded, so the
    transformer and the VAE are in memory together. Loading 26 GB anew for each section takes longer than sampling it.
    """
    every = stages(size, precision, tokens, on_card=on_card)
    together = {stage: sum(every[name].host for name in (stage, *TOGETHER.get(stage, ()))) for stage in every}
    host = max(size_there + beside_networks(size, stage, on_card=on_card) for stage, size_there in together.items())
    return Needs(host, max(stage.card for stage in every.values()))


def stages(size: ModelSize, precision: str, tokens: int, *, on_card: bool) -> dict[str, Needs]:
    """Return what the network of each stage of a film takes, by its name in the pool."""
    own = CARD_BYTES if on_card else HOST_BYTES
    found = {"transformer": transformer_needs(size.transformer, precision, tokens, on_card=on_card)}
    for name, part in (("text_encoder", size.text), ("image_encoder", size.vision), ("vae", size.vae)):
        host = part.whole - part.mapped if on_card else part.whole
        found[name] = Needs(host * own, (part.card + part.work) * own if on_card else 0)
    return found


def beside_networks(size: ModelSize, stage: str, *, on_card: bool) -> int:
    """Return the bytes of the computer's memory that a stage takes beside networks.

    What a film remembers while it is sampled and decoded counts too: it lies there where the card has no room for it.
    """
    film = size.film * (CARD_BYTES if on_card else HOST_BYTES) if stage in TOGETHER else 0
    return film + (WORKING_BYTES if on_card else 0)


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


@dataclass(frozen=True)
class Requirements:
    """What a request needs on a machine. disk: bytes for what it makes and what has to be downloaded, which is `missing`.
    problems: what keeps it from being made; then `choice` is what comes nearest."""

    machine: Machine
    choice: ExecutionChoice
    disk: int
    missing: tuple[Place, ...] = ()
    problems: tuple[Problem, ...] = ()


def files_problems(request: Request, files: ModelFiles) -> tuple[Problem, ...]:
    """Return why these model files cannot carry out a request, and which of its LoRA files do not fit them."""
    return (*files.problems(request), *fit_problems(request.loras, files, request.checkpoint))


def requirements(request: Request, plan: Plan, files: ModelFiles, machine: Machine) -> Requirements:
    """Return how a request is carried out on this machine with model files that can."""
    height, width = fitted_size(request.image, request.size)
    cells = film_cells(plan, height // CELL, width // CELL, request.vae_tile)
    size = with_film(model_size(files, plan.checkpoint), cells)
    size = size_with(size, request.loras, request.merge_loras, files, plan.checkpoint)
    tokens = most_tokens(plan, height // CELL, width // CELL)
    missing = tuple(files.missing(plan.checkpoint))
    disk = made_bytes(request, plan, height, width) + download_bytes(files, missing)
    problems = download_problems(files, missing)
    try:
        return Requirements(machine, choose(size, request.precision, tokens, machine), disk, missing, problems)
    except UserError as error:
        on_card = machine.card is not None
        narrowest = machine.narrow if on_card and request.precision == "auto" else request.precision
        nearest = ExecutionChoice(narrowest, needs(size, narrowest, tokens, on_card=on_card))
        return Requirements(machine, nearest, disk, missing, error.problems + problems)


def choose(size: ModelSize, precision: str, tokens: int, machine: Machine) -> ExecutionChoice:
    """Return how a film is made here: with "auto" on a card 16 bits where they fit, else 8; otherwise what was asked for.

    Without a card "auto" stays as it is. Raises UserError where nothing fits.
    """
    on_card = machine.card is not None
    free = on_card and precision == "auto"
    names = (machine.wide, machine.narrow) if free else (precision,)
    choices = [ExecutionChoice(name, needs(size, name, tokens, on_card=on_card), chosen=free) for name in names]
    for choice in choices:
        if not any(too_little(choice, machine)):
            found = replace(choice, instead=None if choice is choices[0] else choices[0].needs)
            return _with_residents(found, size, tokens, machine)
    raise UserError(too_little(choices[-1], machine))


def _with_residents(choice: ExecutionChoice, size: ModelSize, tokens: int, machine: Machine) -> ExecutionChoice:
    """Return the choice with what stays in memory beside each network, as far as there is room."""
    on_card = machine.card is not None
    every = {name: stage.host for name, stage in stages(size, choice.precision, tokens, on_card=on_card).items()}
    beside, peak = {}, 0
    for lent, own in every.items():
        taken, stay = own + beside_networks(size, lent, on_card=on_card), set()
        # What has to stay comes first, and then what takes longest to load.
        for other in (*TOGETHER.get(lent, ()), *DEAREST):
            if other != lent and other not in stay and taken + every[other] <= machine.host:
                stay.add(other)
                taken += every[other]
        beside[lent] = frozenset(stay)
        peak = max(peak, taken)
    return replace(choice, beside=MappingProxyType(beside), locked=lockable(machine.total or machine.host), peak=peak)


def lockable(total: int) -> int:
    """Return how many bytes of weights may be locked where a process may have so many in all."""
    return int(LOCKED_SHARE * total)


def too_little(choice: ExecutionChoice, machine: Machine) -> Iterator[Problem]:
    """What is too small for it."""
    if choice.needs.host > machine.host:
        values = {"needed": gib(choice.needs.host), "free": gib(machine.host)}
        narrow = choice.precision in EIGHT_BITS
        yield Problem("", "too_little_memory_narrow", values) if narrow else Problem("", "too_little_memory", values)
    if machine.card is not None and choice.needs.card > machine.card:
        yield Problem("", "too_little_card_memory", {"needed": gib(choice.needs.card), "free": gib(machine.card)})


def figures(needed: Requirements, disk_free: int) -> dict[str, Any]:
    """Return what is needed and what there is, in GiB, for sentences; those of a card are "" without one."""
    choice, machine = needed.choice, needed.machine
    instead = choice.instead or Needs(0, 0)
    return {
        "precision": choice.precision,
        "memory": gib(choice.needs.host),
        "memory_free": gib(machine.host),
        "card": gib(choice.needs.card) if machine.card is not None else "",
        "card_free": gib(machine.card) if machine.card is not None else "",
        "disk": gib(needed.disk),
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


def narrow_format(capability: tuple[int, int]) -> str:
    """The 8-bit format for a card: multiplied as it is where there are units for it, else the more exact one."""
    return "float8" if capability >= FLOAT8_CAPABILITY else "int8"
