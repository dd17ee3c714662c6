"""Decide which files a browser may name and see: uploads, results and examples, and no other file of the machine.

Three places ask, each for all pages: `gradio_compat.CheckedBlocks` for files in components, `Form.document` for paths in texts,
and `ServedFiles` for addresses of files.
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

# Gradio's two forms of a file's address, below any page's path.
ADDRESS = re.compile(r"/gradio_api/file[=/](.*)", re.DOTALL)
# A name that no file has.
NOWHERE = "\0"
# Media types, guessed from a file's name, that a browser could run with the page's rights.
RUN = re.compile(r"text/(html|xml|javascript)|application/(.*\+)?(xml|javascript|pdf|x-shockwave-flash)|image/svg\+xml")


@dataclass(frozen=True)
class OwnFiles:
    """Hold the files that browsers may name.

    folders: whose files may be named, beside gradio's folder of uploads. files: single files, such as examples.
    closed: folders whose files are refused even inside of `folders`.
    """

    folders: tuple[Path, ...]
    files: frozenset[str] = frozenset()
    closed: tuple[Path, ...] = ()

    def holds(self, path: Any) -> bool:
        """Tell whether a browser may name this path, which need not exist. Links are resolved; nothing is opened."""
        if not isinstance(path, str) or not path or "\0" in path:
            return False
        if path in self.files:
            return True
        try:
            return self._is_inside(Path(os.path.abspath(path)))
        # The name is too long, links form a circle, or a folder may not be entered.
        except (OSError, ValueError, RuntimeError):
            return False

    def serves(self, path: str) -> bool:
        """Tell whether a path may be named, is an existing file, and is nothing that a browser would run."""
        if not self.holds(path) or not os.path.isfile(path):
            return False
        # Gradio itself serves uploads only as downloads.
        return is_upload(path) or not RUN.fullmatch(mimetypes.guess_type(path)[0] or "")

    def _is_inside(self, path: Path) -> bool:
        roots = [(Path(os.path.abspath(folder)), folder.resolve()) for folder in (upload_folder(), *self.folders)]
        # Compare names before the file system is touched: on Windows, resolving \\host\share\... logs in at that host.
        if not any(path.is_relative_to(root) for both in roots for root in both):
            return False
        real = path.resolve()
        if any(real.is_relative_to(folder.resolve()) for folder in self.closed):
            return False
        # Pipes, devices and folders are refused.
        shown = any(_is_shown(real.relative_to(root), root == roots[0][1]) for _, root in roots if real.is_relative_to(root))
        return shown and (real.is_file() or not real.exists())


def _is_shown(rest: Path, uploaded: bool) -> bool:
    """Tell whether a path below an allowed folder is neither hidden nor below a hidden folder: those are unfinished or locks.

    uploaded: whether the folder is that of uploads, where a file keeps the user's own name, which may begin with a dot.
    """
    *folders, name = rest.parts or ("",)
    hidden = name.startswith(PREFIX) or is_unfinished(name) if uploaded else name.startswith(".")
    return not hidden and not any(folder.startswith(".") for folder in folders)


class ServedFiles:
    """Hide the files that are not served from gradio's addresses of files (ASGI middleware)."""

    def __init__(self, app: ASGIApp, serves: Callable[[str], bool]):
        self.app, self.serves = app, serves

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on a request; if it asks for a file that is not served, replace its path by one that does not exist."""
        asked = ADDRESS.search(scope["path"]) if scope["type"] == "http" else None
        if asked and not await run_in_threadpool(self.serves, asked[1]):
            # Gradio checks the login first, and then answers that there is no such file.
            scope = {**scope, "path": f"{scope['path'][: asked.start(1)]}{NOWHERE}"}
        await self.app(scope, receive, send)
