"""Make requests, pictures, files and runs that several tests need."""

from __future__ import annotations

import dataclasses
import string
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import av
import numpy
import pytest
from PIL import Image
from safetensors.numpy import save_file

from eichi_utils.files.paths import Outputs
from eichi_utils.jobs.events import Event, Notice, Step
from eichi_utils.jobs.queue import Stop
from eichi_utils.models import requirements
from eichi_utils.models.host_memory import HostMemory
from eichi_utils.models.pool import ModelPool
from eichi_utils.problems import Problem
from eichi_utils.render.driver import run
from eichi_utils.requests import modes
from eichi_utils.requests.request import Request
from locales import LANGUAGES, Translator, table

# One section of 5 latents: 21 frames, the cheapest film.
SHORT = {"seconds": 0.5, "window": 4.5}
# Three sections of 5 latents.
THREE = {"seconds": 2, "window": 4.5}
SHORTEST = {"reverse": SHORT, "forward": SHORT, "single": {}}


def say_everything(problems: Iterable[Problem]) -> tuple[Problem, ...]:
    """Assert that every problem has a sentence in every language and gives all its placeholders; return the problems."""
    problems = tuple(problems)
    for problem in problems:
        for language in LANGUAGES:
            text = table(language)[f"problem.{problem.key}"]
            wanted = {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}
            assert wanted <= set(problem.values), f"{problem} does not give {wanted - set(problem.values)} ({language})"
            assert Translator(language)(f"problem.{problem.key}", **problem.values).strip()
    return problems


def found(problems: Iterable[Problem]) -> set[tuple[str, str]]:
    """Return (field, key) of every problem, after `say_everything` has checked their sentences."""
    return {(problem.field, problem.key) for problem in say_everything(problems)}


def picture(path: Path, width: int = 48, height: int = 32, seed: int = 0, **settings: Any) -> str:
    """Write a smooth coloured picture, another one for every seed, and return its path."""
    y, x = numpy.mgrid[0:height, 0:width]
    channels = [(x * (3 + seed) + 40 * seed) % 256, (y * 5 + 90 * seed) % 256, (x + y * (2 + seed)) % 256]
    Image.fromarray(numpy.stack(channels, axis=-1).astype(numpy.uint8)).save(path, **settings)
    return str(path)


def request(mode: str, image: str | Path, **fields: Any) -> Request:
    """Make a request that renders in well under a second: 128 pixels, 2 steps, no step cache."""
    quick = {"prompt": "a cat runs", "seed": 7, "steps": 2, "size": 128, "step_cache": "none"}
    return modes.MODES[mode](image=str(image), **{**quick, **fields})


def changed(request: Request, **fields: Any) -> Request:
    return dataclasses.replace(request, **fields)


def carry_out(request: Request, pool: ModelPool, folder: Path, name: str = "job", stop: Stop | None = None) -> list[Event]:
    """Run a request with the networks of the pool and return all events."""
    return list(run(request, request.plan(), pool, Outputs(folder, name), stop or Stop()))


# Keys of the notice about memory that every run begins with.
PREFLIGHT = {"processor", "precision_asked", "precision_wide", "precision_narrow"}


def notices_of(events: Iterable[Event]) -> list[Notice]:
    """Return all notices but the one about memory that every run begins with."""
    every = [event for event in events if isinstance(event, Notice)]
    return [notice for notice in every if notice.key not in PREFLIGHT]


def last_preview(events: Iterable[Event]) -> bytes:
    """Return the newest preview of the latents, which differs where the sampling differs."""
    return [event.preview for event in events if isinstance(event, Step)][-1]


def decoded(path: str | Path) -> numpy.ndarray:
    """Return all frames of a film file, (frames, height, width, 3) in RGB."""
    with av.open(str(path)) as container:
        return numpy.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def latent_file(path: Path, latents: int = 6, height: int = 112, width: int = 144, seed: int = 0, **texts: str) -> str:
    """Write a file of latents as the existing program does and return its path.

    The default height and width, in pixels, are those of films of the test pictures.
    """
    numbers = numpy.random.default_rng(seed).standard_normal((1, 16, latents, height // 8, width // 8)).astype(numpy.float32)
    sizes = numpy.array([height, width, latents], numpy.int32)
    save_file({"history_latents": numbers, "metadata": sizes}, path, texts or None)
    return str(path)


def names_in(folder: Path) -> set[str]:
    """Return the relative paths of everything below a folder, hidden files included."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")} if folder.exists() else set()


def have_memory(monkeypatch: pytest.MonkeyPatch, available: int) -> None:
    """Simulate a computer with `available` bytes of memory for networks, whatever this process uses."""
    monkeypatch.setattr(requirements, "host_memory", lambda: HostMemory(available, available))
    monkeypatch.setattr(requirements, "own_memory", lambda: 0)
