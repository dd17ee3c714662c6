"""Define the one-frame mode: one picture "some frames later", with any number of control pictures (kisekaeichi)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from eichi_utils.files.pictures import picture_problem
from eichi_utils.problems import Problem
from eichi_utils.requests.compound_kinds import Controls
from eichi_utils.requests.kinds import Integer, Picture, Switch, setting
from eichi_utils.requests.plan import CONTEXT, Plan, Ref, Section, once
from eichi_utils.requests.request import Request

MAX_INDEX = 64


@dataclass(frozen=True)
class Control:
    """Hold a control picture that the model looks at, its time position, and a mask (white keeps, black hides)."""

    image: str
    index: int = 10
    mask: str = ""

    def check(self, field: str) -> list[Problem]:
        """Return what is wrong with the pictures and the position.

        field: the request's, with this control's number, such as "controls/0".
        """
        problems = [picture_problem(f"{field}/image", self.image)]
        problems += [picture_problem(f"{field}/mask", self.mask)] if self.mask else []
        if isinstance(self.index, bool) or not isinstance(self.index, int):
            problems.append(Problem(f"{field}/index", "wrong_type", {"value": str(self.index)[:80]}))
        elif not 0 <= self.index <= MAX_INDEX:
            problems.append(Problem(f"{field}/index", "out_of_range", {"value": self.index, "min": 0, "max": MAX_INDEX}))
        return [problem for problem in problems if problem]


@dataclass(frozen=True, kw_only=True)
class SingleRequest(Request):
    """Hold a request of the one-frame mode.

    target_index: time position of the result; None is 5 with controls and rope_value without.
    context_1x: whether the empty 1x context is there; None is off with controls and on without.
    rope_value: places the empty context: 1x at rope_value + 1, 2x at + 2 and + 3, 4x at + 4 to + 19.
    """

    mode: ClassVar[str] = "single"

    image_index: int = setting(0, Integer(0, MAX_INDEX))
    image_mask: str = setting("", Picture(optional=True))
    controls: tuple[Control, ...] = setting((), Controls(Control))
    target_index: int | None = setting(None, Integer(0, MAX_INDEX, optional=True))
    rope_value: int = setting(9, Integer(1, MAX_INDEX))
    context_1x: bool | None = setting(None, Switch(optional=True))
    context_2x: bool = setting(True, Switch())
    context_4x: bool = setting(True, Switch())

    @once
    def plan(self) -> Plan:
        """Return the plan of one section of one latent, which looks at the start picture, the controls and an empty context."""
        target = self.target_index if self.target_index is not None else (5 if self.controls else self.rope_value)
        context_1x = self.context_1x if self.context_1x is not None else not self.controls
        _, two, four = CONTEXT
        at_1x = self.rope_value + 1
        at_2x = at_1x + 1
        at_4x = at_2x + two
        names = {f"control/{number}": control for number, control in enumerate(self.controls)}
        masks = {name: control.mask for name, control in names.items() if control.mask}
        if self.image_mask:
            masks["start"] = self.image_mask
        clean = [Ref("start", _at(self.image_index), mask="start" if self.image_mask else None)]
        clean += [Ref(name, _at(control.index), mask=name if control.mask else None) for name, control in names.items()]
        if context_1x:
            clean.append(Ref("zeros", _at(at_1x)))
        section = Section(
            frames=_at(target),
            clean=tuple(clean),
            clean_2x=Ref("zeros", range(at_2x, at_2x + two)) if self.context_2x else None,
            clean_4x=Ref("zeros", range(at_4x, at_4x + four)) if self.context_4x else None,
            prompt=self.prompt,
        )
        return Plan(
            checkpoint=self.checkpoint,
            grows="front",
            sections=(section,),
            output="picture",
            pictures={"start": self.image, **{name: control.image for name, control in names.items()}},
            masks=masks,
        )


def _at(index: int) -> range:
    return range(index, index + 1)
