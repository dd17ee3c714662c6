"""Run `eichi sections export REQUEST OUT.zip` and `eichi sections import FILE.zip`: a film's pictures and prompts in a ZIP."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path

from eichi_utils.cli.output import Commands, result, say
from eichi_utils.exchange.metadata import read_placed_document
from eichi_utils.exchange.section_zip import export_sections, import_sections
from eichi_utils.files.paths import DEFAULT_UPLOADS, place, resolved
from eichi_utils.requests import modes
from eichi_utils.requests.request import Request, to_json
from locales import Translator


def add_sections_commands(commands: Commands, t: Translator) -> tuple[argparse.ArgumentParser, argparse.ArgumentParser]:
    """Add `sections export` and `sections import` to a parser's commands and return their parsers; they need no model."""
    sections = commands.add_parser("sections", help=t("cli.sections"), description=t("cli.sections"), allow_abbrev=False)
    kinds = sections.add_subparsers(required=True, metavar="export|import")
    out = kinds.add_parser("export", help=t("cli.sections.export"), description=t("cli.sections.export"), allow_abbrev=False)
    out.set_defaults(run=run_export)
    out.add_argument("request", metavar="REQUEST", help=t("cli.help.request"))
    out.add_argument("zip", metavar="OUT.zip", type=Path, help=t("cli.sections.out"))
    out.add_argument("--look-in", metavar="DIR", type=Path, action="append", help=t("cli.help.look_in"))
    into = kinds.add_parser("import", help=t("cli.sections.import"), description=t("cli.sections.import"), allow_abbrev=False)
    into.set_defaults(run=run_import)
    into.add_argument("zip", metavar="FILE.zip", type=Path, help=t("cli.sections.file"))
    onto = into.add_mutually_exclusive_group()
    onto.add_argument("--replace", metavar="REQUEST", help=t("cli.sections.replace"))
    onto.add_argument("--merge", metavar="REQUEST", help=t("cli.sections.merge"))
    into.add_argument("--uploads", metavar="DIR", type=Path, default=place(DEFAULT_UPLOADS), help=t("cli.sections.uploads"))
    return out, into


def run_export(options: argparse.Namespace, t: Translator) -> int:
    """Write a request's sections, with all files that it names, into a ZIP."""
    path = resolved("zip", options.zip)
    # The ZIP's labels are in this language, for the existing program's page in that language.
    export_sections(_request(options.request, options.look_in or ()), path, t.language)
    result(json.dumps({"files": [str(path)]}) if options.json else str(path))
    return 0


def run_import(options: argparse.Namespace, t: Translator) -> int:
    """Print the request of a ZIP, as `eichi render --request` reads it; what was not understood goes to stderr."""
    onto = options.merge or options.replace
    how = "merge" if options.merge else "replace"
    uploads = resolved("uploads", options.uploads)
    request, notes = import_sections(options.zip, _request(onto) if onto else None, how, uploads)
    said = [{"field": note.field, "key": note.key, "text": t(f"problem.{note.key}", **note.values)} for note in notes]
    if options.json:
        result(json.dumps({"request": to_json(request), "notes": said}))
        return 0
    for note in said:
        say(f"{note['field']}: {note['text']}")
    result(json.dumps(to_json(request), ensure_ascii=False, indent=2))
    return 0


def _request(path: str, folders: Iterable[Path] = ()) -> Request:
    return modes.from_json(read_placed_document(path, folders))
