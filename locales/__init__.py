"""Texts in four languages: `t = Translator("ja"); t("page.start")`. Keys are dotted; a missing one falls back to English."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

LANGUAGES = ("ja", "en", "zh-tw", "ru")


@cache
def table(language: str) -> Mapping[str, str]:
    """All texts of a language, by dotted key."""
    return json.loads((Path(__file__).parent / f"{language}.json").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Translator:
    """`translator(key, **values)` is the text with its `{placeholders}` filled in."""

    language: str = "en"

    def __post_init__(self) -> None:
        if self.language not in LANGUAGES:
            raise ValueError(f"language {self.language!r} is none of {', '.join(LANGUAGES)}")

    def __call__(self, key: str, **values: Any) -> str:
        text = table(self.language).get(key) or table("en")[key]
        return text.format_map(values) if values else text


def preferred_language(environment: Mapping[str, str], default: str = "en") -> str:
    """The language of the user's system from LC_ALL, LC_MESSAGES or LANG, where it is one of ours."""
    name = next((environment[key] for key in ("LC_ALL", "LC_MESSAGES", "LANG") if environment.get(key)), "")
    code = name.split(".")[0].replace("_", "-").lower()
    if code in LANGUAGES:
        return code
    by_prefix = {"ja": "ja", "ru": "ru", "en": "en", "zh": "zh-tw"}
    return by_prefix.get(code.split("-")[0], default)
