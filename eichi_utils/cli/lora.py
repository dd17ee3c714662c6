"""Report what LoRA files hold with `eichi lora FILE[=STRENGTH]...`; write a checkpoint with them with `eichi lora bake ...`."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from diffusers_helper.checkpoints.files import CheckpointError
from eichi_utils.cli.output import Commands, result, say
from eichi_utils.files.paths import resolved
from eichi_utils.models.catalogue import Models
from eichi_utils.models.hub import ModelFiles
from eichi_utils.models.lora_fit import reports
from eichi_utils.problems import Problem, UserError
from eichi_utils.requests.loras import Lora, from_flag
from eichi_utils.requests.request import MODELS
from locales import Translator

BAKE = "bake"
CHECKPOINTS = ("framepack", "framepack_f1")
# Largest number of unknown keys that are named; the number of all is told as well.
SHOWN = 3


def add_lora_command(commands: Commands, t: Translator) -> argparse.ArgumentParser:
    """Add `lora` to the commands of a parser and return its parser. The command checks files against a model if it is there."""
    command = commands.add_parser("lora", help=t("cli.lora"), description=t("cli.lora"), allow_abbrev=False)
    command.set_defaults(run=run_lora)
    command.add_argument("files", nargs="+", metavar=f"[{BAKE}] FILE[=STRENGTH]", help=t("cli.lora.files"))
    command.add_argument("--model", choices=MODELS, default=MODELS[0], help=t("cli.help.model"))
    command.add_argument("--checkpoint", choices=CHECKPOINTS, default=CHECKPOINTS[0], help=t("cli.lora.checkpoint"))
    command.add_argument("--out", metavar="DIR", type=Path, help=t("cli.lora.out"))
    return command


def run_lora(options: argparse.Namespace, t: Translator) -> int:
    """Report on each file, or bake. Returns exit code 0, or 2 if a file cannot be used.

    Raises UserError where a bake cannot begin.
    """
    words: list[str] = options.files
    if words[0] == BAKE:
        return _bake(options, [Lora(**from_flag(word)) for word in words[1:]], t)
    if options.out is not None:
        raise UserError([Problem("out", "lora_out_alone")])
    files = Models(options.models).files(options.model)
    documents = [_examine(Lora(**from_flag(word)), files, options.checkpoint, t) for word in words]
    if options.json:
        result(json.dumps(documents))
    else:
        result("\n".join(line for document in documents for line in _lines(document, t)))
    return 2 if any("problem" in document for document in documents) else 0


def _examine(lora: Lora, files: ModelFiles, checkpoint: str, t: Translator) -> dict[str, Any]:
    about = {"file": str(lora.path), "strength": lora.strength}
    try:
        (report,) = reports([lora], files, checkpoint)
        if problems := lora.check("loras/0"):
            raise UserError(problems)
        return {**about, **dataclasses.asdict(report)}
    except UserError as error:
        problem, *_ = error.problems
        return {**about, "problem": problem.key, "text": t(f"problem.{problem.key}", **problem.values)}


def _lines(document: dict[str, Any], t: Translator) -> list[str]:
    if "problem" in document:
        return [document["file"], f"  {document['text']}"]
    ranks = ", ".join(map(str, document["ranks"])) or "-"
    numbers = {name: document[name] for name in ("used", "found", "applied", "layers")}
    lines = [t("cli.lora.format", format=document["format"], ranks=ranks), t("cli.lora.layers", **numbers)]
    lines.append(t("cli.lora.strength", strength=f"{document['strength']:g}"))
    if document["unknown"]:
        shown = ", ".join(document["unknown"][:SHOWN])
        lines.append(t("cli.lora.unknown", count=len(document["unknown"]), keys=shown))
    if document["text_encoder"]:
        lines.append(t("cli.lora.text_encoder", count=len(document["text_encoder"])))
    return [document["file"], *(f"  {line}" for line in lines)]


def _bake(options: argparse.Namespace, loras: list[Lora], t: Translator) -> int:
    from eichi_utils.models.bake import bake
    from eichi_utils.models.pool import checkpoint_problem

    problems = [problem for number, lora in enumerate(loras) for problem in lora.check(f"loras/{number}")]
    if not loras:
        problems.append(Problem("files", "value_needed"))
    if options.out is None:
        raise UserError([*problems, Problem("out", "value_needed")])
    if problems:
        raise UserError(problems)
    written, out = [], resolved("out", options.out)
    try:
        source = Models(options.models).files(options.model).folder(options.checkpoint)
        for file in bake(loras, source, out):
            written.append(str(file))
            say(t("cli.lora.written", file=str(file)))
    except CheckpointError as error:
        raise UserError([checkpoint_problem(error)]) from None
    result(json.dumps({"files": written}) if options.json else str(out))
    return 0
