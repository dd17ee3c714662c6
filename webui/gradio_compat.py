"""Collect all uses of gradio's undocumented or private names, each with its reason and the version it was seen in.

`tests/webui/test_gradio_names.py` lists them all, and says which of them an upgrade has removed and what to do then.
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

# Bytes of an upload between two checks of the free disk space; a few hundred uploads may run at once.
LOOK_BYTES = 1 << 20
# The most files that one event may name. A form has a dozen; a hundred LoRA may be uploaded at once.
MOST_FILES = 300
# The most uploads whose progress is kept for the page that shows it. A page has one at a time.
WATCHED = 100

# Arguments of a component that affect only its look, not how its value is read and written.
APPEARANCE = frozenset(["value", "visible", "interactive", "label", "info", "placeholder", "open", "elem_classes", "render"])


def number_of(component: Block) -> int:
    """Return a component's number on its page: the order of creation, and a key that outlives a session (6.31: `_id`)."""
    return component._id


def described(page: gr.Blocks) -> list[Any]:
    """Return a page's components, and its functions with their inputs and outputs, as plain data to be hashed."""
    components = [(number, type(block).__name__) for number, block in sorted(page.blocks.items())]
    functions = []
    for number, function in sorted(page.fns.items()):
        read, changed = (list(map(number_of, blocks)) for blocks in (function.inputs, function.outputs))
        targets = sorted(map(str, function.targets))
        functions.append((number, function.name, targets, read, changed, function.trigger_after, function.js))
    return [components, functions]


def upload_folder() -> Path:
    """Return the folder into which gradio writes uploads (6.31 reads it from the environment at each call)."""
    return Path(utils.get_upload_folder())


def is_upload(path: str) -> bool:
    """Tell whether a path is in gradio's folder of uploads."""
    return Path(path).resolve().is_relative_to(upload_folder().resolve())


def served_copy(path: str, component: Component) -> str:
    """Copy a file into gradio's cache, where browsers may see it, as gradio does for a component's value; return its path."""
    return processing_utils.save_file_to_cache(path, component.GRADIO_CACHE)


def can_be_sent(data: list[Any]) -> bool:
    """Tell whether gradio's JSON can hold an answer: without lone surrogates and integers of more than 64 bits."""
    try:
        routes.ORJSONResponse(data)
    except TypeError:
        return False
    return True


def was_raised_while_reading(error: Exception) -> bool:
    """Tell whether gradio raised an error while reading an event's inputs, at a value that no component of the page sends."""
    frames = (frame for frame, _ in walk_tb(error.__traceback__))
    return any(frame.f_code is gr.Blocks.preprocess_data.__code__ for frame in frames)


def paths_in(value: Any) -> Iterator[Any]:
    """Yield the path of every file in a value that a browser sent for a component, also in nested lists and dictionaries."""
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
    """Mark an upload as used now, by its modification time; uploads that are not used for long are deleted."""
    with suppress(OSError):
        if is_upload(path):
            os.utime(path)


@dataclass(frozen=True)
class Event:
    """Describe the function that an event calls: its name, and the components that it changes."""

    name: str
    outputs: tuple[Block, ...]


class AnsweredBlocks(gr.Blocks):
    """Build a page whose events all go through `answer`. message: an output that each event has beside its own."""

    message: gr.HTML

    async def answer(self, event: Event, inputs: list[Any], run: Callable[[], Awaitable[dict[str, Any]]]) -> dict[str, Any]:
        """Return an event's answer. run: calls the event's function and returns gradio's answer."""
        raise NotImplementedError

    async def process_api(
        self, block_fn: BlockFunction | int, inputs: list[Any], *args: Any, **settings: Any
    ) -> dict[str, Any]:
        """Run an event through `answer`; gradio (6.31) calls this for every event of every route."""
        function = self.fns[block_fn] if isinstance(block_fn, int) else block_fn
        make = super().process_api
        event = Event(function.name or "", tuple(function.outputs))
        return await self.answer(event, inputs, lambda: make(function, inputs, *args, **settings))

    def get_config_file(self) -> BlocksConfigDict:
        """Return gradio's configuration with `message` among every event's outputs, by which browsers read an answer (6.31)."""
        config = super().get_config_file()
        for call in config.get("dependencies", []):
            if call["backend_fn"] and number_of(self.message) not in call["outputs"]:
                call["outputs"] = [*call["outputs"], number_of(self.message)]
        return config


