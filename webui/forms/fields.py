"""Gradio's components with one change: a wrong value reaches the request's own checks, not a toast."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from webui.gradio_compat import FileData, ImageData, served_copy
from webui.quick_start import without_stubs

UPLOAD_HEIGHT = 64
# The class of boxes where a new name is typed or a known one chosen (`static/input_guards.js`).
NAME_CLASS = "eichi-name"

# Otherwise gradio would write a file beside this one. `is_template` says: in the browser, the class derived from.
with without_stubs():

    class Number(gr.Number):
        """A number box that passes on whatever was typed; empty is None."""

        is_template = True

        def preprocess(self, payload: float | None) -> Any:
            """Return what was typed, without what adding up in binary leaves behind."""
            return _rounded(payload)

    class Slider(gr.Slider):
        """A slider that passes on whatever was typed into its box."""

        is_template = True

        def preprocess(self, payload: float | None) -> Any:
            """Return what was typed, without what adding up in binary leaves behind."""
            return _rounded(payload)

    class Radio(gr.Radio):
        """A choice that may be of an older list than the server's, as in a tab that was open while the server started anew."""

        is_template = True

        def preprocess(self, payload: Any) -> Any:
            """Return what was chosen, whether or not it is to be had."""
            return payload

    class Dropdown(gr.Dropdown):
        """A choice of a list that changes while the page is open."""

        is_template = True

        def preprocess(self, payload: Any) -> Any:
            """Return what was chosen, whether or not it is to be had."""
            return payload

    class File(gr.File):
        """A file as the path of what was uploaded, whatever it is, so that checks can name what is wrong with it."""

        is_template = True

        def preprocess(self, payload: Any) -> Any:
            """Return the path of what was uploaded, or None. payload: gradio's FileData."""
            return payload.path if payload else None

        def postprocess(self, value: Any) -> Any:
            """Return gradio's FileData of a path; None of one that leads to no file."""
            if not value or not Path(value).is_file():
                return None
            path, size = served_copy(value, self), Path(value).stat().st_size
            return FileData(path=path, orig_name=Path(value).name, size=size)

    class Picture(gr.Image):
        """A picture as the path of the very file that was uploaded, so that checks can name its damage."""

        is_template = True

        def preprocess(self, payload: Any) -> Any:
            """Return the path of what was uploaded, or None. payload: gradio's ImageData."""
            return payload.path if payload else None

        def postprocess(self, value: Any) -> Any:
            """Return gradio's ImageData of a path; None of one that leads to no file."""
            # A job from the command line names a file anywhere; gradio shows only what lies in its cache.
            if not value or not Path(value).is_file():
                return None
            return ImageData(path=served_copy(value, self), orig_name=Path(value).name)


def picture(**settings: Any) -> Picture:
    """A place for a picture: upload, drop or paste. Its class is what `field_problems` knows it by."""
    return Picture(
        type="filepath",
        image_mode=None,
        sources=["upload", "clipboard"],
        buttons=["fullscreen"],
        elem_classes=["eichi-picture"],
        **settings,
    )


def upload(label: str, elem_id: str) -> File:
    """A low place to drop one file."""
    return File(label=label, height=UPLOAD_HEIGHT, elem_id=elem_id, elem_classes="eichi-drop", min_width=220)


def _rounded(value: Any) -> Any:
    # The browser's steps add up in binary: 0.30000000000000004.
    return round(value, 6) if isinstance(value, float) else value
