"""How much of the card other programs keep: a setting of the machine, the same on every page, that no film carries."""

from __future__ import annotations

from eichi_utils.engine import MOST_RESERVED, Engine
from webui import fields
from webui.context import QUIET, Context

GIB = 2**30


def reserve_panel(context: Context) -> None:
    """The slider, where there is a card. A new page shows what is set, whoever set it."""
    engine = context.engine
    if engine is None or engine.card is None:
        return
    # Without a gigabyte nothing can be computed.
    most = min(MOST_RESERVED, max(1, engine.card.total // GIB - 1))
    slider = fields.Slider(
        minimum=0,
        maximum=most,
        step=0.5,
        value=lambda: engine.reserve_gb,
        label=context.t("page.reserve"),
        info=context.t("page.reserve.info"),
        elem_id="reserve",
    )
    slider.change(lambda value: change(engine, value, most), slider, None, **QUIET)


def change(engine: Engine, value: float | None, most: float) -> None:
    """What the slider's box says counts as far as the card can; while the box is empty nothing changes."""
    if value is not None:
        engine.reserve_gb = min(max(float(value), 0.0), most)
