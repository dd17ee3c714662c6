"""Count how often a request is checked: its fields, the model's files, the machine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from eichi_utils.models import requirements
from eichi_utils.models.pool import ModelPool
from eichi_utils.requests import film_request
from eichi_utils.requests import request as any_request

# Functions that must be called exactly once whenever a request is checked: (name, modules or classes that look it up).
JUDGES = {
    "fields": ("check_prompts", (any_request, film_request)),
    "files": ("fit_problems", (requirements,)),
    "machine": ("choose", (requirements,)),
    "components": ("check", (ModelPool,)),
}


def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count the calls of each function in JUDGES from now on; the returned counter goes on counting."""
    counts: Counter[str] = Counter()

    def counting(name: str, judge: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **settings: Any) -> Any:
            counts[name] += 1
            return judge(*given, **settings)

        return call

    for name, (function, owners) in JUDGES.items():
        for owner in owners:
            monkeypatch.setattr(owner, function, counting(name, getattr(owner, function)))
    return counts
