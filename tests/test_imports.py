"""Who may import whom, what importing may do, and a few rules that every file keeps."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("webui", "eichi_utils", "lora_utils", "diffusers_helper", "locales", "miniature", "benchmarks")
PRODUCT = sorted(
    path.relative_to(ROOT).as_posix()
    for path in [ROOT / "launch.py", *(file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))]
)
TESTS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").rglob("*.py"))

# Our own packages that each may import, itself aside.
MAY_IMPORT = {
    "webui": {"eichi_utils", "locales"},
    "eichi_utils": {"lora_utils", "diffusers_helper"},
    "lora_utils": set(),
    "diffusers_helper": set(),
    "locales": set(),
    "miniature": {"eichi_utils", "lora_utils", "diffusers_helper"},
    "benchmarks": {"eichi_utils", "lora_utils", "diffusers_helper", "miniature"},
    "launch.py": {"eichi_utils"},
}
# The command line speaks to the user, so it knows the catalogues of words.
COMMAND_LINE = ("cli", "progress", "doctor")
# The table of picture sizes is plain arithmetic, and the form shows it; the demo makes itself a checkpoint where none is.
EXCEPTIONS = {"eichi_utils/cli/demo.py": {"miniature.random_checkpoint"}}

# The upper half of eichi_utils: plans, requests, jobs. It starts in an instant and runs where torch is not installed.
WITHOUT_TORCH = (
    "request", "plan", "reverse", "forward", "single", "modes", "events", "view", "jobs", "metadata", "pictures", "paths",
    "png_chunks", "film_boxes", "film_texts", "foreign_texts", "comfy_graph", "named_files",
    "engine", "cli", "catalogue", "hub", "description", "preflight", "sizes", "cards", "legacy", "archive",
    "fields", "kept", "lora_fit", "lora_folder", "loras", "png_text", "sections_text", "sections_zip", "settings", "presets",
    "append", "latent_info", "request_files", "safe_reading", "encodings", "request_values",
    "picture_files", "picture_parts", "exif", "colours", "log", "notify", "story",
    "console", "progress", "temporary", "purge", "passing", "housekeeping",
)  # fmt: skip
HEAVY = ("torch", "diffusers", "transformers", "gradio")

# A worker that must end every job in one of its three ways, whatever happens; and the pages' handlers, whose errors end in a
# sentence.
CATCH_ALL = {"eichi_utils/jobs/queue.py", "webui/forms/boundary.py"}
# What names files by day and hour, or compares with the times of files; and the training of the miniature.
WALL_CLOCK = {
    "eichi_utils/files/paths.py",
    "eichi_utils/files/disk_cache.py",
    "eichi_utils/user_data/passing.py",
    "eichi_utils/user_data/purge.py",
    "eichi_utils/files/temporary.py",
    "webui/panels/sections_panel.py",
    "webui/forms/set_aside.py",
    "miniature/training.py",
}
MAY_PRINT = ("launch.py", "eichi_utils/cli", "miniature/", "benchmarks/")
LONGEST = 420


def tree(file: str) -> ast.Module:
    return ast.parse((ROOT / file).read_text(encoding="utf-8"), file)


def package(file: str) -> str:
    return file.split("/")[0]


def imports(file: str) -> set[str]:
    """Full names of everything imported, also inside functions and under TYPE_CHECKING."""
    found = set()
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in (
            "importlib.import_module",
            "import_module",
            "__import__",
        ):
            if node.args and isinstance(node.args[0], ast.Constant):
                found.add(node.args[0].value)
    return found


def is_command_line(file: str) -> bool:
    return package(file) == "eichi_utils" and Path(file).stem.startswith(COMMAND_LINE)


def test_the_tree_is_seen():
    """The tests below say nothing about files that they do not find."""
    assert {package(file) for file in PRODUCT} >= {"launch.py", "webui", "eichi_utils", "diffusers_helper", "locales"}
    assert len(PRODUCT) > 40 and "eichi_utils/jobs/queue.py" in PRODUCT and "diffusers_helper/models/blocks.py" in PRODUCT
    assert "diffusers_helper.models.step_cache.StepCache" in imports("diffusers_helper/models/transformer.py")


@pytest.mark.parametrize("file", PRODUCT)
def test_imports_follow_the_layers(file):
    """webui -> eichi_utils -> {lora_utils, diffusers_helper}; words of a language only where somebody reads them.

    In the original the three programs imported each other's globals, and a change to one page broke another.
    """
    allowed = {package(file), *MAY_IMPORT[package(file)]} | ({"locales"} if is_command_line(file) else set())
    exceptions = EXCEPTIONS.get(file, set())
    wrong = {
        name
        for name in imports(file)
        if name.split(".")[0] in {*MAY_IMPORT, "launch", "tests"}
        and name.split(".")[0] not in allowed
        and not any(name == exception or name.startswith(f"{exception}.") for exception in exceptions)
    }
    assert not wrong


@pytest.mark.parametrize("file", [file for file in PRODUCT if package(file) != "webui"])
def test_only_webui_knows_gradio(file):
    """The command line and the tests of everything else work without it, and another page can replace it."""
    assert not {name for name in imports(file) if name.split(".")[0] == "gradio"}


@pytest.mark.parametrize("file", [file for file in PRODUCT if package(file) == "webui"])
def test_pages_do_not_compute(file):
    """Networks belong to the worker behind the pages."""
    assert not {name for name in imports(file) if name.split(".")[0] in ("torch", "diffusers", "transformers")}


# Run in one process of its own, because this one has everything imported. Prints one line of JSON.
PROBE = """
import json, sys, threading