def unchanged(event: Event) -> dict[str, Any]:
    """Return an answer that changes no output (6.31: in the form that `Blocks.process_api` returns)."""
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
    """Build a page that costs the server nothing while nobody clicks, and holds no connection open.

    Gradio (6.31) keeps a stream open for each tab that has state, to drop the state when the tab closes. Browsers open six
    connections to a server, so the sixth tab would never load. Here at most `sessions` states are kept, and the oldest dropped.

    pause: seconds between two polls of gradio's queue, in place of gradio's 1 and 10 ms.
    """

    def __init__(self, *, sessions: int, pause: float, **settings: Any):
        # gr.Blocks.__init__ calls `queue`, which needs it.
        self._pause = pause
        super().__init__(**settings)
        self.state_session_capacity = sessions

    def queue(self, *args: Any, **settings: Any) -> gr.Blocks:
        """Create the queue as gradio does, and set the pause between two polls of it."""
        super().queue(*args, **settings)
        self._queue.sleep_when_free = self._queue.progress_update_sleep_when_free = self._pause
        return self

    def get_config_file(self) -> BlocksConfigDict:
        """Return gradio's configuration for browsers, which tells them to hold no connection open."""
        config = super().get_config_file()
        config["connect_heartbeat"] = False
        return config


class CheckedBlocks(gr.Blocks):
    """Build a page whose components refuse files that a browser may not name. holds: tells whether it may name a path."""

    def __init__(self, *, holds: Callable[[Any], bool], **settings: Any):
        super().__init__(**settings)
        self.holds = holds
        # Gradio (6.31: `processing_utils._check_allowed`) checks the paths that a browser sends only on pages that it has
        # launched itself; on a mounted page it would copy any file of the server to where everybody can fetch it.
        self.has_launched = True
        # Gradio (6.31) collects the path of each upload without a limit, for its own clean-up, which is not on here.
        self.upload_file_set = _Forgetful()

    async def preprocess_data(self, block_fn: Any, inputs: list[Any], *args: Any, **settings: Any) -> list[Any]:
        """Check all paths in an event's inputs before gradio opens a file (6.31 calls this for every event of every route).

        Raises UserError if a path may not be named, or if there are more than MOST_FILES.
        """
        paths = [path for value in inputs for path in paths_in(value)]
        if len(paths) > MOST_FILES:
            raise UserError([Problem("", "page_too_many_files", {"most": MOST_FILES})])
        if paths:
            await run_in_threadpool(self._check_paths, paths)
        return await super().preprocess_data(block_fn, inputs, *args, **settings)

    def _check_paths(self, paths: list[Any]) -> None:
        """Check paths and mark the files as used, each once. Raises UserError if one may not be named."""
        seen = set()
        for path in paths:
            if isinstance(path, str) and path in seen:
                continue
            if not self.holds(path):
                raise UserError([Problem("", "file_not_uploaded", {"file": str(path)[-200:]})])
            note_use(path)
            seen.add(path)


class _Forgetful(set):
    """Replace a set of gradio's by one that stays empty."""

    def update(self, *others: Any) -> None:
        """Keep nothing."""


