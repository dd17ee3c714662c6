"""What is wrong with a field, shown at the field itself: one element that is never seen and writes beside the others.

A field's component has the class `field-NAME`; `keyframes/3` and `controls/0/mask` are shown at the nearest place that has one.
"""

from __future__ import annotations

import gradio as gr

from eichi_utils.files.picture_files import FORMAT_NAMES, SUFFIXES
from locales import Translator
from webui.static_files import element


def field_problems(t: Translator) -> gr.HTML:
    """Return the element; its value is `words.problems_by_field`. What is no picture it refuses in the page's language."""
    said = {
        "no_picture_in_clipboard": t("page.paste.no_picture"),
        "clipboard_refused": t("page.paste.refused"),
        "not_a_picture": t("problem.picture_unknown_format", file="{file}", formats=FORMAT_NAMES),
    }
    data = {"suffixes": SUFFIXES, "words": said}
    place = {"elem_id": "field-problems", "elem_classes": "eichi-unseen"}
    return element("field_problems", {}, "showFieldProblems", data, **place)
