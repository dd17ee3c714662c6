"""Describe what to sample as data: the sections of a film, the latents each looks at, and their time positions.

All differences between the modes are in their plans. The driver carries out any plan and never asks for the mode.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import wraps
from itertools import accumulate
from typing import Literal, TypeVar

from diffusers_helper.vae.frames import FPS, FRAMES_PER_LATENT, frames_of

# Latents of history that a section looks at in full, half and quarter resolution (1x, 2x and 4x context).
CONTEXT = (1, 2, 16)
# Largest number of latents that can be put between two films; the model was trained on 9 at a time.
MOST_BETWEEN = 12


@dataclass(frozen=True)
class Ref:
    """Refer to latents that a section looks at.

    source: "history", "zeros", or the name of a picture of the plan.
    at: the time positions the model is told; their number is the number of latents.
    skip: latents of history passed over, counted from its growing edge.
    scale: factor on the latent. mask: name of a mask of the plan, multiplied onto the latent.
    """

    source: str
    at: range
    skip: int = 0
    scale: float = 1.0
    mask: str | None = None


@dataclass(frozen=True)
class Section:
    """Describe one sampling of `len(frames)` latents at the time positions `frames`.

    initial: name of the picture whose latent is mixed into the noise when `strength` is below 1.
    lora_strengths: one for each LoRA of the request, in place of its own; None keeps those.
    """

    frames: range
    clean: tuple[Ref, ...]
    clean_2x: Ref | None
    clean_4x: Ref | None
    prompt: str
    strength: float = 1.0
    initial: str = ""
    lora_strengths: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Append:
    """Describe the latents of an earlier film that follow this one.

    file: where they are. skip_start, skip_end: latents cut off at its ends. trim: latents cut off at this film's end.
    between: latents put between the two films. bridge: how these are sampled, with the appended latents as history and the last
    latent before them as the picture "film"; None for a straight line from one film to the other.
    """

    file: str
    skip_start: int = 0
    skip_end: int = 0
    trim: int = 0
    between: int = 0
    bridge: Section | None = None


@dataclass(frozen=True)
class Plan:
    """Hold everything that the driver needs besides the sampler's numbers.

    checkpoint: the transformer's family.
    grows: the side at which new latents join the film.
    opening: latent at the history's growing edge before the first section; part of the film if `opening_shown`.
    closing: latent put at the growing edge after the last section.
    vae_cache: each latent is decoded once, after those before it; only for a film that grows at the back.
    append: what follows this film; `sections`, `latents` and `frames` are those of this film alone.
    pictures, masks: name -> path of the file.
    """

    checkpoint: Literal["framepack", "framepack_f1"]
    grows: Literal["front", "back"]
    sections: tuple[Section, ...]
    output: Literal["film", "picture"] = "film"
    opening: Ref | None = None
    opening_shown: bool = False
    closing: Ref | None = None
    pictures: Mapping[str, str] = field(default_factory=dict)
    masks: Mapping[str, str] = field(default_factory=dict)
    vae_cache: bool = False
    append: Append | None = None

    @property
    def samplings(self) -> tuple[Section, ...]:
        """Return every section that is sampled: the film's, and the bridge to the appended latents if there is one."""
        return (*self.sections, self.append.bridge) if self.append and self.append.bridge else self.sections

    @property
    def parts(self) -> int:
        """Return the number of parts that progress counts: the sections, and joining as one more, with or without a bridge."""
        return len(self.sections) + (1 if self.append else 0)

    @property
    def section_latents(self) -> int:
        """Return the number of latents of a section; all sections have the same number."""
        return len(self.sections[0].frames)

    @property
    def latents(self) -> int:
        """Return the number of latents of the finished film."""
        return self.latents_after(len(self.sections))

    def latents_after(self, sections: int) -> int:
        """Return the number of latents of the film after this many sections."""
        opening = 1 if self.opening_shown else 0
        closing = 1 if self.closing and sections == len(self.sections) else 0
        return opening + sum(len(section.frames) for section in self.sections[:sections]) + closing

    @property
    def frames(self) -> int:
        """Return the number of frames of the finished film, without what is appended."""
        return frames_of(self.latents)

    def section_frames(self, number: int) -> range:
        """Return the frames that a section adds, as positions in the finished film, which begins with frame 0."""
        before = frames_of(self.latents_after(number)) if number else 0
        after = frames_of(self.latents_after(number + 1))
        return range(self.frames - after, self.frames - before) if self.grows == "front" else range(before, after)

    @property
    def prompts(self) -> tuple[str, ...]:
        """Return the distinct prompts in order of first use."""
        return tuple(dict.fromkeys(section.prompt for section in self.samplings))


def latents_per_section(window: float) -> int:
    """Return the number of latents sampled for a window: 9 for 9, 5 for 4.5."""
    return math.ceil(window)


def section_count(seconds: float, window: float) -> int:
    """Return the number of sections of a film of about this length, at least 1; rounded half to even, as in the reference."""
    return max(1, round(seconds * FPS / (FRAMES_PER_LATENT * window)))


def film_latents(seconds: float, window: float) -> int:
    """Return the number of latents of a film of this length: its sections' and its start picture's."""
    return 1 + section_count(seconds, window) * latents_per_section(window)


def lay(*lengths: int) -> tuple[range, ...]:
    """Return consecutive ranges of these lengths, beginning at 0: `lay(1, 16)` is `range(0, 1), range(1, 17)`."""
    ends = tuple(accumulate(lengths))
    return tuple(range(end - length, end) for end, length in zip(ends, lengths, strict=True))


# A class of requests.
Planned = TypeVar("Planned")


def once(plan: Callable[[Planned], Plan]) -> Callable[[Planned], Plan]:
    """Cache a request's plan in the request, which never changes: a page asks for it in six places at every key pressed."""

    @wraps(plan)
    def kept(self: Planned) -> Plan:
        known = vars(self)
        if "_plan" not in known:
            known["_plan"] = plan(self)
        return known["_plan"]

    return kept
