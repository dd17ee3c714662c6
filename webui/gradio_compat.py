"""What gradio does not offer by public names, each with the reason and the version it was seen in."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import gradio as gr
from gradio import route_utils
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, Headers
from starlette.formparsers import MultiPartException

from eichi_utils.problems import Problem, UserError
from eichi_utils.user_data.passing import need_room
from webui.http.path_check import note_use, paths_in

# Bytes of an upload between two looks at the disk; a few hundred may come at once.
LOOK_BYTES = 1 << 20


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


class UploadParser(route_utils.GradioMultiPartParser):
    """Takes an upload of many files with one descriptor, holds none of it in memory, and leaves nothing where it fails.

    The disk's last room is left to films.

    Gradio (6.31) has a file open for each part, up to 1000, until the request ends; keeps parts that are no files in memory,
    whatever their size; and of its errors removes the files for its own kinds only, not where a disk is full.
    """

    def __init__(self, headers: Headers, stream: AsyncIterator[bytes], **settings: Any):
        _, options = parse_options_header(headers.get("content-type", ""))
        super().__init__(headers, self._part_by_part(stream, b"\r\n--" + options.get(b"boundary", b"")), **settings)
        self._done: list[Any] = []

    async def _part_by_part(self, stream: AsyncIterator[bytes], border: bytes) -> AsyncIterator[bytes]:
        """What comes, cut where a part may begin, so that the one before is written and closed by then."""
        since = 0
        async for chunk in stream:
            # Others write there as well, so what was free when the upload began says little.
            if (since := since + len(chunk)) >= LOOK_BYTES:
                need_room(Path(self.upload_dir))
                since = 0
            first, *others = chunk.split(border)
            for piece in (first, *(border + other for other in others)):
                yield piece
                # Only here is all of it on the disk.
                for file in self._done:
                    file.close()
                self._done.clear()

    def on_headers_finished(self) -> None:
        super().on_headers_finished()
        if self._current_part.file is None or self._current_part.field_name != "files":
            raise MultiPartException("Every part of an upload has to be a file by the name of files.")

    def on_part_end(self) -> None:
        super().on_part_end()
        if self._current_part.file is not None:
            self._done.append(self._current_part.file.file)

    async def parse(self) -> FormData:
        """Read it all. Raises MultiPartException, OSError, UserError."""
        try:
            return await super().parse()
        except (OSError, UserError):
            for file in self._files_to_close_on_error:
                # What has not been written yet cannot be now, either.
                with suppress(OSError):
                    file.close()
                Path(file.name).unlink(missing_ok=True)
            raise
        finally:
            # Else who watches the progress watches for ever.
            if self.upload_progress is not None:
                self.upload_progress.set_done(self.upload_id)


def take_uploads_part_by_part() -> None:
    """Have gradio (6.31: `route_utils.upload_fn`) read uploads by `UploadParser`; it offers no other way to choose one."""
    route_utils.GradioMultiPartParser = UploadParser
