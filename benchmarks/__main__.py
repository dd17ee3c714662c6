"""Run several benchmarks and print their tables: `python -m benchmarks ["step --sizes 640x608" decode ...] [--json]`.

Each runs in a process of its own, so that none sees the others' memory. One that fails or takes too long does not stop the
others; the tables come at the end.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys

PROGRAMS = ("step", "decode", "section", "load", "lora", "film")


def run(program: str, arguments: list[str], minutes: float) -> tuple[str, str]:
    """Run one benchmark in a process of its own, whose progress goes to this process's stderr.

    Returns what it printed, and the reason why that is incomplete, or "".
    """
    command = [sys.executable, "-m", f"benchmarks.{program}", *arguments]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=60 * minutes)
    except subprocess.TimeoutExpired:
        return "", f"took more than {minutes:g} minutes"
    return done.stdout.strip(), f"exit code {done.returncode}" if done.returncode else ""


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmarks that the command line names; return 1 if one failed, else 0."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("programs", nargs="*", default=PROGRAMS, help="names, each in quotes with its flags; default: all")
    parser.add_argument("--minutes", type=float, default=20.0, help="at most, for each")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of tables")
    options = parser.parse_args(arguments)
    found, failed = {}, {}
    for line in options.programs:
        program, *flags = shlex.split(line)
        if program not in PROGRAMS:
            parser.error(f"no program {program}; there are {', '.join(PROGRAMS)}")
        flags += ["--json"] * options.json
        found[line], why = run(program, flags, options.minutes)
        if why:
            failed[line] = why
            sys.stderr.write(f"{line}: {why}\n")
    if options.json:
        documents = {line: json.loads(text) for line, text in found.items() if line not in failed}
        print(json.dumps({"results": documents, "failed": failed}, indent=1))
    else:
        print("\n\n".join(f"## {line}\n\n{text}" for line, text in found.items() if line not in failed))
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
