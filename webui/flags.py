"""Read the pages' command line, and check every flag before anything starts."""

from __future__ import annotations

import argparse
import ipaddress
import os
import re
from collections.abc import Sequence
from pathlib import Path

from eichi_utils.cli.output import amount, whole
from eichi_utils.files.disk_cache import DEFAULT_GB
from eichi_utils.files.paths import resolved
from eichi_utils.problems import UserError
from locales import LANGUAGES, Translator, preferred_language
from webui.http.login import AuthError, account, accounts_of
from webui.http.server import is_loopback

FIRST_PORT = 7861
# MiB of one upload: the default limit, and the highest limit that can be set, more than today's disks hold.
UPLOAD_MB, MOST_UPLOAD_MB = 512, 10_000_000
# The environment variable for name and password, which other users of the machine can read in a command line.
AUTH_VARIABLE = "EICHI_AUTH"
NAME = re.compile(r"(?=.{1,253}$)[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*")
ROOT_PATH = re.compile(r"(/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)+")


def read_flags(argv: Sequence[str]) -> argparse.Namespace:
    """Return the parsed flags; exit with code 2 and a sentence if they are wrong.

    Further attributes: `t`, the translator; `accounts`, user -> password or hash, from the flags, the file and the environment,
    None if there are none.
    """
    language = preferred_language(os.environ)
    words = Translator(language)
    parser = argparse.ArgumentParser(description=words("page.flag.description"))
    parser.add_argument("--lang", choices=LANGUAGES, default=language, help=words("page.flag.lang"))
    parser.add_argument("--server", metavar="ADDRESS", default="127.0.0.1", help=words("page.flag.server"))
    parser.add_argument("--port", type=whole, default=FIRST_PORT, help=words("page.flag.port", port=FIRST_PORT))
    parser.add_argument("--inbrowser", action="store_true", help=words("page.flag.inbrowser"))
    parser.add_argument("--models", type=Path, metavar="DIR", help=words("page.flag.models"))
    parser.add_argument("--out", type=Path, metavar="DIR", help=words("page.flag.out"))
    parser.add_argument(
        "--allow-folder", type=Path, action="append", default=[], metavar="DIR", help=words("page.flag.allow_folder")
    )
    parser.add_argument("--attention", metavar="NAME", default="auto", help=words("page.flag.attention"))
    parser.add_argument("--compile", choices=("auto", "off"), default="auto", help=words("page.flag.compile"))
    parser.add_argument("--device", metavar="NAME", default="auto", help=words("page.flag.device"))
    parser.add_argument("--reserve-gb", type=amount, metavar="N", help=words("page.flag.reserve_gb"))
    parser.add_argument("--cache-gb", type=amount, metavar="N", default=DEFAULT_GB, help=words("page.flag.cache_gb"))
    parser.add_argument("--plain", action="store_true", help=words("page.flag.plain"))
    add_doors(parser, words)
    options = parser.parse_args(argv)
    options.t = Translator(options.lang)
    read_folders(parser, options)
    read_accounts(parser, options)
    check_doors(parser, options)
    return options


def add_doors(parser: argparse.ArgumentParser, words: Translator) -> None:
    """Add the flags about access: login, host names, proxies and the size of uploads."""
    parser.add_argument("--auth", metavar="USER:PASSWORD", help=words("page.flag.auth"))
    parser.add_argument("--auth-file", type=Path, metavar="FILE", help=words("page.flag.auth_file", variable=AUTH_VARIABLE))
    parser.add_argument("--allow-host", action="append", default=[], metavar="NAME", help=words("page.flag.allow_host"))
    parser.add_argument("--root-path", default="", metavar="PATH", help=words("page.flag.root_path"))
    parser.add_argument("--trust-proxy", action="append", default=[], metavar="ADDRESS", help=words("page.flag.trust_proxy"))
    parser.add_argument(
        "--max-upload-mb", type=whole, metavar="N", default=UPLOAD_MB, help=words("page.flag.max_upload_mb", most=UPLOAD_MB)
    )


def read_folders(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Make the folders for results absolute and resolve their links. Exits with a sentence if one cannot be used."""
    try:
        if options.out is not None:
            options.out = resolved("--out", options.out)
        options.allow_folder = [resolved("--allow-folder", folder) for folder in options.allow_folder]
    except UserError as error:
        parser.error("; ".join(f"{one.field}: {options.t(f'problem.{one.key}', **one.values)}" for one in error.problems))


def read_accounts(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Set `accounts` from --auth-file and --auth, or from the environment if neither is given. Exits if one is malformed."""
    t, found = options.t, {}
    try:
        if options.auth_file is not None:
            found |= accounts_of(options.auth_file)
        if options.auth is not None:
            options.auth = account(options.auth)
            found |= [options.auth]
    except AuthError as error:
        parser.error(t(error.key, file=options.auth_file, line=error.line))
    except OSError as error:
        parser.error(t("page.flag.auth_file_unread", file=options.auth_file, reason=error.strerror or error))
    if not found and os.environ.get(AUTH_VARIABLE):
        try:
            found |= [account(os.environ[AUTH_VARIABLE])]
        except AuthError:
            parser.error(t("page.flag.auth_variable", variable=AUTH_VARIABLE))
    options.accounts = found or None


def check_doors(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Check and normalize the flags about access: address, port, sizes, host names, proxies. Exits if one is wrong."""
    t = options.t
    if not options.accounts and not is_loopback(options.server):
        parser.error(t("page.flag.auth_needed", address=options.server))
    if not 0 <= options.port <= 65535:
        parser.error(t("page.flag.port_range", port=options.port))
    if not 1 <= options.max_upload_mb <= MOST_UPLOAD_MB:
        parser.error(t("page.flag.max_upload_range", most=MOST_UPLOAD_MB, given=options.max_upload_mb))
    options.root_path = options.root_path.rstrip("/")
    if options.root_path and not ROOT_PATH.fullmatch(options.root_path):
        parser.error(t("page.flag.root_path_form", path=options.root_path))
    names = []
    for given in options.allow_host:
        try:
            name = given.rstrip(".").lower().encode("idna").decode("ascii")
        except UnicodeError:
            name = ""
        if not NAME.fullmatch(name) and not _is_address(given):
            parser.error(t("page.flag.allow_host_form", name=given))
        names.append(name)
    options.allow_host = names
    for given in options.trust_proxy:
        try:
            ipaddress.ip_network(given)
        except ValueError:
            parser.error(t("page.flag.trust_proxy_form", address=given))


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
