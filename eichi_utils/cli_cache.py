"""`eichi cache` says what is kept on the disk because it takes time to make; `--delete` deletes it."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from eichi_utils import paths
from eichi_utils.disk_cache import open_caches
from locales import Translator

MB = 10**6
EVERYTHING = "all"
NAMES = {"prompts": "cli.cache.prompts", "pictures": "cli.cache.pictures", "weights": "cli.cache.weights"}


def add_cache_command(commands: Any, t: Translator) -> argparse.ArgumentParser:
    command = commands.add_parser("cache", help=t("cli.cache"), description=t("cli.cache"), allow_abbrev=False)
    command.set_defaults(run=run_cache)
    kinds = (EVERYTHING, *NAMES)
    command.add_argument("--delete", nargs="?", const=EVERYTHING, choices=kinds, help=t("cli.cache.delete"))
    return command


def run_cache(options: argparse.Namespace, t: Translator) -> int:
    """Deletes first, if asked, and shows what is there then."""
    caches = {kind: getattr(open_caches(0), kind) for kind in NAMES}
    before = sum(cache.usage()[1] for cache in caches.values())
    for kind, cache in caches.items():
        if options.delete in (EVERYTHING, kind):
            cache.empty()
    usages = {kind: cache.usage() for kind, cache in caches.items()}
    deleted = before - sum(size for _, size in usages.values())
    if options.json:
        kept = {kind: {"files": files, "bytes": size} for kind, (files, size) in usages.items()}
        sys.stdout.write(json.dumps({"folder": str(paths.place(paths.CACHE)), "deleted_bytes": deleted, **kept}) + "\n")
        return 0
    lines = [str(paths.place(paths.CACHE))]
    for kind, (files, size) in usages.items():
        lines.append(t("cli.cache.line", name=t(NAMES[kind]), files=files, megabytes=f"{size / MB:.1f}"))
    if options.delete:
        lines.append(t("cli.cache.deleted", megabytes=f"{deleted / MB:.1f}"))
    sys.stdout.write("\n".join(lines) + "\n")
    return 0
