"""Test what is installed on which machine, and its tools: pip's arguments, the card's build, progress, log and lock."""

import re
import sys

import pytest

import launch
from eichi_utils.setup import install_plan, tool_run
from tests.fake_machine import REQUIREMENTS

PINNED = "torch==2.13.0"


# The install plan


def arguments_of(platform, build, test=False):
    """Return the pip arguments of each step of the plan."""
    return [step.arguments for step in install_plan.plan_install(platform, build, REQUIREMENTS, test)]


def test_plan_without_a_card():
    """Linux saves the CUDA download if it can; Windows and macOS take the default index as it is."""
    linux = install_plan.plan_install("linux", "cpu", REQUIREMENTS, False)
    assert [bool(step.without) for step in linux] == [True, False]
    assert linux[0].arguments[0] == PINNED and linux[0].arguments[-1].endswith("/cpu")
    assert arguments_of("win32", "cpu") == arguments_of("darwin", "cpu") == [("-r", "requirements.txt")]


@pytest.mark.parametrize(
    ("platform", "build", "torch"),
    [
        ("linux", "cu130", (PINNED,)),
        ("linux", "cu126", (PINNED, "--index-url", "https://download.pytorch.org/whl/cu126")),
        ("win32", "cu130", (PINNED, "--index-url", "https://download.pytorch.org/whl/cu130")),
        ("win32", "cu126", (PINNED, "--index-url", "https://download.pytorch.org/whl/cu126")),
    ],
)
def test_plan_with_a_card(platform, build, torch):
    """The CUDA build of torch comes first and from where it is; the speed-ups cannot replace it."""
    steps = install_plan.plan_install(platform, build, REQUIREMENTS, False)
    assert steps[0].arguments == torch and not steps[0].without
    assert steps[1].arguments == ("-r", "requirements.txt")
    names = [step.title.split()[0] for step in steps[2:]]
    assert names == ["triton-windows"] * (platform == "win32") + ["xformers", "sageattention"]
    assert all(step.without and "--no-deps" in step.arguments for step in steps[2:])


@pytest.mark.parametrize(
    ("platform", "capability", "names"),
    [
        ("linux", (9, 0), ["fa3-fwd"]),
        ("linux", (8, 0), ["xformers", "sageattention"]),
        ("linux", (8, 9), ["xformers", "sageattention"]),
        ("linux", (12, 0), ["xformers", "sageattention"]),
        ("linux", None, ["xformers", "sageattention"]),
        ("win32", (9, 0), ["triton-windows"]),
        ("win32", (8, 6), ["triton-windows", "xformers", "sageattention"]),
    ],
)
def test_speed_ups_fit_the_card(platform, capability, names):
    """FlashAttention 3 runs on Hopper alone; what is slower than torch itself is not installed."""
    found = [re.split("[<>=]", name)[0] for name in install_plan.speed_ups(platform, capability)]
    assert found == names
    plan = install_plan.plan_install(platform, "cu130", REQUIREMENTS, False, capability, optional=False)
    assert not any(step.without for step in plan)


def test_compute_capability_is_read_from_nvidia_smi():
    """The first card's; a driver that does not know the question answers with a sentence."""
    assert install_plan.compute_capability("9.0\n8.6\n") == (9, 0)
    assert install_plan.compute_capability("12.0") == (12, 0)
    for text in ("", "[N/A]\n", 'Field "compute_cap" is not a valid field to query.\n', "9.0 GB"):
        assert install_plan.compute_capability(text) is None


def test_plan_with_the_test_tools():
    """The test extra is one more step and not optional."""
    steps = install_plan.plan_install("win32", "cpu", REQUIREMENTS, True)
    assert steps[-1].arguments == ("-e", ".[test]") and not steps[-1].without


@pytest.mark.parametrize(
    ("platform", "cuda", "build"),
    [
        ("linux", None, "cpu"),
        ("linux", (13, 1), "cu130"),
        ("linux", (12, 8), "cu126"),
        ("win32", (13, 0), "cu130"),
        ("win32", (12, 4), "cu126"),
        ("darwin", (13, 0), "cpu"),
    ],
)
def test_torch_build_follows_the_driver(platform, cuda, build):
    """A CUDA 13 build does not run on an older driver."""
    assert install_plan.torch_build(platform, cuda) == build


def test_cuda_version_is_read_from_nvidia_smi():
    """The heading's CUDA version decides, not the driver's own number."""
    heading = "| NVIDIA-SMI 580.65.06    Driver Version: 580.65.06    CUDA Version: 13.0     |"
    assert install_plan.cuda_version(heading) == (13, 0)
    assert install_plan.cuda_version("NVIDIA-SMI has failed because it couldn't communicate with the driver.") is None


def test_requirements_pin_torch():
    """The launcher takes torch's version from requirements.txt, its only source."""
    text = (launch.ROOT / "requirements.txt").read_text(encoding="utf-8")
    assert install_plan.torch_requirement(text) == PINNED
    assert text.rstrip().splitlines()[-1] == "-e ."
    with pytest.raises(tool_run.SetupError):
        install_plan.torch_requirement("torch>=2\n")


def test_pip_progress_counts():
    """pip's own lines become one short line."""
    progress = tool_run.PipProgress()
    for line in (
        "Collecting torch==2.13.0 (from -r requirements.txt (line 2))",
        "  Downloading torch-2.13.0-cp311-none-any.whl.metadata (29 kB)",
        "Collecting einops>=0.8",
        "Using cached einops-0.8.2-py3-none-any.whl (65 kB)",
        "Downloading torch-2.13.0-cp311-none-any.whl (812.3 MB)",
        "",
    ):
        progress.feed(line)
    expected = "1:05, 2 packages found, 2 fetched, torch-2.13.0-cp311-none-any.whl (812.3 MB)"
    assert progress.text(65.4) == expected
    progress.feed("Installing collected packages: einops, torch")
    assert progress.text(7).endswith("unpacking 2 packages")


@pytest.mark.process
def test_run_logged_keeps_output_and_code(tmp_path):
    """The log holds all that the tool printed, and the tool's exit code is not lost."""
    log = tmp_path / "install.log"
    code = "import sys; print('one'); print('two', file=sys.stderr); sys.exit(3)"
    result, output = tool_run.run_logged([sys.executable, "-c", code], tmp_path, log, "a title")
    assert result == 3 and sorted(output) == ["one", "two"]
    assert "== a title" in log.read_text() and "two" in log.read_text()


def test_lock_admits_one(tmp_path):
    """Two double-clicks do not install into the same folder at once."""
    path = tmp_path / "lock"
    with tool_run.setup_lock(path), path.open("a+b") as other:
        assert not tool_run.try_lock(other.fileno())
    with path.open("a+b") as other:
        assert tool_run.try_lock(other.fileno())
