"""What can be wrong with a user's input, as plain data. Pages and command line turn it into sentences."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

# `t(key, **values)`: a sentence in the user's language. The languages themselves are known to pages and command line only.
Translate = Callable[..., str]
# Of a value in a sentence: more than any path or list of names that somebody reads.
MOST_CHARACTERS = 4000
# Of a value that is only shown because it is wrong.
MOST_SHOWN = 80
# Of problems that are found at once; nobody mends more in one go.
MOST_PROBLEMS = 100


def shown(value: Any) -> Any:
    """Return a short text of any wrong value for a sentence; one that can be said and stored, whatever the value is.

    A number or text of usual length stays what it is.
    """
    if isinstance(value, float) or (isinstance(value, int) and abs(value) < 10**20):
        return value
    try:
        text = str(value)
    except (ValueError, RecursionError):
        # Python refuses to write integers of thousands of digits.
        text = type(value).__name__
    return text if len(text) <= MOST_SHOWN else f"{text[: MOST_SHOWN - 1]}\N{HORIZONTAL ELLIPSIS}"


def sayable(text: str) -> str:
    """Return a text of limited length that every stream and file can hold: half a surrogate pair becomes a question mark."""
    if len(text) > MOST_CHARACTERS:
        text = f"{text[:MOST_CHARACTERS]}\N{HORIZONTAL ELLIPSIS}"
    return text.encode(errors="replace").decode()


@dataclass(frozen=True)
class Problem:
    """One thing the user can mend.

    field: the request field it belongs to ("" when it belongs to none, such as a checkpoint).
    key: the sentence's key below `problem.` in the locales.
    values: what the sentence names; language-free. Texts among them are cut and cleaned, so that the sentence can be said.
    """

    field: str
    key: str
    values: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        said = {name: sayable(value) if isinstance(value, str) else value for name, value in self.values.items()}
        object.__setattr__(self, "field", sayable(self.field))
        object.__setattr__(self, "values", said)


@dataclass(frozen=True)
class Remark:
    """Something the user should know of a file or a choice that can be used. key: below `notice.` in the locales."""

    key: str
    values: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class UserError(Exception):
    """Work cannot start or go on for reasons the user can mend; carries all of them at once."""

    def __init__(self, problems: Iterable[Problem]):
        self.problems = tuple(problems)
        super().__init__("; ".join(f"{p.field or '-'}: {p.key} {dict(p.values)}" for p in self.problems))
