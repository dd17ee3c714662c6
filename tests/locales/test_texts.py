"""Test the texts: four languages with the same keys; every key that is used exists, and every key that exists is used."""

from __future__ import annotations

import ast
import json
import re
import string
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

import locales
from eichi_utils.jobs.events import STAGES, StopLevel
from eichi_utils.requests import modes
from locales import LANGUAGES, Translator, preferred_language, table

ROOT = Path(locales.__file__).parent.parent
SOURCES = ("eichi_utils", "diffusers_helper", "lora_utils", "miniature", "webui")
NAMESPACES = sorted({key.split(".")[0] for key in table("en")})
KEY = re.compile(rf"({'|'.join(NAMESPACES)})\.[a-z0-9_]+(\.[a-z0-9_]+)*")
ENDED = ("finished", "stopped", "failed")


def placeholders(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}


@cache
def trees() -> Mapping[str, ast.AST]:
    """Parse all sources."""
    files = [file for package in SOURCES for file in sorted((ROOT / package).rglob("*.py"))]
    assert len(files) > 30
    return {file.relative_to(ROOT).as_posix(): ast.parse(file.read_text(encoding="utf-8")) for file in files}


def nodes(kind: type[ast.AST]) -> Iterator[tuple[str, ast.AST]]:
    """Yield (place, node) of every syntax node of a kind."""
    for name, tree in trees().items():
        for node in ast.walk(tree):
            if isinstance(node, kind):
                yield f"{name}:{node.lineno}", node


def called(node: ast.Call) -> str:
    """Return the last part of the called function's name."""
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def constant(node: ast.AST | None) -> str | None:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def template(node: ast.JoinedStr) -> str:
    """Return an f-string with {} for its values."""
    return "".join(constant(part) or "{}" for part in node.values)


def values_given(node: ast.AST | None) -> set[str] | None:
    """Return the keys of a literal dict, or None for anything else."""
    if node is None:
        return set()
    if isinstance(node, ast.Dict) and all(constant(key) for key in node.keys):
        return {constant(key) for key in node.keys}
    return None


@cache
def errors(name: str) -> dict[str, list[tuple[str, set[str]]]]:
    """Find every CheckpointError or LoraError: key -> places, and the values given there."""
    found: dict[str, list] = {}
    for place, node in nodes(ast.Call):
        if called(node) == name and node.args and constant(node.args[0]):
            found.setdefault(constant(node.args[0]), []).append((place, {keyword.arg for keyword in node.keywords}))
    return found


@cache
def problems() -> dict[str, list[tuple[str, set[str] | None]]]:
    """Find every Problem("field", "key", {...}): key -> places, and the values given there."""
    found: dict[str, list] = {}
    for place, node in nodes(ast.Call):
        if called(node) != "Problem":
            continue
        key = node.args[1]
        if isinstance(key, ast.JoinedStr):
            kinds = {"checkpoint_{}": "CheckpointError", "lora_{}": "LoraError"}
            assert template(key) in kinds, f"{place}: which keys can {template(key)} become?"
            for name, uses in errors(kinds[template(key)]).items():
                found.setdefault(template(key).format(name), []).extend(uses)
        else:
            assert constant(key), f"{place}: the key is not written out"
            given = values_given(node.args[2] if len(node.args) > 2 else None)
            found.setdefault(constant(key), []).append((place, given))
    return found


@cache
def notices() -> dict[str, list[tuple[str, set[str] | None]]]:
    found: dict[str, list] = {}
    for place, node in nodes(ast.Call):
        given = {keyword.arg: keyword.value for keyword in node.keywords}
        if called(node) == "Remark":
            found.setdefault(constant(node.args[0]), []).append((place, values_given(node.args[1])))
        elif called(node) == "_notice" and constant(node.args[0]):
            spread = any(keyword.arg is None for keyword in node.keywords)
            found.setdefault(constant(node.args[0]), []).append((place, None if spread else set(given)))
        # A remark that is passed on has been seen where it was made.
        elif called(node) == "Notice" and constant(given["key"]):
            found.setdefault(constant(given["key"]), []).append((place, values_given(given.get("values"))))
    return found