network = []
sys.addaudithook(lambda event, _: network.append(event) if event in ("socket.connect", "socket.getaddrinfo") else None)
light, rest, heavy = json.loads(sys.argv[1])

def load(names):
    for name in names:
        __import__(name)

load(light)
report = {"heavy": [name for name in heavy if name in sys.modules]}
load(rest)
import torch
report["missing"] = [name for name in (*light, *rest) if name not in sys.modules]
report["cuda"] = torch.cuda.is_initialized()
report["threads"] = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
report["network"] = network
report["gradio"] = "gradio" in sys.modules
report["grad"] = torch.is_grad_enabled()
report["dtype"] = str(torch.get_default_dtype())
print("REPORT" + json.dumps(report))
"""


def module(file: str) -> str:
    return file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


@pytest.fixture(scope="module")
def probe(tmp_path_factory) -> dict:
    """What importing did; "output" is everything that was printed meanwhile."""
    light = [f"eichi_utils.{name}" for name in WITHOUT_TORCH]
    rest = [module(file) for file in PRODUCT if package(file) in ("diffusers_helper", "eichi_utils", "lora_utils", "locales")]
    home = str(tmp_path_factory.mktemp("home"))
    done = subprocess.run(
        [sys.executable, "-c", PROBE, json.dumps([light, rest, HEAVY])],
        cwd=ROOT,
        env={**os.environ, "HOME": home, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    output, _, report = done.stdout.partition("REPORT")
    return {**json.loads(report), "output": output + done.stderr, "home": [path.name for path in Path(home).rglob("*")]}


def test_plans_and_jobs_do_not_need_torch(probe):
    """`--plan`, `--help` and a wrong flag answer at once instead of after ten seconds of imports."""
    assert probe["heavy"] == []


def test_importing_starts_nothing(probe):
    """The original initialised CUDA, loaded settings and printed a page of text on import.

    A process that only wants to read a plan must not take a card's memory, ask the network or leave a thread behind.
    """
    assert probe["missing"] == []
    assert probe["cuda"] is False
    assert probe["threads"] == [] and probe["network"] == []
    assert probe["gradio"] is False


def test_importing_prints_nothing(probe):
    assert probe["output"] == ""


def test_importing_leaves_torch_and_the_home_folder_as_they_were(probe):
    """torch.set_grad_enabled(False) on import, as the original had it, changes every program that imports one of its files."""
    assert probe["grad"] is True and probe["dtype"] == "torch.float32"
    assert probe["home"] == []


@pytest.mark.parametrize("file", [*PRODUCT, *TESTS])
def test_nothing_is_global(file):
    """`global` is state that two jobs share without knowing: the original's stop button stopped the wrong one."""
    assert not [node.lineno for node in ast.walk(tree(file)) if isinstance(node, ast.Global)]


def broad(node: ast.expr | None) -> bool:
    """Whether an except clause catches everything."""
    if node is None:
        return True
    names = node.elts if isinstance(node, ast.Tuple) else [node]
    return any(isinstance(name, ast.Name) and name.id in ("Exception", "BaseException") for name in names)


@pytest.mark.parametrize("file", [file for file in PRODUCT if file not in CATCH_ALL])
def test_no_error_is_swallowed(file):
    """`except Exception` hides the typing error in the line above it; name what can happen."""
    wrong = []
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.ExceptHandler) and broad(node.type):
            wrong.append(node.lineno)
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("suppress") and any(map(broad, node.args)):
            wrong.append(node.lineno)
    assert not wrong


@pytest.mark.parametrize("file", [file for file in PRODUCT if not file.startswith(MAY_PRINT)])
def test_nobody_prints_but_the_command_line(file):
    """The rest says what happens in events, and writes what went wrong to the log."""
    calls = (node for node in ast.walk(tree(file)) if isinstance(node, ast.Call))
    assert not [node.lineno for node in calls if isinstance(node.func, ast.Name) and node.func.id == "print"]


def test_durations_are_taken_from_a_clock_that_nobody_sets():
    """Where the system's clock was set while a film was made, it had taken a day, or less than nothing."""
    users = {
        file
        for file in PRODUCT
        for node in ast.walk(tree(file))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "time.time"
    }
    assert users <= WALL_CLOCK


@pytest.mark.parametrize("file", PRODUCT)
def test_a_file_is_read_in_one_sitting(file):
    """The original's pages had 4000 lines and more. Past 420, it wants to be two."""
    assert len((ROOT / file).read_text(encoding="utf-8").splitlines()) <= LONGEST
