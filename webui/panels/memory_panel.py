"""Add the GPU memory reserved for other programs: a setting of the machine, the same on every page, in no request."""

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
# The name of the setting (`settings.CHOICES`).
RESERVE = "reserve_gb"


def reserve_panel(context: Context, form: Form) -> None:
    """Add the slider if there is a GPU. Every newly loaded page shows the value now in use, and the next start uses it too."""
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
    """Return the most GiB of GPU memory that can be reserved; at least 1 GiB has to be left to compute anything."""
    return MOST_RESERVED if engine.card is None else min(MOST_RESERVED, max(1, engine.card.total // GIB - 1))


def set_reserve(engine: Engine, value: float | None) -> None:
    """Reserve GPU memory, in GiB, within what the card allows; None or NaN, as from an empty box, changes nothing."""
    if isinstance(value, (int, float)) and not math.isnan(value):
        engine.reserve_gb = min(max(float(value), 0.0), most_reserved(engine))


def save_reserve(context: Context, engine: Engine, value: float | None) -> None:
    """Reserve GPU memory, in GiB, now and at the next start of the program."""
    set_reserve(engine, value)
    # The value is in use even if it cannot be saved; the panel of settings reports a file that cannot be written.
    with suppress(UserError):
        context.app_settings.save_program({RESERVE: engine.reserve_gb})
