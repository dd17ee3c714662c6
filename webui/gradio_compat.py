"""What gradio does not document or name as its own, each with the reason and the version it was seen in.

`tests/webui/test_gradio_names.py` lists it all, and says what an upgrade has taken away and what is to be done.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from traceback import walk_tb
from types import SimpleNamespace
from typing import Any

import gradio as gr
from gradio import processing_utils, route_utils, routes, state_holder, utils
from gradio.block_function import BlockFunction
from gradio.blocks import Block as Block
from gradio.components import Component
from gradio.data_classes import BlocksConfigDict, PredictBody
from gradio.data_classes import FileData as FileData
from gradio.data_classes import ImageData as ImageData
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, Headers
from starlette.formparsers import MultiPartException

from eichi_utils.problems import Problem, UserError
from eichi_utils.user_data.passing import need_room
from webui.http.addresses import WORD
from webui.http.event_errors import RefusedEvent

# Bytes of an upload between two looks at the disk; a few hundred may come at once.
LOOK_BYTES = 1 << 20
# Files that one event may name. A form has a dozen; a hundred LoRA may be uploaded at once.
MOST_FILES = 300
# Uploads whose progress is kept for who watches it. A page has one at a time.
WATCHED = 100

# What a component's value is read and written by has nothing to do with these.
APPEARANCE = frozenset(["value", "visible", "interactive", "label", "info", "placeholder", "open", "elem_classes", "render"])


def number_of(component: Block) -> int:
    """Return a component's number on its page: the order of making, and a key that outlives a session (6.31: `_id`)."""
    return component._id


def described(page: gr.Blocks) -> list[Any]:
    """Return what a page is made of, as plain data: its components, and its functions with what they read and change."""
    components = [(number, type(block).__name__) for number, block in sorted(page.blocks.items())]
    functions = []
    for number, function in sorted(page.fns.items()):
        read, changed = (list(map(number_of, blocks)) for blocks in (function.inputs, function.outputs))
        targets = sorted(map(str, function.targets))
        functions.append((number, function.name, targets, read, changed, function.trigger_after, function.js))
    return [components, functions]


def upload_folder() -> Path:
    """Return the folder into which gradio writes what is uploaded (6.31: by the environment at each call)."""
    return Path(utils.get_upload_folder())


def is_upload(path: str) -> bool:
    """Tell whether a path is in gradio's folder of uploads."""
    return Path(path).resolve().is_relative_to(upload_folder().resolve())


def served_copy(path: str, component: Component) -> str:
    """Return a copy of a file where browsers may see it, as gradio makes one of what a component shows."""
    return processing_utils.save_file_to_cache(path, component.GRADIO_CACHE)


def can_be_sent(data: list[Any]) -> bool:
    """Tell whether gradio's kind of JSON can hold an answer: no halves of characters, no integers of more than 64 bits."""
    try:
        routes.ORJSONResponse(data)
    except TypeError:
        return False
    return True


def was_raised_while_reading(error: Exception) -> bool:
    """Tell whether gradio raised it at a value that no component of the page sends."""
    frames = (frame for frame, _ in walk_tb(error.__traceback__))
    return any(frame.f_code is gr.Blocks.preprocess_data.__code__ for frame in frames)


def paths_in(value: Any) -> Iterator[Any]:
    """Every path of a file in what a browser sent for a component: those of single ones, of lists, and inside of others."""
    rest = [value]
    while rest:
        one = rest.pop()
        if isinstance(one, Mapping):
            if one.get("path") is not None:
                yield one["path"]
            rest += one.values()
        elif isinstance(one, (list, tuple)):
            rest += one


def note_use(path: str) -> None:
    """Let an upload count as used now; those that nobody uses are deleted some day."""
    with suppress(OSError):
        if is_upload(path):
            os.utime(path)


@dataclass(frozen=True)
class Event:
    """A function that an event calls: its name, and the components that it changes."""

    name: str
    outputs: tuple[Block, ...]


class AnsweredBlocks(gr.Blocks):
    """A page whose events all pass `answer`. message: an output that each of them has beside its own."""

    message: gr.HTML

    async def answer(self, event: Event, inputs: list[Any], run: Callable[[], Awaitable[dict[str, Any]]]) -> dict[str, Any]:
        """Return an event's answer; `run` makes gradio's."""
        raise NotImplementedError

    async def process_api(
        self, block_fn: BlockFunction | int, inputs: list[Any], *args: Any, **settings: Any
    ) -> dict[str, Any]:
        """Gradio (6.31) has every event of every route come through here."""
        function = self.fns[block_fn] if isinstance(block_fn, int) else block_fn
        make = super().process_api
        event = Event(function.name or "", tuple(function.outputs))
        return await self.answer(event, inputs, lambda: make(function, inputs, *args, **settings))

    def get_config_file(self) -> BlocksConfigDict:
        """Browsers learn from this (6.31) which components an answer's values are for."""
        config = super().get_config_file()
        for call in config.get("dependencies", []):
            if call["backend_fn"] and number_of(self.message) not in call["outputs"]:
                call["outputs"] = [*call["outputs"], number_of(self.message)]
        return config


