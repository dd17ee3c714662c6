"""Which files a browser may name and see: what was uploaded, results, and examples; never a file because a request names it.

Three places ask, each for all pages: the page itself for files in components (`gradio_compat.CheckedBlocks`), the form for
paths in texts (`Form.document`), and `ServedFiles` for addresses.
"""

from __future__ import annotations

import mimetypes
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp, Receive, Scope, Send

from eichi_utils.files.temporary import PREFIX, is_unfinished
from webui.gradio_compat import is_upload, upload_folder

# Gradio's two addresses of a file, whatever page they are below.
ADDRESS = re.compile(r"/gradio_api/file[=/](.*)", re.DOTALL)
# A name that no file has.
NOWHERE = "\0"
# What a browser would run with the page's rights, if a picture were called so.
RUN = re.compile(r"text/(html|xml|javascript)|application/(.*\+)?(xml|javascript|pdf|x-shockwave-flash)|image/svg\+xml")


@dataclass(frozen=True)
class OwnFiles:
    """folders: whose files pages take and show, beside gradio's folder of uploads; files: single ones, such as examples.

    closed: folders of which nothing is shown wherever they lie.
    """

    folders: tuple[Path, ...]
    files: frozenset[str] = frozenset()
    closed: tuple[Path, ...] = ()

    def holds(self, path: Any) -> bool:
        """Tell whether a browser may name this file, which need not be there; where links lead counts. Opens nothing."""
        if not isinstance(path, str) or not path or "\0" in path:
            return False
        if path in self.files:
            return True
        try:
            return self._is_inside(Path(os.path.abspath(path)))
        # A name that is too long, a circle of links, a folder that may not be entered.
        except (OSError, ValueError, RuntimeError):
            return False

    def serves(self, path: str) -> bool:
        """Tell whether it is such a file, is there, and is nothing that a browser would run."""
        if not self.holds(path) or not os.path.isfile(path):
            return False
        # Gradio itself offers uploads only to download.
        return is_upload(path) or not RUN.fullmatch(mimetypes.guess_type(path)[0] or "")

    def _is_inside(self, path: Path) -> bool:
        roots = [(Path(os.path.abspath(folder)), folder.resolve()) for folder in (upload_folder(), *self.folders)]
        # By its name first: on Windows merely looking for \\host\share\... logs in there.
        if not any(path.is_relative_to(root) for both in roots for root in both):
            return False
        real = path.resolve()
        if any(real.is_relative_to(folder.resolve()) for folder in self.closed):
            return False
        # A pipe or a folder is no file.
        shown = any(_is_shown(real.relative_to(root), root == roots[0][1]) for _, root in roots if real.is_relative_to(root))
        return shown and (real.is_file() or not real.exists())


def _is_shown(rest: Path, uploaded: bool) -> bool:
    """Tell whether a path below a folder is of a file that pages show: hidden ones are unfinished ones, and locks.

    uploaded: whether the folder is that of uploads, where a user's file is called as it was on the user's computer.
    """
    *folders, name = rest.parts or ("",)
    hidden = name.startswith(PREFIX) or is_unfinished(name) if uploaded else name.startswith(".")
    return not hidden and not any(folder.startswith(".") for folder in folders)


class ServedFiles:
    """In front of an application: of gradio's addresses of files, those of files that are not shown lead nowhere."""

    def __init__(self, app: ASGIApp, serves: Callable[[str], bool]):
        self.app, self.serves = app, serves

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on a request; one for a file that is not served gets the name of one that is not there."""
        asked = ADDRESS.search(scope["path"]) if scope["type"] == "http" else None
        if asked and not await run_in_threadpool(self.serves, asked[1]):
            # Gradio asks for the login first, and then finds no such file.
            scope = {**scope, "path": f"{scope['path'][: asked.start(1)]}{NOWHERE}"}
        await self.app(scope, receive, send)
