"""Carry out requests with the networks of this machine, for the pages' worker and for the command line."""

from __future__ import annotations

import re
import time
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eichi_utils.files.disk_cache import MOST_GB
from eichi_utils.files.folders import OutputFolders
from eichi_utils.files.paths import DEFAULT_OUTPUTS, Outputs
from eichi_utils.jobs.events import Event, Stage
from eichi_utils.jobs.queue import Stop
from eichi_utils.jobs.timings import Stopwatch, Timings
from eichi_utils.models import requirements
from eichi_utils.models.catalogue import Models
from eichi_utils.models.disk_space import disk_free
from eichi_utils.models.gpus import Card, cards, count_as_driver
from eichi_utils.models.hub import ModelFiles
from eichi_utils.models.requirements import MOST_RESERVED, RESERVE_GB
from eichi_utils.problems import Problem, UserError
from eichi_utils.requests.request import Request

if TYPE_CHECKING:
    from eichi_utils.models.pool import ModelPool

# Names of the devices of diffusers_helper.memory.memory and of the kernels of diffusers_helper.models.attention, repeated here
# because those modules import torch.
DEVICE = re.compile(r"auto|cpu(:0)?|cuda(:[0-9]{1,3})?")
ATTENTION = ("auto", "sage", "flash3", "flash", "xformers", "sdpa")


@dataclass
class Engine:
    """Carry out requests, and judge beforehand whether this machine can.

    models: where each model is. outputs: folder of results. device: "auto", "cpu" or "cuda:N". attention: a kernel's name, or
    "auto". reserve_gb: GiB of a card left to other programs; it may be changed at any time, for the next job. compiler: "auto"
    or "off". cache_gb: GB of the disk for results that take time to make again; 0 keeps nothing. allowed: folders beside
    `outputs` that requests may name, None for any. timings: keeps how long runs took.

    torch is imported at the first job, not when the engine is made: a page can be served before.
    """

    models: Models = field(default_factory=Models)
    outputs: Path = DEFAULT_OUTPUTS
    device: str = "auto"
    attention: str = "auto"
    reserve_gb: float = RESERVE_GB
    compiler: str = "auto"
    cache_gb: float = 0.0
    allowed: tuple[Path, ...] | None = None
    timings: Timings | None = None

    @property
    def folders(self) -> OutputFolders:
        """Return the folders that results may be written to."""
        return OutputFolders(self.outputs, self.allowed)

    @cached_property
    def pool(self) -> ModelPool:
        """Return the pool of networks, made at the first access; that imports torch.

        Raises UserError for a folder, device or kernel that does not exist.
        """
        count_as_driver()
        from eichi_utils.models.pool import ModelPool

        settings = {"reserve_gb": self.reserve_gb, "compiler": self.compiler, "cache_gb": self.cache_gb}
        return ModelPool(self.models.folder, device=self.device, attention=self.attention, **settings)

    @cached_property
    def card(self) -> Card | None:
        """Return the card that networks run on, as its driver described it at the first access, or None; without torch."""
        return self._card()

    def forecast(self, request: Request) -> tuple[dict[str, Any], tuple[Problem, ...]]:
        """Return the figures of what a checked request needs (`requirements.figures`), and problems for what is too small now.

        torch is not imported.
        """
        memory, card = requirements.host_memory(), self._card()
        machine = self._machine(memory.total, memory.available, card, card.free if card else 0)
        found = requirements.requirements(request, request.plan(), self.models.files(request.model), machine)
        free = disk_free(self.folders.of(request.output_folder))
        return requirements.figures(found, free), found.problems

    def never_fits(self, request: Request) -> tuple[Problem, ...]:
        """Return problems for memory, card and disk that are too small for a checked request even when nothing else runs.

        What is merely occupied now may be free when the job's turn comes; the driver judges that then. torch is not imported.
        """
        total, card = requirements.host_memory().total, self._card()
        if card is None and self.device.partition(":")[0] != "cpu":
            # The card may be another maker's, which only torch knows.
            return ()
        machine = self._machine(total, total, card, card.total if card else 0)
        return requirements.requirements(request, request.plan(), self.models.files(request.model), machine).problems

    def _machine(self, total: int, host: int, card: Card | None, on_card: int) -> requirements.Machine:
        """Return the machine that networks run on.

        total: bytes of memory in all. host: bytes of memory that networks can have. on_card: the same of the card, before the
        reserve is taken off.
        """
        if card is None:
            return requirements.Machine(host, total=total)
        narrow = requirements.narrow_format(card.capability)
        return requirements.Machine(host, on_card - int(self.reserve_gb * 2**30), narrow=narrow, total=total)

    def _card(self) -> Card | None:
        kind, _, number = self.device.partition(":")
        found = cards() if kind in ("auto", "cuda") else ()
        index = int(number) if number.isdecimal() else 0
        return found[index] if index < len(found) else None

    def problems(self, request: Request) -> tuple[Problem, ...]:
        """Return everything about models, device and output folder that keeps a job from starting; call it before submitting.

        Checks that import the networks' libraries, which takes ten seconds, are made only if all others pass.
        """
        if problems := self.problems_without_torch(request) or self.never_fits(request):
            return problems
        try:
            self.pool.use(self.models.files(request.model))
            if not self.pool.missing(request.checkpoint):
                self.pool.check(request.checkpoint)
        except UserError as error:
            return error.problems
        return ()

    def problems_without_torch(self, request: Request | None) -> tuple[Problem, ...]:
        """Return problems of the settings, the folders, and what the model cannot do of a request.

        request: None if it is unreadable; then the models' folder is checked instead of the model.
        """
        folder = self.folders.problem(request.output_folder if request else "")
        models = self.models.problems(request) if request else ModelFiles(self.models.folder).folder_problems()
        return (*self._settings_problems(), *([folder] if folder else ()), *models)

    def _settings_problems(self) -> Iterator[Problem]:
        if not DEVICE.fullmatch(self.device):
            yield Problem("device", "device_unknown", {"reason": f"{self.device[:80]!r} is neither a CUDA card nor the CPU"})
        if self.attention not in ATTENTION:
            known = f"unknown attention kernel; known are {', '.join(ATTENTION)}"
            yield Problem("attention", "attention_unusable", {"name": self.attention[:80], "reason": known})
        for name, most in (("reserve_gb", MOST_RESERVED), ("cache_gb", MOST_GB)):
            if not 0 <= (value := getattr(self, name)) <= most:
                yield Problem(name, "out_of_range", {"value": value, "min": 0, "max": most})

    def __call__(self, request: Request, job_id: str, stop: Stop) -> Generator[Event, None, None]:
        """Carry out a request and yield its events, of which the last is Finished or Stopped; what is raised fails the job."""
        # Importing the networks' libraries takes seconds the first time, so this event comes before.
        yield Stage(at=time.monotonic(), name="start")
        from eichi_utils.render.driver import run

        if problem := self.folders.problem(request.output_folder, trial=False):
            raise UserError([problem])
        self.pool.use(self.models.files_for(request))
        self.pool.reserve(self.reserve_gb)
        name = request.output_folder
        outputs = Outputs(self.folders.of(name), job_id, self.folders.field_of(name))
        stopwatch = Stopwatch(request)
        with closing(run(request, request.plan(), self.pool, outputs, stop)) as events:
            for event in events:
                stopwatch.see(event)
                yield event
        if self.timings and (taken := stopwatch.taken()):
            self.timings.keep(taken)