def unchanged(event: Event) -> dict[str, Any]:
    """Return the answer after which every output is as it was (6.31: what `Blocks.process_api` returns)."""
    return {
        "data": [gr.skip() for _ in event.outputs],
        "is_generating": False,
        "iterator": None,
        "duration": 0.0,
        "average_duration": 0.0,
        "render_config": None,
        "changed_state_ids": [],
        "used_cache": None,
    }


class IdleBlocks(gr.Blocks):
    """A page that costs the server nothing while nobody clicks, and holds no connection to it open.

    Gradio (6.31) keeps a stream for each tab that has state, to forget it with the tab. Browsers open six connections to a
    server, so the sixth tab would never load; here the oldest of so many `sessions` are forgotten instead.

    pause: seconds between two looks into the queue, of gradio's own 1 and 10 ms.
    """

    def __init__(self, *, sessions: int, pause: float, **settings: Any):
        # Making a page makes its queue.
        self._pause = pause
        super().__init__(**settings)
        self.state_session_capacity = sessions

    def queue(self, *args: Any, **settings: Any) -> gr.Blocks:
        """Make the queue as gradio does, and let it look into it less often."""
        super().queue(*args, **settings)
        self._queue.sleep_when_free = self._queue.progress_update_sleep_when_free = self._pause
        return self

    def get_config_file(self) -> BlocksConfigDict:
        """Return what browsers learn of the page: among it, to hold no connection open."""
        config = super().get_config_file()
        config["connect_heartbeat"] = False
        return config


class CheckedBlocks(gr.Blocks):
    """A page whose components take no file that was not uploaded. holds: whether a browser may name a path."""

    def __init__(self, *, holds: Callable[[Any], bool], **settings: Any):
        super().__init__(**settings)
        self.holds = holds
        # Gradio (6.31: `processing_utils._check_allowed`) looks at the paths that a browser sends only on pages that it has
        # launched itself; on a mounted one it copies any file of the server to where everybody can fetch it.
        self.has_launched = True
        # Gradio (6.31) notes the path of each upload, for a tidying of its own that is not on.
        self.upload_file_set = _Forgetful()

    async def preprocess_data(self, block_fn: Any, inputs: list[Any], *args: Any, **settings: Any) -> list[Any]:
        """Refuse what names other files, before gradio opens any (6.31: every event of every route comes through here).

        Raises UserError.
        """
        paths = [path for value in inputs for path in paths_in(value)]
        if len(paths) > MOST_FILES:
            raise UserError([Problem("", "page_too_many_files", {"most": MOST_FILES})])
        if paths:
            await run_in_threadpool(self._check_paths, paths)
        return await super().preprocess_data(block_fn, inputs, *args, **settings)

    def _check_paths(self, paths: list[Any]) -> None:
        """Note the use of files, each once. Raises UserError where one may not be named."""
        seen = set()
        for path in paths:
            if isinstance(path, str) and path in seen:
                continue
            if not self.holds(path):
                raise UserError([Problem("", "file_not_uploaded", {"file": str(path)[-200:]})])
            note_use(path)
            seen.add(path)


