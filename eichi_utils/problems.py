"""What can be wrong with a user's input, as plain data. Pages and command line turn it into sentences."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

# `t(key, **values)`: a sentence in the user's language. The languages themselves are known to pages and command line only.
Translate = Callable[..., str]


@dataclass(frozen=True)
class Problem:
    """One thing the user can mend.

    field: the request field it belongs to ("" when it belongs to none, such as a checkpoint).
    key: the sentence's key below `problem.` in the locales.
    values: what the sentence names; language-free.
    """

    field: str
    key: str
    values: Mapping[str, Any] = field(default_factory=dict)


class UserError(Exception):
    """Work cannot start or go on for reasons the user can mend; carries all of them at once."""

    def __init__(self, problems: Iterable[Problem]):
        self.problems = tuple(problems)
        super().__init__("; ".join(f"{p.field or '-'}: {p.key} {dict(p.values)}" for p in self.problems))
