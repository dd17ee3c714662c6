"""How much of the card other programs keep: a setting of the machine, the same on every page, that no film carries."""

from __future__ import annotations

import math
from contextlib import suppress

from eichi_utils.models.requirements import MOST_RESERVED
from eichi_utils.problems import UserError
from eichi_utils.render.engine import Engine
from webui.context import QUIET, Context
from webui.forms import fields
from webui.forms.form import Form

GIB = 2**30
# The setting's name.
RESERVE = "reserve_gb"


def reserve_panel(context: Context, form: Form) -> None:
    """The slider, where there is a card. A new page shows what is set, whoever set it; so does the next start."""
    engine = context.engine
    if engine is None or engine.card is None:
        return
    slider = fields.Slider(
        minimum=0,
        maximum=most_reserved(engine),
        step=0.5,
        value=lambda: engine.reserve_gb,
        label=context.t("page.reserve"),
        info=context.t("page.reserve.info"),
        elem_id="reserve",
    )
    form.program[RESERVE] = slider
    slider.change(lambda value: set_reserve(engine, value), slider, None, **QUIET)
    slider.input(lambda value: save_reserve(context, engine, value), slider, None, trigger_mode="always_last", **QUIET)


def most_reserved(engine: Engine) -> float:
    """GiB of the card that can be left to others: without a gigabyte nothing can be computed."""
    return MOST_RESERVED if engine.card is None else min(MOST_RESERVED, max(1, engine.card.total // GIB - 1))


def set_reserve(engine: Engine, value: float | None) -> None:
    """What the slider's box says counts as far as the card can; while the box is empty nothing changes."""
    if isinstance(value, (int, float)) and not math.isnan(value):
        engine.reserve_gb = min(max(float(value), 0.0), most_reserved(engine))


def save_reserve(context: Context, engine: Engine, value: float | None) -> None:
    """Set it, and begin with it at the next start."""
    set_reserve(engine, value)
    # It counts now in any case. That the file cannot be written is said where settings are saved.
    with suppress(UserError):
        context.app_settings.save_program({RESERVE: engine.reserve_gb})