class UploadParser(route_utils.GradioMultiPartParser):
    """Parse an upload of many files with one file descriptor, without holding a part in memory, and clean up if it fails.

    It stops while some of the disk is still free, which is left to films (`need_room`).

    Gradio (6.31) keeps a file open for each part, up to 1000, until the request ends; keeps parts that are no files in memory,
    whatever their size; and removes the files only after errors of its own kinds, not if the disk is full.
    """

    def __init__(self, headers: Headers, stream: AsyncIterator[bytes], **settings: Any):
        _, options = parse_options_header(headers.get("content-type", ""))
        super().__init__(headers, self._part_by_part(stream, b"\r\n--" + options.get(b"boundary", b"")), **settings)
        self._done: list[Any] = []

    async def _part_by_part(self, stream: AsyncIterator[bytes], border: bytes) -> AsyncGenerator[bytes, None]:
        """Yield the upload's bytes, split where a new part may begin, and close the files of the parts before it."""
        since = 0
        async for chunk in stream:
            # Check again while it runs: other uploads and films write to the same disk.
            if (since := since + len(chunk)) >= LOOK_BYTES:
                need_room(Path(self.upload_dir or upload_folder()))
                since = 0
            first, *others = chunk.split(border)
            for piece in (first, *(border + other for other in others)):
                yield piece
                # Only now is the whole part written to the disk.
                for file in self._done:
                    file.close()
                self._done.clear()

    def on_headers_finished(self) -> None:
        """Begin a part. Raises MultiPartException for a part that is no file named "files"."""
        super().on_headers_finished()
        if self._current_part.file is None or self._current_part.field_name != "files":
            raise MultiPartException("Every part of an upload has to be a file by the name of files.")

    def on_part_end(self) -> None:
        """End a part, and note its file to be closed once it is written."""
        super().on_part_end()
        if self._current_part.file is not None:
            self._done.append(self._current_part.file.file)

    async def parse(self) -> FormData:
        """Read the whole upload. Raises MultiPartException, OSError, UserError; then no file of it is left."""
        try:
            return await super().parse()
        except FormParserError as error:
            # A boundary that is too long raises this before gradio (6.31) catches such errors.
            raise MultiPartException(str(error)) from error
        except (OSError, UserError):
            for file in self._files_to_close_on_error:
                # Closing flushes, which fails again on a full disk.
                with suppress(OSError):
                    file.close()
                Path(file.name).unlink(missing_ok=True)
            raise
        finally:
            # Otherwise the page that watches the progress would wait for ever.
            if self.upload_progress is not None and self.upload_id is not None:
                self.upload_progress.set_done(self.upload_id)


class UploadProgress(route_utils.FileUploadProgress):
    """Track the progress of uploads, and drop the state of those that nobody watches.

    Gradio (6.31) keeps a signal for each name that was ever asked for, and the state of each upload that nobody watches.
    """

    def track(self, upload_id: str) -> None:
        """Begin to track an upload, and drop the oldest ones beyond WATCHED."""
        super().track(upload_id)
        while len(self._statuses) > WATCHED:
            self.stop_tracking(next(iter(self._statuses)))

    async def is_tracked(self, upload_id: str) -> bool:
        """Wait for an upload of this name; return whether it came, and drop its signal if it did not."""
        try:
            return await super().is_tracked(upload_id)
        finally:
            if upload_id not in self._statuses:
                self._signals.pop(upload_id, None)

    def stop_tracking(self, upload_id: str) -> None:
        """Drop the state and the signal of an upload."""
        super().stop_tracking(upload_id)
        self._signals.pop(upload_id, None)


class TabState(state_holder.SessionState):
    """Keep the session state of one tab: its states, and only those components whose reading or writing of values has changed.

    Gradio (6.31) keeps a copy of each component that was ever updated, and the look of all of them for deep links, which are
    closed here: 700 KB per tab.
    """

    def __init__(self, blocks: gr.Blocks):
        given: Any = SimpleNamespace(default_config=blocks.default_config, blocks=())
        super().__init__(given)
        # (key, component) that is not kept: gradio reads it once, directly after setting it, for the answer.
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
    """Return the function that an event calls. Raises RefusedEvent if there is none, or if the session's name is malformed.

    Gradio's own (6.31: `route_utils.get_fn`) answers a missing function with an internal server error, after it has created a
    session state under a name of any length.
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
    """Return the arguments of a component's constructor, without those that affect only its look."""
    return {name: value for name, value in component.constructor_args.items() if name not in APPEARANCE}


def replace_parts() -> None:
    """Replace gradio's parts by those above; gradio (6.31) offers no setting for them."""
    route_utils.GradioMultiPartParser = UploadParser
    if not isinstance(routes.file_upload_statuses, UploadProgress):
        routes.file_upload_statuses = UploadProgress()
    route_utils.get_fn = function_of
    state_holder.SessionState = TabState
