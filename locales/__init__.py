"""Translate the program's texts into four languages: `t = Translator("ja"); t("page.start")`.

Keys are dotted. A key that a language lacks falls back to English.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

LANGUAGES = ("ja", "en", "zh-tw", "ru")


@cache
def table(language: str) -> Mapping[str, str]:
    """Return all texts of a language by their dotted keys, read once from its JSON file."""
    return json.loads((Path(__file__).parent / f"{language}.json").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Translator:
    """Translate keys into texts: `translator(key, **values)` is the text with its `{placeholders}` filled in.

    language: one of LANGUAGES, else ValueError. mode: the mode whose wording is used where modes differ; such a text has a key
    of its own, as "page.field.batch:single".
    """

    language: str = "en"
    mode: str = ""

    def __post_init__(self) -> None:
        if self.language not in LANGUAGES:
            raise ValueError(f"language {self.language!r} is none of {', '.join(LANGUAGES)}")

    def __call__(self, key: str, **values: Any) -> str:
        """Return the text of a key with the values in its placeholders. Raises KeyError for a key that no language has."""
        own = table(self.language)
        text = own.get(f"{key}:{self.mode}") or own.get(key) or table("en")[key]
        return text.format_map(values) if values else text

    def of(self, mode: str) -> Translator:
        """Return the translator of the same language that uses a mode's words."""
        return replace(self, mode=mode)


def preferred_language(environment: Mapping[str, str], default: str = "en") -> str:
    """Return the system's language from LC_ALL, LC_MESSAGES or LANG, or `default` where it is none of LANGUAGES."""
    name = next((environment[key] for key in ("LC_ALL", "LC_MESSAGES", "LANG") if environment.get(key)), "")
    code = name.split(".")[0].replace("_", "-").lower()
    if code in LANGUAGES:
        return code
    by_prefix = {"ja": "ja", "ru": "ru", "en": "en", "zh": "zh-tw"}
    return by_prefix.get(code.split("-")[0], default)
