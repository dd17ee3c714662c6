"""Adapt gradio's components so that a wrong value reaches the request's own checks instead of raising gradio's error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from webui.gradio_compat import FileData, ImageData, served_copy
from webui.quick_start import without_stubs

UPLOAD_HEIGHT = 64
# The CSS class of boxes where a new name is typed or a known one chosen (`static/input_guards.js`).
NAME_CLASS = "eichi-name"

# Otherwise gradio would write a stub file beside this one. `is_template`: the browser uses the base class's component.
with without_stubs():

    class Number(gr.Number):
        """Pass on whatever was typed into a number box; None if it is empty."""

        is_template = True

        def preprocess(self, payload: float | None) -> Any:
            """Return the typed number without binary rounding errors."""
            return _rounded(payload)

    class Slider(gr.Slider):
        """Pass on whatever was typed into a slider's box, also outside of its limits."""

        is_template = True

        def preprocess(self, payload: float | None) -> Any:
            """Return the typed number without binary rounding errors."""
            return _rounded(payload)

    class Radio(gr.Radio):
        """Pass on a choice that may be missing in the server's list, as from a tab that was open while the server restarted."""

        is_template = True

        def preprocess(self, payload: Any) -> Any:
            """Return the chosen value, whether or not it is in the list."""
            return payload

    class Dropdown(gr.Dropdown):
        """Pass on a choice from a list that changes while the page is open."""

        is_template = True

        def preprocess(self, payload: Any) -> Any:
            """Return the chosen value, whether or not it is in the list."""
            return payload

    class File(gr.File):
        """Pass on the path of an uploaded file of any kind, so that the checks can say what is wrong with it."""

        is_template = True

        def preprocess(self, payload: Any) -> Any:
            """Return the path of the uploaded file, or None. payload: gradio's FileData."""
            return payload.path if payload else None

        def postprocess(self, value: Any) -> Any:
            """Return gradio's FileData for a path; None if there is no such file."""
            if not value or not Path(value).is_file():
                return None
            path, size = served_copy(value, self), Path(value).stat().st_size
            return FileData(path=path, orig_name=Path(value).name, size=size)

    class Picture(gr.Image):
        """Pass on the path of the original uploaded picture, without decoding it, so that checks can say what is damaged."""

        is_template = True

        def preprocess(self, payload: Any) -> Any:
            """Return the path of the uploaded picture, or None. payload: gradio's ImageData."""
            return payload.path if payload else None

        def postprocess(self, value: Any) -> Any:
            """Return gradio's ImageData for a path; None if there is no such file."""
            # A loaded request may name a file in any folder; gradio shows only files in its cache.
            if not value or not Path(value).is_file():
                return None
            return ImageData(path=served_copy(value, self), orig_name=Path(value).name)


def picture(**settings: Any) -> Picture:
    """Return a component that takes a picture by upload, drop or paste; `field_problems` finds it by its CSS class."""
    return Picture(
        type="filepath",
        image_mode=None,
        sources=["upload", "clipboard"],
        buttons=["fullscreen"],
        elem_classes=["eichi-picture"],
        **settings,
    )


def upload(label: str, elem_id: str) -> File:
    """Return a component of small height that takes one file by upload or drop."""
    return File(label=label, height=UPLOAD_HEIGHT, elem_id=elem_id, elem_classes="eichi-drop", min_width=220)


def _rounded(value: Any) -> Any:
    # The browser adds a slider's steps in binary floating point: 0.30000000000000004.
    return round(value, 6) if isinstance(value, float) else value
