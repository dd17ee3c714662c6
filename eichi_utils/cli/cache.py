"""Show with `eichi cache` what is kept on the disk to save time; delete it with `--delete`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

from eichi_utils.cli.output import DONE, FAILED, Commands, problem_lines, problems_document, result, say
from eichi_utils.files import paths
from eichi_utils.files.disk_cache import open_caches
from eichi_utils.problems import Problem
from locales import Translator

MB = 10**6
EVERYTHING = "all"
NAMES = {"prompts": "cli.cache.prompts", "pictures": "cli.cache.pictures", "weights": "cli.cache.weights"}


def add_cache_command(commands: Commands, t: Translator) -> argparse.ArgumentParser:
    """Add `cache` to the commands of a parser and return its parser. commands: what `add_subparsers` returned."""
    command = commands.add_parser("cache", help=t("cli.cache"), description=t("cli.cache"), allow_abbrev=False)
    command.set_defaults(run=run_cache)
    kinds = (EVERYTHING, *NAMES)
    command.add_argument("--delete", nargs="?", const=EVERYTHING, choices=kinds, help=t("cli.cache.delete"))
    return command


def run_cache(options: argparse.Namespace, t: Translator) -> int:
    """Delete what `--delete` names, then show what is left. Returns exit code 1 if something could not be deleted."""
    caches = {kind: getattr(open_caches(0), kind) for kind in NAMES}
    before = sum(cache.usage()[1] for cache in caches.values())
    errors = [error for kind, cache in caches.items() if options.delete in (EVERYTHING, kind) for error in cache.empty()]
    usages = {kind: cache.usage() for kind, cache in caches.items()}
    deleted = before - sum(size for _, size in usages.values())
    problems = [Problem("", "cache_not_deleted", _reasons(errors))] if errors else []
    for line in problem_lines(problems, t, options):
        say(line)
    if options.json:
        document: dict[str, Any] = {kind: {"files": files, "bytes": size} for kind, (files, size) in usages.items()}
        document |= {"folder": str(paths.place(paths.CACHE)), "deleted_bytes": deleted}
        if problems:
            document["problems"] = problems_document(problems, t)
        result(json.dumps(document))
    else:
        lines = [str(paths.place(paths.CACHE))]
        for kind, (files, size) in usages.items():
            lines.append(t("cli.cache.line", name=t(NAMES[kind]), files=files, megabytes=f"{size / MB:.1f}"))
        if options.delete:
            lines.append(t("cli.cache.deleted", megabytes=f"{deleted / MB:.1f}"))
        result("\n".join(lines))
    return FAILED if problems else DONE


def _reasons(errors: Sequence[OSError]) -> dict[str, object]:
    reasons = sorted({error.strerror or str(error) for error in errors})
    return {"count": len(errors), "folder": str(paths.place(paths.CACHE)), "reason": ", ".join(reasons)[:200]}