class _Forgetful(set):
    """A set to which nothing is added."""

    def update(self, *others: Any) -> None:
        """Keep nothing."""


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

    async def _part_by_part(self, stream: AsyncIterator[bytes], border: bytes) -> AsyncGenerator[bytes, None]:
        """What comes, cut where a part may begin, so that the one before is written and closed by then."""
        since = 0
        async for chunk in stream:
            # Others write there as well, so what was free when the upload began says little.
            if (since := since + len(chunk)) >= LOOK_BYTES:
                need_room(Path(self.upload_dir or upload_folder()))
                since = 0
            first, *others = chunk.split(border)
            for piece in (first, *(border + other for other in others)):
                yield piece
                # Only here is all of it on the disk.
                for file in self._done:
                    file.close()
                self._done.clear()

    def on_headers_finished(self) -> None:
        """Begin a part. Raises MultiPartException for one that is no file."""
        super().on_headers_finished()
        if self._current_part.file is None or self._current_part.field_name != "files":
            raise MultiPartException("Every part of an upload has to be a file by the name of files.")

    def on_part_end(self) -> None:
        """End a part, and note its file to be closed once all of it is written."""
        super().on_part_end()
        if self._current_part.file is not None:
            self._done.append(self._current_part.file.file)

    async def parse(self) -> FormData:
        """Read it all. Raises MultiPartException, OSError, UserError."""
        try:
            return await super().parse()
        except FormParserError as error:
            # Of a border that is too long gradio (6.31) hears before it listens for such.
            raise MultiPartException(str(error)) from error
        except (OSError, UserError):
            for file in self._files_to_close_on_error:
                # What has not been written yet cannot be now, either.
                with suppress(OSError):
                    file.close()
                Path(file.name).unlink(missing_ok=True)
            raise
        finally:
            # Else who watches the progress watches for ever.
            if self.upload_progress is not None and self.upload_id is not None:
                self.upload_progress.set_done(self.upload_id)


class UploadProgress(route_utils.FileUploadProgress):
    """Forgets uploads of which nobody wants to know any more.

    Gradio (6.31) keeps a signal for each upload that was asked for by any name, and the state of each that nobody watches.
    """

    def track(self, upload_id: str) -> None:
        """Begin to count an upload; of too many that nobody watches the oldest are forgotten."""
        super().track(upload_id)
        while len(self._statuses) > WATCHED:
            self.stop_tracking(next(iter(self._statuses)))

    async def is_tracked(self, upload_id: str) -> bool:
        """Wait whether an upload of this name comes, and forget the question if none did."""
        try:
            return await super().is_tracked(upload_id)
        finally:
            if upload_id not in self._statuses:
                self._signals.pop(upload_id, None)

    def stop_tracking(self, upload_id: str) -> None:
        """Forget an upload, and who has asked for it."""
        super().stop_tracking(upload_id)
        self._signals.pop(upload_id, None)


class TabState(state_holder.SessionState):
    """What a page keeps of one tab: its states, and the components that read or write values otherwise than they did.

    Gradio (6.31) keeps a component of its own for each that was ever updated, and the look of all for links to a state of the
    page, which are closed here: 700 KB of a tab.
    """

    def __init__(self, blocks: gr.Blocks):
        given: Any = SimpleNamespace(default_config=blocks.default_config, blocks=())
        super().__init__(given)
        # A component that is not kept; gradio reads it once at once, for the answer.
        self._passing: tuple[int, Any] | None = None

    def __getitem__(self, key: int) -> Any:
        passing, self._passing = self._passing, None
        return passing[1] if passing and passing[0] == key else super().__getitem__(key)

    def __setitem__(self, key: int, value: Any) -> None:
        known = self.blocks_config.blocks.get(key)
        if known is None or known.stateful or _behaviour(known) != _behaviour(value):
            super().__setitem__(key, value)
            self.config_values.clear()
        else:
            self._passing = key, value

    def _update_config(self, key: int) -> None:
        """Keep nothing."""

    def _update_value_in_config(self, key: int, value: Any) -> None:
        """Keep nothing."""


def function_of(blocks: gr.Blocks, api_name: str | None, body: PredictBody) -> BlockFunction:
    """Return the function that an event asks for.

    Gradio's own (6.31: `route_utils.get_fn`) makes an error of the server's of one that is not there, and first keeps a state
    for a session of any name, however long. Raises RefusedEvent.
    """
    if body.session_hash is not None and not WORD.fullmatch(body.session_hash):
        raise RefusedEvent(HTTPStatus.BAD_REQUEST, "word")
    if body.fn_index is None:
        found = next((function for function in blocks.fns.values() if function.api_name == api_name), None)
    else:
        found = blocks.fns.get(body.fn_index)
    if found is None:
        raise RefusedEvent(HTTPStatus.NOT_FOUND, "function")
    return found


def _behaviour(component: Any) -> dict[str, Any]:
    """What a component was made with, but for what its browser alone has to do with."""
    return {name: value for name, value in component.constructor_args.items() if name not in APPEARANCE}


def replace_parts() -> None:
    """Have gradio use the parts above; it (6.31) offers no other way to choose them."""
    route_utils.GradioMultiPartParser = UploadParser
    if not isinstance(routes.file_upload_statuses, UploadProgress):
        routes.file_upload_statuses = UploadProgress()
    route_utils.get_fn = function_of
    state_holder.SessionState = TabState
