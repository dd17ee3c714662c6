"""Check which module may import which, what an import may do, and a few rules that every file keeps."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import tokenize
from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path

import pytest

from tests.conftest import DEAR

ROOT = Path(__file__).parent.parent
PACKAGES = ("webui", "eichi_utils", "lora_utils", "diffusers_helper", "locales", "miniature", "benchmarks")
PRODUCT = sorted(
    path.relative_to(ROOT).as_posix()
    for path in [ROOT / "launch.py", *(file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))]
)
STATIC = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "webui/static").iterdir())
TESTS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").rglob("*.py"))

# Packages of this project that each package may import besides itself.
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
# Folders of eichi_utils from the top: a module may import from its own folder and from those in the lines below.
FLOORS = (
    ("cli",),
    ("render",),
    ("jobs",),
    ("user_data",),
    ("models", "exchange"),
    ("requests",),
    ("files",),
    ("setup", "problems"),
)
# Modules that import each other: each page's entry script serves all three pages.
CIRCLE = {"webui.app", "webui.endframe_ichi", "webui.endframe_ichi_f1", "webui.oneframe_ichi"}
# The command line prints texts in the user's language, so it may import `locales`.
COMMAND_LINE = "eichi_utils/cli/"
# The demo writes itself a checkpoint where there is none.
EXCEPTIONS = {"eichi_utils/cli/demo.py": {"miniature.random_checkpoint"}}

# Modules that compute, and so import torch; all others of eichi_utils start at once and run where torch is not installed.
WITH_TORCH = (
    "eichi_utils/render/", "eichi_utils/models/pool.py", "eichi_utils/models/components.py", "eichi_utils/models/bake.py",
    "eichi_utils/models/lora_binding.py", "eichi_utils/models/loaded_networks.py", "eichi_utils/models/weight_cache.py",
    "eichi_utils/exchange/latent_files.py",
    "eichi_utils/cli/doctor.py",
)  # fmt: skip
# Modules of eichi_utils/render that import no torch: pages and the command line use them before anything is loaded.
LIGHT_ALL_THE_SAME = {f"eichi_utils/render/{name}.py" for name in ("__init__", "engine")}
HEAVY = ("torch", "diffusers", "transformers", "gradio")

# Files that may catch every exception: the worker, which must end every job in one of three ways, and the boundary of the
# pages' handlers, which turns errors into sentences.
CATCH_ALL = {"eichi_utils/jobs/queue.py", "webui/forms/boundary.py"}
# Files that may read the wall clock: they name files by date or compare with files' times; and the miniature's training.
WALL_CLOCK = {
    "eichi_utils/files/paths.py",
    "eichi_utils/files/disk_cache.py",
    "eichi_utils/user_data/passing.py",
    "eichi_utils/user_data/purge.py",
    "eichi_utils/files/temporary.py",
    "webui/panels/sections_panel.py",
    "webui/forms/damaged_files.py",
    "miniature/training.py",
}
MAY_PRINT = ("launch.py", COMMAND_LINE, "miniature/", "benchmarks/")
LONGEST = 400
# Documented classes of gradio that every page and panel may use: components and themes.
OF_GRADIO = {"gradio.components.Component", *(f"gradio.themes.{name}" for name in ("Base", "Default", "colors", "sizes"))}


@cache
def tree(file: str) -> ast.Module:
    return ast.parse((ROOT / file).read_text(encoding="utf-8"), file)


def only_wrong(found: Mapping[str, Collection]) -> dict[str, Collection]:
    """Keep only the files in which something was found."""
    return {file: wrong for file, wrong in found.items() if wrong}


def package(file: str) -> str:
    return file.split("/")[0]


@cache
def imports(file: str) -> frozenset[str]:
    """Return the full names of everything a file imports, also inside functions and under TYPE_CHECKING."""
    found = set()
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif (
            isinstance(node, ast.Call)
            and ast.unparse(node.func) in ("importlib.import_module", "import_module", "__import__")
            and node.args
            and isinstance(node.args[0], ast.Constant)
        ):
            found.add(node.args[0].value)
    return frozenset(found)


def is_command_line(file: str) -> bool:
    return file.startswith(COMMAND_LINE)


def is_light(file: str) -> bool:
    return package(file) == "eichi_utils" and (not file.startswith(WITH_TORCH) or file in LIGHT_ALL_THE_SAME)


def floor(module: str) -> int:
    """Return how many lines of FLOORS are above the folder of a module of eichi_utils."""
    folder = module.split(".")[1]
    return next(number for number, folders in enumerate(FLOORS) if folder in folders)


def test_the_tree_is_seen():
    """The tests below check only the files that they find, so some known files must be among them."""
    assert {package(file) for file in PRODUCT} >= {"launch.py", "webui", "eichi_utils", "diffusers_helper", "locales"}
    assert len(PRODUCT) > 40 and "eichi_utils/jobs/queue.py" in PRODUCT and "diffusers_helper/models/blocks.py" in PRODUCT
    assert "diffusers_helper.models.step_cache.StepCache" in imports("diffusers_helper/models/transformer.py")


def test_imports_follow_the_layers():
    """webui -> eichi_utils -> {lora_utils, diffusers_helper}; words of a language only where somebody reads them.

    In the original the three programs imported each other's globals, and a change to one page broke another.
    """
    found = {}
    for file in PRODUCT:
        allowed = {package(file), *MAY_IMPORT[package(file)]} | ({"locales"} if is_command_line(file) else set())
        exceptions = EXCEPTIONS.get(file, set())
        found[file] = {
            name
            for name in imports(file)
            if name.split(".")[0] in {*MAY_IMPORT, "launch", "tests"}
            and name.split(".")[0] not in allowed
            and not any(name == exception or name.startswith(f"{exception}.") for exception in exceptions)
        }
    assert only_wrong(found) == {}


def test_folders_are_floors():
    """Sixty-eight files lay in one folder, in seventeen layers of imports with three circles."""
    found = {}
    for file in PRODUCT:
        if package(file) == "eichi_utils" and file.count("/") > 1:
            own = module(file).split(".")[1]
            others = {name for name in imports(file) if name.startswith("eichi_utils.") and name.split(".")[1] != own}
            found[file] = {name for name in others if floor(name) <= floor(f"eichi_utils.{own}")}
    assert only_wrong(found) == {}


def test_nobody_imports_in_a_circle():
    """A circle of imports has no place to begin reading, and works only by luck of the order."""
    modules = {module(file) for file in PRODUCT}

    def imported(file: str) -> set[str]:
        named = {name if name in modules else name.rpartition(".")[0] for name in imports(file)}
        return named & modules - {module(file)}

    after = {module(file): imported(file) for file in PRODUCT}
    rest = set(after)
    while free := {name for name in rest if not after[name] & rest}:
        rest -= free
    # The modules that are left import each other in circles, or import such modules.
    while free := {name for name in rest if not any(name in after[other] for other in rest)}:
        rest -= free
    assert rest == CIRCLE


def test_only_webui_knows_gradio():
    """Everything but the pages works without gradio, and other pages could replace these."""
    others = [file for file in PRODUCT if package(file) != "webui"]
    assert only_wrong({file: {name for name in imports(file) if name.split(".")[0] == "gradio"} for file in others}) == {}


def test_pages_do_not_compute():
    """Pages import no networks: only the worker behind them does."""
    pages = [file for file in PRODUCT if package(file) == "webui"]
    heavy = {"torch", "diffusers", "transformers"}
    assert only_wrong({file: {name for name in imports(file) if name.split(".")[0] in heavy} for file in pages}) == {}


def test_private_names_of_torch_stay_in_one_place():
    """An upgrade removes private names without notice, and nobody knew where to look."""

    def private(node: ast.AST) -> bool:
        if isinstance(node, ast.ImportFrom):
            path = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            return path[0] == "torch" and any(name.startswith("_") for name in path)
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            return ast.unparse(node).startswith("torch.")
        return False

    files = set(PRODUCT) - {"diffusers_helper/torch_compat.py"}
    assert only_wrong({file: [node.lineno for node in ast.walk(tree(file)) if private(node)] for file in files}) == {}


def test_private_names_of_gradio_stay_in_one_place():
    """`_id` stood in four files and `_queue` in a fifth: an upgrade of gradio was a search through all pages.

    A name that begins with an underscore belongs to whoever wrote it: only `self`, `cls` and `super()` use their own. And of
    gradio's modules, whose names it changes as it likes, only the classes of components are documented.
    """

    def is_own(node: ast.expr) -> bool:
        return ast.unparse(node) in ("self", "cls", "super()")

    wrong = {}
    for file in PRODUCT:
        if package(file) == "webui" and file != "webui/gradio_compat.py":
            private = {
                ast.unparse(node)
                for node in ast.walk(tree(file))
                if isinstance(node, ast.Attribute) and re.match(r"_[^_]", node.attr) and not is_own(node.value)
            }
            modules = {name for name in imports(file) if name.startswith("gradio.")}
            wrong[file] = (private | modules) - OF_GRADIO
    assert only_wrong(wrong) == {}


# Runs in a process of its own, because this one has imported everything already. It prints one line of JSON.
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
    """Return what the imports in PROBE did; "output" is everything that they printed."""
    light = [module(file) for file in PRODUCT if is_light(file)]
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


@pytest.mark.process
def test_plans_and_jobs_do_not_need_torch(probe):
    """`--plan`, `--help` and a wrong flag answer at once instead of after ten seconds of imports."""
    assert probe["heavy"] == []


@pytest.mark.process
def test_importing_starts_nothing(probe):
    """The original initialised CUDA, loaded settings and printed a page of text on import.

    A process that only wants to read a plan must not take a card's memory, ask the network or leave a thread behind.
    """
    assert probe["missing"] == []
    assert probe["cuda"] is False
    assert probe["threads"] == [] and probe["network"] == []
    assert probe["gradio"] is False


@pytest.mark.process
def test_importing_prints_nothing(probe):
    assert probe["output"] == ""


@pytest.mark.process
def test_importing_leaves_torch_and_the_home_folder_as_they_were(probe):
    """torch.set_grad_enabled(False) on import, as the original had it, changes every program that imports one of its files."""
    assert probe["grad"] is True and probe["dtype"] == "torch.float32"
    assert probe["home"] == []


def test_nothing_is_global():
    """`global` is state that two jobs share without knowing: the original's stop button stopped the wrong one."""
    every = [file for file in (*PRODUCT, *TESTS) if "global " in (ROOT / file).read_text(encoding="utf-8")]
    found = {file: [node.lineno for node in ast.walk(tree(file)) if isinstance(node, ast.Global)] for file in every}
    assert only_wrong(found) == {}