@cache
def expansions() -> dict[str, set[str]]:
    """Return all values that the {} of each f-string of the sources can have."""
    fields = set(modes.all_kinds())
    return {
        "stage.{}": set(STAGES),
        "doctor.why.{}": {"only_asked_for", "no_units", "other_format", "not_needed", "too_large", "too_large_memory"},
        "cli.{}": set(ENDED),
        "cli.help.{}": fields,
        "cli.help.reference_{}": {"index", "mask"},
        "problem.{}": set(problems()),
        "notice.{}": set(notices()),
        "page.mode.{}": set(modes.MODES),
        "page.state.{}": {"waiting", "running", *ENDED},
        "page.stopping.{}": {level.name.lower() for level in StopLevel if level},
    }


@cache
def used() -> tuple[dict[str, str], dict[str, str]]:
    """Find the keys and templates in the sources, each with a place."""
    keys, templates = {}, {}
    parts = {id(part) for _, node in nodes(ast.JoinedStr) for part in node.values}
    for place, node in nodes(ast.Constant):
        if id(node) not in parts and isinstance(node.value, str) and KEY.fullmatch(node.value):
            keys.setdefault(node.value, place)
    for place, node in nodes(ast.JoinedStr):
        text = template(node)
        if re.fullmatch(rf"({'|'.join(NAMESPACES)})\.[a-z0-9_.{{}}]*", text):
            templates.setdefault(text, place)
    return keys, templates


def test_all_languages_have_the_same_keys() -> None:
    """A missing key shows English in the middle of a page."""
    for language in LANGUAGES:
        assert set(table(language)) == set(table("en")), language


def test_no_key_twice() -> None:
    """No catalogue has a key twice, because the second would silently win."""
    for language in LANGUAGES:
        pairs = json.loads((ROOT / "locales" / f"{language}.json").read_text(encoding="utf-8"), object_pairs_hook=list)
        keys = [key for key, _ in pairs]
        assert len(keys) == len(set(keys)), language
        assert keys == sorted(keys), language


@pytest.mark.parametrize("language", LANGUAGES)
def test_texts_are_texts(language: str) -> None:
    """No text is empty, its placeholders are the English ones with plain names that always format, and help texts suit
    argparse."""
    for key, english in table("en").items():
        text = table(language)[key]
        assert isinstance(text, str), key
        assert text.strip(), key
        assert placeholders(text) == placeholders(english), key
        assert all(name.isidentifier() for name in placeholders(text)), key
        if key.startswith(("cli.", "page.flag.")):
            assert re.sub(r"%\(\w+\)s|%%", "", text).count("%") == 0, key


@pytest.mark.parametrize("language", [language for language in LANGUAGES if language != "en"])
def test_sentences_are_translated(language: str) -> None:
    """No English sentence was left standing in another language."""
    for key, english in table("en").items():
        if len(re.findall(r"[A-Za-z]{2,}", re.sub(r"\{\w+\}", "", english))) > 3:
            assert table(language)[key] != english, key


def test_every_key_in_the_sources_exists() -> None:
    """A key that is only spelt wrong shows itself to the user, or is a crash."""
    keys, templates = used()
    known = set(table("en"))
    missing = {key: place for key, place in keys.items() if key not in known}
    assert missing == {}
    for text, place in templates.items():
        if text in expansions():
            lost = {text.format(value) for value in expansions()[text]} - known
            assert lost == set(), f"{place}: {text}"
        else:
            # Pages look some words up by names of their own; at least one such word must exist.
            assert text.startswith("page."), f"{place}: tell this test what {text} can be"
            pattern = re.compile(re.escape(text).replace(r"\{\}", r"[a-z0-9_.]+"))
            assert any(pattern.fullmatch(key) for key in known), f"{place}: {text}"


def test_every_key_is_used() -> None:
    """A text nobody shows is a burden for four translators."""
    keys, templates = used()
    alive = set(keys)
    patterns = []
    for text in templates:
        if text in expansions():
            alive |= {text.format(value) for value in expansions()[text]}
        else:
            patterns.append(re.compile(re.escape(text).replace(r"\{\}", r"[a-z0-9_.]+")))
    dead = {key for key in table("en") if key not in alive and not any(pattern.fullmatch(key) for pattern in patterns)}
    # What one mode says in other words (`Translator.mode`) is used where the text of all modes is.
    dead -= {f"{key}:{mode}" for key in table("en") for mode in modes.MODES}
    assert dead == set()


