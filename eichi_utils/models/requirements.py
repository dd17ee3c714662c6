"""Compare what a run needs with what this machine has, and choose its precision, before anything is loaded; without torch.

The forecast before a run, the printed plan and the pool that lends networks all use `choose`, so that they agree.
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

# GiB of a card that are left to other programs, by default and at most.
RESERVE_GB, MOST_RESERVED = 0.5, 80
# Tokens of the start picture, 729, and of a prompt, at most 256.
CONTEXT_TOKENS = 985
# Bytes of a number in computing: on a card always 16 bits, on a CPU 32 unless a request says otherwise.
CARD_BYTES, HOST_BYTES = 2, 4
EIGHT_BITS = ("int8", "float8")
# Bytes of the computer's memory that are taken beside networks while one runs on a card: by torch, its driver, the compiler and
# the buffers that weights are streamed through. benchmarks.film grew by 2.8 GiB more than the transformer's weights, of which
# the VAE was 0.46.
WORKING_BYTES = 5 * 2**29
# Networks that are lent alternately, once in every section, and so must be in memory together.
TOGETHER = MappingProxyType({"transformer": ("vae",), "vae": ("transformer",)})
# Networks that may stay in memory, those that take longest to load first. The text encoder never stays: it is large, and only
# prompts need it.
DEAREST = ("transformer", "vae", "image_encoder")
# Share of the computer's memory that weights may lock; more would leave too little to the system.
LOCKED_SHARE = 0.5
# Compute capability of the first cards with units for 8-bit floating-point numbers.
FLOAT8_CAPABILITY = (8, 9)
# Latent cells by which the decoder's tiles overlap.
TILE_OVERLAP = 8


@dataclass(frozen=True)
class Needs:
    """Hold bytes of the computer's memory (host) and of the card's that are needed, computing included; 0 without a card."""

    host: int
    card: int


@dataclass(frozen=True)
class Machine:
    """Hold what a machine has for networks.

    host: bytes of the computer's memory that can be had now. card: bytes of the card, None without one. wide, narrow: the
    precisions that "auto" chooses from. total: bytes of memory that this process may have at most; 0 counts as `host`.
    """

    host: int
    card: int | None = None
    wide: str = "bfloat16"
    narrow: str = "int8"
    total: int = 0


class NetworkMemory:
    """Measure how much of the computer's memory the networks of this process can have.

    What the process has taken since this object was made counts as theirs: weights, and what the first use of a card takes.
    """

    def __init__(self) -> None:
        self._began = own_memory()

    def now(self) -> HostMemory:
        """Return the memory that networks can have now, including what they hold already."""
        found = host_memory()
        return replace(found, available=found.available + max(0, own_memory() - self._began))


@dataclass(frozen=True)
class ExecutionChoice:
    """Hold how a film is made: the transformer's precision, and what it needs.

    instead: what 16 bits would have needed, None unless 8 bits were chosen because those do not fit. chosen: whether the
    precision was chosen here and not by the request. beside: name of a lent network -> names of those that stay in memory
    meanwhile; the others are dropped before it is loaded. locked: bytes of weights that may be locked in memory. peak: bytes of
    the computer's memory that are taken at most, with all that stays; at least `needs.host`.
    """

    precision: str
    needs: Needs
    instead: Needs | None = None
    chosen: bool = False
    beside: Mapping[str, frozenset[str]] = field(default_factory=dict)
    locked: int = 0
    peak: int = 0


def needs(size: ModelSize, precision: str, tokens: int, *, on_card: bool) -> Needs:
    """Return the least memory with which every network of a film is loaded only once.

    precision: of the transformer, as in a request. tokens: of a step.
    Stages follow each other, and a network can be dropped after its stage; but every section is sampled and then decoded, so
    the transformer and the VAE are in memory together. Loading 26 GB anew for each section would take longer than sampling it.
    """
    every = stages(size, precision, tokens, on_card=on_card)
    together = {stage: sum(every[name].host for name in (stage, *TOGETHER.get(stage, ()))) for stage in every}
    host = max(size_there + beside_networks(size, stage, on_card=on_card) for stage, size_there in together.items())
    return Needs(host, max(stage.card for stage in every.values()))


def stages(size: ModelSize, precision: str, tokens: int, *, on_card: bool) -> dict[str, Needs]:
    """Return what the network of each stage of a film needs, by its name in the pool. precision, tokens: as in `needs`."""
    own = CARD_BYTES if on_card else HOST_BYTES
    found = {"transformer": transformer_needs(size.transformer, precision, tokens, on_card=on_card)}
    for name, part in (("text_encoder", size.text), ("image_encoder", size.vision), ("vae", size.vae)):
        host = part.whole - part.mapped if on_card else part.whole
        found[name] = Needs(host * own, (part.card + part.work) * own if on_card else 0)
    return found


def beside_networks(size: ModelSize, stage: str, *, on_card: bool) -> int:
    """Return the bytes of the computer's memory that a stage takes beside networks.

    The decoder's causal cache counts too, while a film is sampled and decoded: it lies there if the card has no room for it.
    """
    film = size.film * (CARD_BYTES if on_card else HOST_BYTES) if stage in TOGETHER else 0
    return film + (WORKING_BYTES if on_card else 0)


def transformer_needs(size: TransformerSize, precision: str, tokens: int, *, on_card: bool) -> Needs:
    """Return the least memory that sampling needs. precision, tokens: as in `needs`.

    With a card, weights that only a prompt's tables are computed from stay in their files if they have the card's dtype.
    """
    wide = CARD_BYTES if on_card or precision == "bfloat16" else HOST_BYTES
    narrow = 1 if precision in EIGHT_BITS else wide
    if not on_card:
        return Needs((size.whole - size.linear) * wide + size.linear * narrow, 0)
    largest = max(size.block_linear * narrow + size.block_rest * wide, size.job * wide)
    work = Budget(0).estimate(tokens, size.width, wide)
    return Needs(size.linear * narrow + (size.rest + size.copied) * wide, size.always * wide + 2 * largest + work)


@dataclass(frozen=True)
class Requirements:
    """Hold what a request needs on a machine.

    disk: bytes for what it makes and for the download of the `missing` components. problems: what is too small for it; if
    memory or card are, `choice` is the one that needs least.
    """

    machine: Machine
    choice: ExecutionChoice
    disk: int
    missing: tuple[Place, ...] = ()
    problems: tuple[Problem, ...] = ()


def files_problems(request: Request, files: ModelFiles) -> tuple[Problem, ...]:
    """Return what keeps these model files from carrying out a request, and which of its LoRA files do not fit them."""
    return (*files.problems(request), *fit_problems(request.loras, files, request.checkpoint))


def requirements(request: Request, plan: Plan, files: ModelFiles, machine: Machine) -> Requirements:
    """Return how a request is carried out on a machine, with model files that have passed `files_problems`."""
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
    """Choose how a film is made: "auto" on a card becomes 16 bits if they fit, else 8 bits; other precisions stay.

    Without a card "auto" stays too. tokens: of a step. Raises UserError if nothing fits.
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
    """Return the choice with the networks that stay in memory beside each lent one, as far as there is room."""
    on_card = machine.card is not None
    every = {name: stage.host for name, stage in stages(size, choice.precision, tokens, on_card=on_card).items()}
    beside, peak = {}, 0
    for lent, own in every.items():
        taken, stay = own + beside_networks(size, lent, on_card=on_card), set()
        # Networks that have to stay come first, then those that take longest to load.
        for other in (*TOGETHER.get(lent, ()), *DEAREST):
            if other != lent and other not in stay and taken + every[other] <= machine.host:
                stay.add(other)
                taken += every[other]
        beside[lent] = frozenset(stay)
        peak = max(peak, taken)
    return replace(choice, beside=MappingProxyType(beside), locked=lockable(machine.total or machine.host), peak=peak)


