"""From a request to its events with real networks: what the pages' worker and the command line both run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from eichi_utils.catalogue import Models
from eichi_utils.events import Event, Stage
from eichi_utils.jobs import Stop
from eichi_utils.paths import DEFAULT_OUTPUTS, Outputs, folder_problem
from eichi_utils.problems import Problem, UserError
from eichi_utils.request import Request

if TYPE_CHECKING:
    from eichi_utils.models import ModelPool


@dataclass
class Engine:
    """models: where each model is. attention: a kernel's name, or "auto". reserve_gb: GiB of a card left to others.
    compiler: "auto" or "off". cache_gb: GB of the disk for what takes time to make again; 0 keeps nothing.

    torch is imported at the first job, not when the engine is made: a page can be served before.
    """

    models: Models = field(default_factory=Models)
    outputs: Path = DEFAULT_OUTPUTS
    device: str = "auto"
    attention: str = "auto"
    reserve_gb: float = 0.5
    compiler: str = "auto"
    cache_gb: float = 0.0

    @cached_property
    def pool(self) -> ModelPool:
        from eichi_utils.models import ModelPool

        settings = {"reserve_gb": self.reserve_gb, "compiler": self.compiler, "cache_gb": self.cache_gb}
        return ModelPool(self.models.folder, device=self.device, attention=self.attention, **settings)

    def problems(self, request: Request | None) -> tuple[Problem, ...]:
        """Everything about models, device and output folder that keeps a job from starting, before it is submitted.

        request: None where it could not even be read.
        """
        problems = [problem for problem in [folder_problem(self.outputs)] if problem]
        problems += self.models.problems(request) if request else ()
        try:
            pool = self.pool
            if request and not problems:
                pool.use(self.models.files(request.model))
                if not pool.missing(request.checkpoint):
                    pool.check(request.checkpoint)
                if request.loras:
                    from eichi_utils.adapters import reports

                    reports(request.loras, pool.files, request.checkpoint)
        except UserError as error:
            problems += error.problems
        return tuple(problems)

    def __call__(self, request: Request, job_id: str, stop: Stop) -> Iterator[Event]:
        # The first import of the networks' libraries takes seconds; the observer is told before.
        yield Stage(at=time.time(), name="start")
        from eichi_utils.runner import run

        if problems := self.models.problems(request):
            raise UserError(problems)
        self.pool.use(self.models.files(request.model))
        yield from run(request, request.plan(), self.pool, Outputs(self.outputs, job_id), stop)