def test_words_for_fields_are_words_for_fields() -> None:
    """Labels and hints that pages look up by a field's name must be a field's (or a part of one)."""
    names = {*modes.all_kinds(), "out", "control_index"}
    for key in table("en"):
        space, _, name = key.split(":")[0].rpartition(".")
        if space in ("page.field", "page.info", "page.empty"):
            assert name in names, key


def test_every_problem_and_notice_has_its_sentence_with_its_values() -> None:
    """Wherever one is made, it brings everything its sentence names (as far as the values are written out there)."""
    for space, found in (("problem", problems()), ("notice", notices())):
        assert len(found) > 1
        for key, uses in found.items():
            wanted = placeholders(table("en")[f"{space}.{key}"])
            for place, given in uses:
                assert given is None or wanted <= given, f"{place}: {space}.{key} lacks {wanted - given}"


def test_texts_get_the_values_they_name() -> None:
    """`t("key", a=...)` gives exactly the placeholders: one too few is a crash, one too many a text that lost something."""
    checked = 0
    for place, node in nodes(ast.Call):
        key = constant(node.args[0]) if node.args else None
        if key not in table("en") or any(keyword.arg is None for keyword in node.keywords):
            continue
        if called(node) in ("t", "_t", "words"):
            checked += 1
            assert {keyword.arg for keyword in node.keywords} == placeholders(table("en")[key]), f"{place}: {key}"
    assert checked > 20


def test_a_missing_text_falls_back_to_english(monkeypatch: pytest.MonkeyPatch) -> None:
    """A language that lags behind is still a whole program; an unknown key is an error at once."""
    texts = {"en": {"a": "A {x}", "b": "B"}, "ja": {"a": "", "b": "ビー"}}
    monkeypatch.setattr(locales, "table", lambda language: texts[language])
    t = Translator("ja")
    assert t("a", x=5) == "A 5"
    assert t("b") == "ビー"
    with pytest.raises(KeyError):
        t("c")


def test_values_with_braces_stand_as_they_are() -> None:
    """A file name or an error message is not a format string."""
    t = Translator("en")
    assert "{x} {0} %s" in t("problem.picture_missing", file="{x} {0} %s")


def test_an_unknown_language_is_refused() -> None:
    """An unknown language is refused at the start, not at the first text."""
    with pytest.raises(ValueError, match="fr"):
        Translator("fr")


@pytest.mark.parametrize(
    ("environment", "language"),
    [
        ({"LANG": "ja_JP.UTF-8"}, "ja"),
        ({"LANG": "ru_RU.KOI8-R"}, "ru"),
        ({"LANG": "zh_TW.UTF-8"}, "zh-tw"),
        ({"LANG": "zh_CN.UTF-8"}, "zh-tw"),
        ({"LANG": "zh-tw"}, "zh-tw"),
        ({"LANG": "en_GB"}, "en"),
        ({"LANG": "de_DE.UTF-8"}, "en"),
        ({"LANG": "C"}, "en"),
        ({"LANG": "C.UTF-8"}, "en"),
        ({"LANG": "POSIX"}, "en"),
        ({}, "en"),
        ({"LANG": ""}, "en"),
        ({"LC_ALL": "ru_RU", "LANG": "ja_JP"}, "ru"),
        ({"LC_ALL": "", "LC_MESSAGES": "ja_JP", "LANG": "ru_RU"}, "ja"),
    ],
)
def test_the_language_of_the_system(environment: dict, language: str) -> None:
    """LC_ALL counts before LC_MESSAGES and LANG; a language without a catalogue is English."""
    assert preferred_language(environment) == language


def test_the_default_language_can_be_chosen() -> None:
    """Launchers for Japan begin in Japanese where the system says nothing of ours."""
    assert preferred_language({"LANG": "C"}, "ja") == "ja"
    assert preferred_language({"LANG": "ru_RU"}, "ja") == "ru"
