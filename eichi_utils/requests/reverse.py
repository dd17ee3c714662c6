"""Define the standard mode, which makes a film from its end to its start. Section 0 is sampled first and is the film's end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from eichi_utils.requests.compound_kinds import PerSection
from eichi_utils.requests.film_request import FilmRequest
from eichi_utils.requests.kinds import Number, Picture, Switch, setting
from eichi_utils.requests.loras import scaled
from eichi_utils.requests.plan import CONTEXT, Plan, Ref, Section, latents_per_section, lay, once, section_count


@dataclass(frozen=True, kw_only=True)
class ReverseRequest(FilmRequest):
    """Hold a request of the standard mode.

    keyframes: section number -> picture. padding: None for the usual ladder (see `paddings`), or one value for all sections.
    loop: the film ends as it starts; the start picture replaces `end_image`.
    """

    mode: ClassVar[str] = "reverse"

    end_image: str = setting("", Picture(optional=True))
    loop: bool = setting(False, Switch())
    end_strength: float = setting(1.0, Number(0.01, 1.0))
    keyframes: dict[int, str] = setting({}, PerSection(Picture()))
    padding: float | None = setting(None, Number(0.0, 3.0, optional=True))

    def idle(self) -> tuple[str, ...]:
        """Return the fields that have no effect; those of the final frame and `padding` may be among them."""
        idle = super().idle()
        if self.loop and self.end_image:
            idle += ("end_image",)
        if not self.final_frame and self.end_strength != 1.0:
            idle += ("end_strength",)
        # The last section always has padding 0, and a film of one section has no other.
        if self.padding is not None and section_count(self.seconds, self.window) == 1:
            idle += ("padding",)
        return idle

    @property
    def final_frame(self) -> str:
        """Return the path of the picture that the film ends with, or ""."""
        return self.image if self.loop else self.end_image

    @once
    def plan(self) -> Plan:
        """Return the plan of sections from end to start; each looks at its keyframe and at the film after it."""
        count = section_count(self.seconds, self.window)
        latents = latents_per_section(self.window)
        sections = []
        for number, padding in enumerate(paddings(count, self.padding)):
            before, _, frames, after, two, four = lay(1, int(padding * self.window), latents, *CONTEXT)
            sections.append(
                Section(
                    frames=frames,
                    clean=(Ref(anchor(number, self.keyframes), before), Ref("history", after)),
                    clean_2x=Ref("history", two, skip=1),
                    clean_4x=Ref("history", four, skip=3),
                    prompt=self.section_prompt(number),
                    lora_strengths=scaled(self.loras, self.section_lora_scales.get(number, 1.0)),
                )
            )
        append = self.append
        if append and append.between:
            _, frames, after, two, four = lay(1, append.between, *CONTEXT)
            bridge = Section(
                frames=frames,
                clean=(Ref("film", range(1)), Ref("history", after)),
                clean_2x=Ref("history", two, skip=1),
                clean_4x=Ref("history", four, skip=3),
                # The bridge has the common prompt, or if that is empty the prompt of the film's end.
                prompt=self.prompt if self.prompt.strip() else self.section_prompt(0),
            )
            append = replace(append, bridge=bridge)
        end = {"end": self.final_frame} if self.final_frame else {}
        keyframes = {f"section/{number}": path for number, path in sorted(self.keyframes.items())}
        return Plan(
            checkpoint=self.checkpoint,
            grows="front",
            sections=tuple(sections),
            opening=Ref("end", range(1), scale=self.end_strength) if self.final_frame else None,
            closing=Ref("start", range(1)),
            append=append,
            pictures={"start": self.image, **end, **keyframes},
        )


def paddings(sections: int, padding: float | None = None) -> Sequence[float]:
    """Return the distance of each section from the start picture, in windows. The last section touches it (0).

    The ladder counts down; beyond four sections the middle repeats 2, which is what the model was trained to bridge.
    A given value replaces the ladder for all sections but the last.
    """
    if padding is not None:
        return [round(padding, 1)] * (sections - 1) + [0]
    if sections <= 4:
        return list(range(sections - 1, -1, -1))
    return [3, *[2] * (sections - 3), 1, 0]


def anchor(section: int, keyframes: Mapping[int, str]) -> str:
    """Return the name of a section's picture: the keyframe with the smallest number not below its own, else "start"."""
    later = [number for number in keyframes if number >= section]
    return f"section/{min(later)}" if later else "start"
