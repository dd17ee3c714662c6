"""What gradio does not offer by public names, each with the reason and the version it was seen in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr

from eichi_utils.problems import Problem, UserError
from webui.path_check import note_use, paths_in


class CheckedBlocks(gr.Blocks):
    """A page whose components take no file that was not uploaded. holds: whether a browser may name a path."""

    def __init__(self, *, holds: Callable[[Any], bool], **settings: Any):
        super().__init__(**settings)
        self.holds = holds
        # Gradio (6.31: `processing_utils._check_allowed`) looks at the paths that a browser sends only on pages that it has
        # launched itself; on a mounted one it copies any file of the server to where everybody can fetch it.
        self.has_launched = True

    async def preprocess_data(self, block_fn: Any, inputs: list[Any], *args: Any, **settings: Any) -> list[Any]:
        """Refuse what names other files, before gradio opens any (6.31: every event of every route comes through here).

        Raises UserError.
        """
        for path in (path for value in inputs for path in paths_in(value)):
            if not self.holds(path):
                raise UserError([Problem("", "file_not_uploaded", {"file": str(path)[-200:]})])
            note_use(path)
        return await super().preprocess_data(block_fn, inputs, *args, **settings)