def lockable(total: int) -> int:
    """Return how many bytes of weights may be locked in memory. total: bytes that this process may have in all."""
    return int(LOCKED_SHARE * total)


def too_little(choice: ExecutionChoice, machine: Machine) -> Iterator[Problem]:
    """Yield problems for the machine's memory and card if they are too small for a choice."""
    if choice.needs.host > machine.host:
        values = {"needed": gib(choice.needs.host), "free": gib(machine.host)}
        narrow = choice.precision in EIGHT_BITS
        yield Problem("", "too_little_memory_narrow", values) if narrow else Problem("", "too_little_memory", values)
    if machine.card is not None and choice.needs.card > machine.card:
        yield Problem("", "too_little_card_memory", {"needed": gib(choice.needs.card), "free": gib(machine.card)})


def figures(needed: Requirements, disk_free: int) -> dict[str, Any]:
    """Return the figures for sentences about what is needed and what there is.

    disk_free: bytes. The figures are texts in GiB, beside the precision's name; those of a card are "" without one.
    """
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
    """Return about how many tokens a step of a section has. height, width: of the latents, in cells."""
    clean = sum(len(ref.at) for ref in section.clean)
    coarse = sum(len(ref.at) / part for ref, part in ((section.clean_2x, 8), (section.clean_4x, 64)) if ref)
    return int((len(section.frames) + clean + coarse) * (height // 2) * (width // 2)) + CONTEXT_TOKENS


def most_tokens(plan: Plan, height: int, width: int) -> int:
    """Return about how many tokens a step of the plan's largest section has. height, width: of the latents, in cells."""
    return max(step_tokens(section, height, width) for section in plan.samplings)


def film_cells(plan: Plan, height: int, width: int, tile: int | None = None) -> int:
    """Return how many cells of a latent the decoder's causal cache holds values for; 0 if the film is decoded without one.

    height, width: of the latents, in cells. tile: side in pixels of the tiles that the request asks for, None for whole frames
    where they fit. Tiles overlap and each has a cache of its own, so that cells in the overlap count more than once.
    """
    side = (tile or 0) // CELL
    again = (side / (side - TILE_OVERLAP)) ** 2 if TILE_OVERLAP < side < max(height, width) else 1.0
    return int(height * width * again) if plan.vae_cache else 0


def narrow_format(capability: tuple[int, int]) -> str:
    """Return the 8-bit format for a card of this compute capability.

    It is "float8" if the card multiplies it directly, else "int8", which is more exact.
    """
    return "float8" if capability >= FLOAT8_CAPABILITY else "int8"
