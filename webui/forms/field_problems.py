"""Show what is wrong with a field at the field itself, by one invisible element whose script writes beside the others.

A field's component has the class `field-NAME`. A problem of a part, such as `keyframes/3` or `controls/0/mask`, is shown at the
nearest component with such a class.
"""

from __future__ import annotations

import gradio as gr

from eichi_utils.files.picture_files import FORMAT_NAMES, SUFFIXES
from locales import Translator
from webui.static_files import element


def field_problems(t: Translator) -> gr.HTML:
    """Return the element; its value is `words.problems_by_field`.

    Its script also refuses dropped or pasted files that are no pictures, with a sentence in the page's language.
    """
    said = {
        "no_picture_in_clipboard": t("page.paste.no_picture"),
        "clipboard_refused": t("page.paste.refused"),
        "not_a_picture": t("problem.picture_unknown_format", file="{file}", formats=FORMAT_NAMES),
    }
    data = {"suffixes": SUFFIXES, "words": said}
    place = {"elem_id": "field-problems", "elem_classes": "eichi-unseen"}
    return element("field_problems", {}, "showFieldProblems", data, **place)
