"""Describe what is wrong with a user's input as plain data, which pages and command line turn into sentences."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

# `t(key, **values)` returns a sentence in the user's language. Only pages and command line know the languages.
Translate = Callable[..., str]
# Longest value in a sentence, in characters; more than any path or list of names that somebody reads.
MOST_CHARACTERS = 4000
# Longest value that is only shown because it is wrong, in characters.
MOST_SHOWN = 80
# Most problems that are reported at once; nobody corrects more in one go.
MOST_PROBLEMS = 100


def shown(value: Any) -> Any:
    """Return a short text for any wrong value, which a sentence can contain.

    A float, or an integer of fewer than about 20 digits, is returned as it is; a text is cut to MOST_SHOWN characters.
    """
    if isinstance(value, float) or (isinstance(value, int) and abs(value) < 10**20):
        return value
    try:
        text = str(value)
    except (ValueError, RecursionError):
        # Python raises ValueError for integers of thousands of digits.
        text = type(value).__name__
    return text if len(text) <= MOST_SHOWN else f"{text[: MOST_SHOWN - 1]}\N{HORIZONTAL ELLIPSIS}"


def sayable(text: str) -> str:
    """Return a text of at most MOST_CHARACTERS characters and an ellipsis, with lone surrogates replaced by question marks.

    Every stream and file can hold it: a lone surrogate cannot be encoded as UTF-8.
    """
    if len(text) > MOST_CHARACTERS:
        text = f"{text[:MOST_CHARACTERS]}\N{HORIZONTAL ELLIPSIS}"
    return text.encode(errors="replace").decode()


@dataclass(frozen=True)
class Problem:
    """Describe one thing that is wrong and that the user can correct.

    field: the request field it belongs to; "" if it belongs to none, such as a damaged checkpoint.
    key: the sentence's key below `problem.` in the locales.
    values: what the sentence names, in no language. Texts among them are cut and cleaned by `sayable`.
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
    """Describe something the user should know about a file or a choice that can be used all the same.

    key: the sentence's key below `notice.` in the locales. values: what the sentence names.
    """

    key: str
    values: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class UserError(Exception):
    """Signal that work cannot start or go on for reasons the user can correct; `problems` has all of them."""

    def __init__(self, problems: Iterable[Problem]):
        self.problems = tuple(problems)
        super().__init__("; ".join(f"{p.field or '-'}: {p.key} {dict(p.values)}" for p in self.problems))
