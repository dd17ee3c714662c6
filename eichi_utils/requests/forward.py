"""Define the F1 mode, which makes a film from its start to its end. Section 0 is sampled first and is the film's start."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from eichi_utils.requests.film_request import FilmRequest
from eichi_utils.requests.kinds import Choice, Number, Switch, setting
from eichi_utils.requests.loras import scaled
from eichi_utils.requests.plan import CONTEXT, Plan, Ref, Section, latents_per_section, lay, once, section_count


@dataclass(frozen=True, kw_only=True)
class ForwardRequest(FilmRequest):
    """Hold a request of the F1 mode.

    influence: how strongly the start picture holds, in percent; more is more static. It acts on the first section or on all.
    vae_cache: decode each latent once and keep what the next ones need, instead of blending sections decoded twice.
    """

    mode: ClassVar[str] = "forward"
    checkpoint: ClassVar[Literal["framepack", "framepack_f1"]] = "framepack_f1"

    influence: float = setting(100.0, Number(100.0, 102.0))
    influence_sections: str = setting("first", Choice(("first", "all")))
    vae_cache: bool = setting(False, Switch())

    def idle(self) -> tuple[str, ...]:
        """Return the fields that have no effect; one may be `influence_sections`, where the start picture has no influence."""
        without = self.influence == 100.0 or section_count(self.seconds, self.window) == 1
        return super().idle() + (("influence_sections",) if without and self.influence_sections == "all" else ())

    @once
    def plan(self) -> Plan:
        """Return the plan of sections from start to end; each looks at the start picture and at what came before it."""
        one, two, four = CONTEXT
        start, at_4x, at_2x, at_1x, frames = lay(1, four, two, one, latents_per_section(self.window))
        sections = []
        for number in range(section_count(self.seconds, self.window)):
            held = self.influence_sections == "all" or number == 0
            sections.append(
                Section(
                    frames=frames,
                    clean=(Ref("start", start), Ref("history", at_1x)),
                    clean_2x=Ref("history", at_2x, skip=1),
                    clean_4x=Ref("history", at_4x, skip=3),
                    prompt=self.section_prompt(number),
                    lora_strengths=scaled(self.loras, self.section_lora_scales.get(number, 1.0)),
                    strength=100.0 / self.influence if held else 1.0,
                    initial="start",
                )
            )
        return Plan(
            checkpoint=self.checkpoint,
            grows="back",
            sections=tuple(sections),
            opening=Ref("start", range(1)),
            opening_shown=True,
            pictures={"start": self.image},
            vae_cache=self.vae_cache,
            # F1 sees only earlier latents and cannot lead to later ones, so the latents in between are a straight line.
            append=self.append,
        )