def broad(node: ast.expr | None) -> bool:
    """Return whether an except clause catches everything."""
    if node is None:
        return True
    names = node.elts if isinstance(node, ast.Tuple) else [node]
    return any(isinstance(name, ast.Name) and name.id in ("Exception", "BaseException") for name in names)


def test_no_error_is_swallowed():
    """`except Exception` hides the typing error in the line above it; name what can happen."""
    wrong = {}
    for file in set(PRODUCT) - CATCH_ALL:
        wrong[file] = []
        for node in ast.walk(tree(file)):
            if isinstance(node, ast.ExceptHandler) and broad(node.type):
                wrong[file].append(node.lineno)
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("suppress") and any(map(broad, node.args)):
                wrong[file].append(node.lineno)
    assert only_wrong(wrong) == {}


def test_nobody_prints_but_the_command_line():
    """Other code reports in events, and writes errors to the log."""
    found = {}
    for file in PRODUCT:
        if not file.startswith(MAY_PRINT):
            calls = (node for node in ast.walk(tree(file)) if isinstance(node, ast.Call))
            found[file] = [node.lineno for node in calls if isinstance(node.func, ast.Name) and node.func.id == "print"]
    assert only_wrong(found) == {}


def test_durations_are_taken_from_a_clock_that_nobody_sets():
    """When the system's clock was changed while a film was made, the film seemed to take a day, or a negative time."""
    users = {
        file
        for file in PRODUCT
        for node in ast.walk(tree(file))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "time.time"
    }
    assert users <= WALL_CLOCK


