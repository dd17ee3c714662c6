"""Test that the undocumented names of gradio and uvicorn still exist, and that all that are used are tested."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest
import uvicorn
from starlette.datastructures import Headers
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from tests.threads import in_a_loop
from webui import gradio_compat
from webui.gradio_compat import UploadParser, UploadProgress

# Gradio's own classes, also where `replace_parts` has put ours in their place.
originals = SimpleNamespace(
    GradioMultiPartParser=UploadParser.__base__,
    FileUploadProgress=UploadProgress.__base__,
    SessionState=gradio_compat.TabState.__base__,
)
# What `gradio_compat` uses of gradio 6.31 that is not documented: where the tests below find it (`gradios`) -> its names.
GRADIO = {
    "page": "fns blocks default_config state_session_capacity has_launched upload_file_set process_api preprocess_data _queue "
    "get_config_file queue",
    "page._queue": "sleep_when_free progress_update_sleep_when_free",
    "component": "_id GRADIO_CACHE constructor_args stateful",
    "function": "name api_name inputs outputs targets trigger_after js",
    "config": "dependencies connect_heartbeat",
    "dependency": "backend_fn outputs",
    "routes": "ORJSONResponse file_upload_statuses",
    "route_utils": "GradioMultiPartParser FileUploadProgress get_fn",
    "state_holder": "SessionState",
    "utils": "get_upload_folder",
    "processing_utils": "save_file_to_cache _check_allowed",
    "gradio.data_classes": "BlocksConfigDict FileData ImageData PredictBody",
    "gradio.blocks": "Block",
    "gradio.block_function": "BlockFunction",
    "parser": "upload_dir upload_id upload_progress _files_to_close_on_error _current_part on_headers_finished "
    "on_part_end parse",
    "parser._current_part": "file field_name",
    "progress": "_statuses _signals track is_tracked stop_tracking set_done",
    "tab": "blocks_config config_values _update_config _update_value_in_config __getitem__ __setitem__",
    "tab.blocks_config": "blocks",
}
# Parameters that the overriding methods and functions of `gradio_compat` take as gradio gives them.
PARAMETERS = {
    "page.process_api": ["block_fn", "inputs"],
    "page.preprocess_data": ["block_fn", "inputs"],
    "route_utils.get_fn": ["blocks", "api_name", "body"],
    "state_holder.SessionState": ["blocks"],
    "processing_utils.save_file_to_cache": ["file_path", "cache_dir"],
    "route_utils.GradioMultiPartParser": ["headers", "stream"],
    "progress.track": ["upload_id"],
    "progress.is_tracked": ["upload_id"],
    "progress.stop_tracking": ["upload_id"],
    "tab._update_config": ["key"],
    "tab._update_value_in_config": ["key", "value"],
}
TAKEN_AWAY = (
    "gradio {version} has no {name} any more. {users} of webui/gradio_compat.py depend on it: look in gradio's source for what "
    "took its place, change them, and name the version there; nothing else knows of it."
)


async def nothing() -> AsyncIterator[bytes]:
    for chunk in ():
        yield chunk


@pytest.fixture(scope="module")
def gradios() -> dict[str, Any]:
    """Return gradio's own objects, without any of ours."""
    with gr.Blocks(analytics_enabled=False) as page:
        component = gr.Textbox()
        component.change(lambda text: text, component, component)
    page.queue()
    config = page.get_config_file()
    headers = Headers({"content-type": "multipart/form-data; boundary=b"})
    parser = originals.GradioMultiPartParser(headers, nothing(), upload_dir="", max_file_size=1)
    function = next(iter(page.fns.values()))
    modules = {name: importlib.import_module(f"gradio.{name}") for name in ("routes", "route_utils", "state_holder", "utils")}
    modules |= {"processing_utils": importlib.import_module("gradio.processing_utils")}
    modules |= {name: importlib.import_module(name) for name in GRADIO if name.startswith("gradio.")}
    return modules | {
        "page": page,
        "component": component,
        "function": function,
        "config": config,
        "dependency": config["dependencies"][0],
        "parser": parser,
        "progress": originals.FileUploadProgress(),
        "tab": originals.SessionState(page),
    }


def looked_up(things: dict[str, Any], name: str) -> Any:
    """Return what is called so, such as "page._queue"; raises AttributeError."""
    owner, *rest = (name,) if name in things else name.split(".")
    found = things[owner]
    for part in rest:
        found = getattr(found, part)
    return found


def users_of(name: str) -> str:
    """Return which functions and classes of `gradio_compat` name it."""
    tree = ast.parse(Path(gradio_compat.__file__).read_text(encoding="utf-8"))
    tops = [node for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    return ", ".join(node.name for node in tops if re.search(rf"\b{name}\b", ast.unparse(node))) or "The imports"


@pytest.mark.parametrize(("owner", "name"), [(owner, name) for owner, names in GRADIO.items() for name in names.split()])
def test_gradio_still_has(gradios: dict[str, Any], owner: str, name: str) -> None:
    """Gradio still has the names that are used; a missing one would show itself in the middle of an event, or let a check
    pass."""
    said = TAKEN_AWAY.format(version=gr.__version__, name=f"{owner}.{name}", users=users_of(name))
    try:
        place = looked_up(gradios, owner)
    except AttributeError:
        pytest.fail(said)
    assert name in place if isinstance(place, dict) else hasattr(place, name), said


@pytest.mark.parametrize(("name", "parameters"), PARAMETERS.items())
def test_gradio_still_calls_it_so(gradios: dict[str, Any], name: str, parameters: list[str]) -> None:
    found = list(inspect.signature(looked_up(gradios, name)).parameters)
    users = users_of(name.split(".")[-1])
    said = (
        f"gradio {gr.__version__} gives {name} {found}, where {users} of webui/gradio_compat.py takes {parameters}: change it."
    )
    assert found[: len(parameters)] == parameters, said


def test_uvicorn_still_has() -> None:
    """Uvicorn (0.54) still has the names, one of them private, by which connections get a time limit."""
    config = uvicorn.Config(None, lifespan="off")
    config.load()
    in_a_loop(_has_all(lambda: H11Protocol(config=config, server_state=ServerState(), app_state={})))


async def _has_all(make: Callable[[], H11Protocol]) -> None:
    connection = make()
    names = ["app", "cycle", "transport", "loop", "timeout_keep_alive", "on_response_complete", "_unset_keepalive_if_required"]
    gone = [name for name in names if not hasattr(connection, name)]
    said = f"uvicorn {uvicorn.__version__} has no {gone} any more: Connection of webui/http/connection.py depends on them."
    assert not gone, said


def test_every_private_name_is_listed() -> None:
    """Every private name of gradio's that `gradio_compat` uses is tested, so that a removed one is found before a page
    fails."""
    tree = ast.parse(Path(gradio_compat.__file__).read_text(encoding="utf-8"))
    listed = {name for names in GRADIO.values() for name in names.split()}
    private = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and re.match(r"_[a-z]", node.attr)}
    own = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)}
    own |= {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))}
    assert private - own <= listed and len(private - own) > 5
    imported = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module.startswith("gradio.") and node.module != "gradio.components"
        for alias in node.names
    }
    assert imported <= listed
