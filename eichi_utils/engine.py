"""From a request to its events with real networks: what the pages' worker and the command line both run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from eichi_utils.events import Event, Stage
from eichi_utils.jobs import Stop
from eichi_utils.paths import DEFAULT_OUTPUTS, Outputs, folder_problem
from eichi_utils.problems import Problem, UserError
from eichi_utils.request import Request

if TYPE_CHECKING:
    from eichi_utils.models import ModelPool


@dataclass
class Engine:
    """models: a folder in the hub's layout, or None for the hub's repositories. attention: a kernel's name, or "auto".

    torch is imported at the first job, not when the engine is made: a page can be served before.
    """

    models: Path | None = None
    outputs: Path = DEFAULT_OUTPUTS
    device: str = "auto"
    attention: str = "auto"

    @cached_property
    def pool(self) -> ModelPool:
        from eichi_utils.models import ModelPool

        return ModelPool(self.models, device=self.device, attention=self.attention)

    def problems(self, checkpoint: str | None) -> tuple[Problem, ...]:
        """Everything about models, device and output folder that keeps a job from starting, before it is submitted.

        checkpoint: the one a plan wants; None where there is no plan yet.
        """
        problems = [problem for problem in [folder_problem(self.outputs)] if problem]
        try:
            pool = self.pool
            if checkpoint and not pool.missing(checkpoint):
                pool.check(checkpoint)
        except UserError as error:
            problems += error.problems
        return tuple(problems)

    def __call__(self, request: Request, job_id: str, stop: Stop) -> Iterator[Event]:
        # The first import of the networks' libraries takes seconds; the observer is told before.
        yield Stage(at=time.time(), name="start")
        from eichi_utils.runner import run

        yield from run(request, request.plan(), self.pool, Outputs(self.outputs, job_id), stop)