# A comment must name one rule and, in brackets, why it is wrong there: "pyright: ignore[reportCallIssue] (the stubs ...)".
SILENCED = re.compile(r"#\s*(?:type:|pyright:|ruff:|noqa|fmt:|mypy:)", re.IGNORECASE)
WITH_REASON = re.compile(r"# (?:pyright: ignore\[report\w+\]|noqa: [A-Z]+[0-9]+) \(.{3,}\)|# fmt: skip")


def test_no_checker_is_silenced_wholesale():
    """`# type: ignore` hides not only the error that it was meant for, but also every later one in its line."""
    found = {}
    for file in PRODUCT:
        with (ROOT / file).open("rb") as source:
            tokens = tokenize.tokenize(source.readline)
            said = [token for token in tokens if token.type == tokenize.COMMENT and SILENCED.search(token.string)]
        found[file] = [token.line.strip() for token in said if not WITH_REASON.fullmatch(token.string)]
    assert only_wrong(found) == {}
    for wrong in ("# type: ignore", "# type: ignore[attr-defined]", "# pyright: basic", "# noqa", "# pyright: ignore[reportX]"):
        assert SILENCED.search(wrong) and not WITH_REASON.fullmatch(wrong)


def test_a_file_is_read_in_one_sitting():
    """The original's pages had 4000 lines and more. A file of more than 400 lines should be split."""
    lengths = {file: len((ROOT / file).read_text(encoding="utf-8").splitlines()) for file in (*PRODUCT, *TESTS, *STATIC)}
    assert {file for file, length in lengths.items() if length > LONGEST} == set()


def test_dear_files_are_there():
    """A slow file that was renamed would begin last, and all processes would wait for it."""
    assert [name for name in DEAR if f"tests/{name}" not in TESTS] == []
