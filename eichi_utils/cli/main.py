"""Run the command line: `eichi render`, `demo`, `doctor`, `lora`, `cache`, `sections` and `tensors`.

Results go to stdout, the rest to stderr.

Exit codes: 0 done, 1 failed, 2 bad input (nothing was started), 130 stopped (files so far are kept).
"""

from __future__ import annotations

if __name__ == "__main__":
    from eichi_utils.setup.console import leave_when_told

    leave_when_told()

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from diffusers_helper.vae.frames import FPS
from eichi_utils.cli.cache import add_cache_command
from eichi_utils.cli.lora import add_lora_command
from eichi_utils.cli.output import (
    BAD_INPUT,
    CONTROL_FLAGS,
    DONE,
    FAILED,
    STOPPED,
    amount,
    flag_of,
    problem_lines,
    problems_document,
    report_problems,
    result,
    say,
)
from eichi_utils.cli.plan import plan_document, plan_lines
from eichi_utils.cli.progress import Progress
from eichi_utils.cli.sections import add_sections_commands
from eichi_utils.cli.tensors import add_tensors_commands
from eichi_utils.exchange.metadata import read_placed_document
from eichi_utils.files.disk_cache import DEFAULT_GB
from eichi_utils.files.folders import OutputFolders
from eichi_utils.files.paths import DEFAULT_OUTPUTS, place, resolved
from eichi_utils.jobs.events import StopLevel
from eichi_utils.jobs.job_log import JobLog
from eichi_utils.jobs.queue import Jobs
from eichi_utils.jobs.timings import Timings
from eichi_utils.jobs.view import View
from eichi_utils.models.catalogue import Models
from eichi_utils.models.requirements import RESERVE_GB
from eichi_utils.problems import Problem, UserError
from eichi_utils.render.engine import Engine
from eichi_utils.requests import modes
from eichi_utils.requests.compound_kinds import Controls
from eichi_utils.requests.kinds import kinds_of, number_from
from eichi_utils.requests.request import Request
from eichi_utils.setup.console import ending_as_interrupted, ready
from eichi_utils.user_data.log_file import COMMAND_LINE, FOLDER, Log
from locales import LANGUAGES, Translator, preferred_language

OUT_OF_MEMORY = ("out_of_memory", "out_of_card_memory")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command (the console script `eichi`) and return its exit code. arguments: `sys.argv[1:]` if None."""
    with ready(), ending_as_interrupted():
        arguments = list(sys.argv[1:] if arguments is None else arguments)
        logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
        t = Translator(_language(arguments))
        try:
            options = make_parser(t).parse_args(arguments)
            try:
                return options.run(options, t)
            except UserError as error:
                return report_problems(error.problems, t, options)
        except KeyboardInterrupt:
            say(t("cli.interrupted"))
            return STOPPED


def _language(arguments: Sequence[str]) -> str:
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--lang")
    wanted = finder.parse_known_args(list(arguments))[0].lang
    return wanted if wanted in LANGUAGES else preferred_language(os.environ)


def make_parser(t: Translator) -> argparse.ArgumentParser:
    """Return the parser of the whole command line. Its result has the command's function as `run`."""
    parser = argparse.ArgumentParser(prog="eichi", description=t("cli.about"))
    commands = parser.add_subparsers(required=True, metavar="render|demo|doctor|lora|cache|sections|tensors")
    render = commands.add_parser("render", help=t("cli.render"), description=t("cli.render"), allow_abbrev=False)
    render.set_defaults(run=run_render)
    demo = commands.add_parser("demo", help=t("cli.demo"), description=t("cli.demo"), allow_abbrev=False)
    demo.set_defaults(run=run_demo)
    for command in (render, demo):
        add_request_flags(command, t)
        command.add_argument("--request", metavar="FILE", help=t("cli.help.request"))
        command.add_argument("--look-in", metavar="DIR", type=Path, action="append", help=t("cli.help.look_in"))
        command.add_argument("--out", metavar="DIR", type=Path, default=place(DEFAULT_OUTPUTS), help=t("cli.help.out"))
        command.add_argument("--reserve-gb", type=amount, default=RESERVE_GB, metavar="N", help=t("cli.help.reserve_gb"))
        command.add_argument("--cache-gb", type=amount, default=DEFAULT_GB, metavar="N", help=t("cli.help.cache_gb"))
        command.add_argument("--log-folder", metavar="DIR", type=Path, help=t("cli.help.log_folder"))
        command.add_argument("--dry-run", action="store_true", help=t("cli.help.dry_run"))
    doctor = commands.add_parser("doctor", help=t("cli.doctor"), description=t("cli.doctor"), allow_abbrev=False)
    doctor.set_defaults(run=run_doctor)
    for command in (render, demo, doctor):
        command.add_argument("--device", default="auto", help=t("cli.help.device"))
        command.add_argument("--attention", default="auto", metavar="NAME", help=t("cli.help.attention"))
        command.add_argument("--compile", choices=("auto", "off"), default="auto", help=t("cli.help.compile"))
    with_models = (render, demo, doctor, add_lora_command(commands, t))
    for command in with_models:
        command.add_argument("--models", metavar="DIR", type=Path, help=t("cli.help.models"))
    others = add_cache_command(commands, t), *add_sections_commands(commands, t), *add_tensors_commands(commands, t)
    for command in (*with_models, *others):
        command.add_argument("--json", action="store_true", help=t("cli.help.json"))
        command.add_argument("--lang", choices=LANGUAGES, help=t("cli.help.lang"))
    return parser


def add_request_flags(parser: argparse.ArgumentParser, t: Translator) -> None:
    """Add a flag for every request field. Values stay text here; reading the request finds what is wrong with them."""
    parser.add_argument("--mode", metavar="|".join(modes.MODES), help=t("cli.help.mode"))
    for name, kind in modes.all_kinds().items():
        flag, text = flag_of(name), t(f"cli.help.{name}")
        if isinstance(kind, Controls):
            parser.add_argument(flag, dest=name, action=_Reference, part="image", metavar=kind.metavar, help=text)
            for part, value in (("index", "N"), ("mask", kind.metavar)):
                text = t(f"cli.help.reference_{part}")
                parser.add_argument(CONTROL_FLAGS[part], dest=name, action=_Reference, part=part, metavar=value, help=text)
        else:
            action = "append" if kind.repeated else "store"
            parser.add_argument(flag, dest=name, action=action, metavar=kind.metavar, help=text)


class _Reference(argparse.Action):
    """Collect controls: `--reference` begins one, `--reference-index` and `--reference-mask` belong to the latest."""

    def __init__(self, *args: Any, part: str, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.part = part

    def __call__(self, parser: argparse.ArgumentParser, options: Any, value: Any, option: str | None = None) -> None:
        controls = list(getattr(options, self.dest) or [])
        if self.part == "image":
            controls.append({"image": os.path.abspath(value)})
        elif not controls:
            parser.error(f"{option} must follow a --reference")
        else:
            read = {"index": number_from, "mask": os.path.abspath}[self.part]
            controls[-1] = {**controls[-1], self.part: read(value)}
        setattr(options, self.dest, controls)


def read_request(
    options: argparse.Namespace, defaults: Mapping[str, Any], say: Callable[..., object] = lambda key, **values: None
) -> Request:
    """Return the request from `--request` (or `defaults`), changed by every flag that was given. Raises UserError.

    Paths in a request's file are relative to that file, those in flags to the current folder; the request's are absolute.
    say: called with a sentence's key and values where the program decides for the user.
    """
    document = _document(options, defaults)
    if not isinstance(document, Mapping):
        return modes.from_json(document)
    document = dict(document)
    problems = []
    for name, kind in modes.all_kinds().items():
        given = getattr(options, name)
        if given is not None:
            document[name], wrong = kind.from_flag(name, given)
            problems += wrong
    try:
        request = modes.from_json(_with_model(document, Models(options.models), say))
    except UserError as error:
        raise UserError([*problems, *error.problems]) from None
    problems += request.check()
    if problems:
        raise UserError(problems)
    return request


def _with_model(document: Mapping[str, Any], models: Models, say: Callable[..., object]) -> Mapping[str, Any]:
    """Return the document with a model if it names none, and with the model's recommended values for missing fields."""
    mode = document.get("mode")
    if not isinstance(mode, str) or mode not in modes.MODES:
        return document
    kind = modes.MODES[mode]
    model = document.get("model", models.default(kind.checkpoint))
    if "model" not in document and model == "miniature" and models.folder is None:
        sizes = models.sizes(model)
        gigabytes = f"{models.gigabytes(kind.checkpoint):.0f}"
        say("cli.miniature_chosen", gigabytes=gigabytes, smallest=sizes[0], largest=sizes[-1])
    elif model == "framepack" and (gigabytes := models.gigabytes(kind.checkpoint)):
        say("cli.framepack_missing", gigabytes=f"{gigabytes:.0f}", place=models.files("framepack").cache)
    recommended = models.recommended(model, kind) if model in models.names else {}
    return {"model": model, **recommended, **document}


def _document(options: argparse.Namespace, defaults: Mapping[str, Any]) -> Any:
    """Return the document that the flags change. With `--mode`, a file of another mode gives only fields of both modes."""
    document: Any = {"mode": "reverse", **defaults}
    if options.request is not None:
        document = read_placed_document(options.request, options.look_in or ())
    if not isinstance(document, Mapping):
        return document
    wanted = options.mode or document.get("mode")
    foreign = options.request is None or (options.mode is not None and document.get("mode") != options.mode)
    if foreign and isinstance(wanted, str) and wanted in modes.MODES:
        known = kinds_of(modes.MODES[wanted])
        document = {name: value for name, value in document.items() if name in known}
    return {**document, "mode": wanted}


def run_render(options: argparse.Namespace, t: Translator, defaults: Mapping[str, Any] | None = None) -> int:
    """Make the films of a request, or with `--dry-run` show what would be made. Returns the exit code.

    defaults: request fields if no request file is given. Raises UserError before any work starts.
    """
    engine = Engine(
        Models(options.models),
        resolved("out", options.out),
        options.device,
        options.attention,
        reserve_gb=options.reserve_gb,
        compiler=options.compile,
        cache_gb=options.cache_gb,
        timings=Timings(),
        # A request file may come from a stranger, so it may choose no folder outside of the output folder; the flag may.
        allowed=() if options.request is not None and options.output_folder is None else None,
    )
    request: Request | None = None
    try:
        request = read_request(options, defaults or {}, lambda key, **values: say(t(key, **values)))
        problems = engine.problems_without_torch(request) if options.dry_run else engine.problems(request)
    except UserError as error:
        problems = error.problems + engine.problems_without_torch(None)
    log = Log(COMMAND_LINE, t, OutputFolders(Path.cwd(), field=FOLDER))
    folder = "" if options.log_folder is None else os.path.abspath(options.log_folder)
    if folder and (problem := log.problem(folder)):
        problems = (*problems, problem)
    if problems or request is None:
        raise UserError([_of_a_file(problem) for problem in problems])
    if options.dry_run:
        needs, short = engine.forecast(request)
        for line in problem_lines(short, t, options):
            say(line)
        text = json.dumps(plan_document(request, needs)) if options.json else "\n".join(plan_lines(request, needs, t))
        result(text)
        return DONE
    with closing(log):
        log.apply(bool(folder), folder)
        codes = [report(view, t, options) for view in follow_jobs(Jobs(engine, [JobLog(log, t)]), request, t)]
        # The first film that failed decides.
        return next((code for code in codes if code != DONE), DONE)


def _of_a_file(problem: Problem) -> Problem:
    """Change the problem of a folder that is not allowed: the request's file, not the user, named the folder."""
    named = problem.key == "folder_not_allowed"
    return Problem(problem.field, "folder_from_file", problem.values) if named else problem


def follow_jobs(jobs: Jobs, request: Request, t: Translator) -> list[View]:
    """Show the progress of the batch's jobs and return their views at the end.

    The first Ctrl-C stops at the next step, a second one leaves at once.
    """
    first = jobs.submit(request)
    films = [job for job in jobs.all() if job.batch == first.batch]
    views, stopping = [], False
    for job in films:
        progress = Progress(sys.stderr, t)
        if len(films) > 1:
            progress.say(t("cli.film", film=len(views) + 1, films=len(films), seed=job.request.seed))
        view, follow = job.view, jobs.follow(job.id)
        while not view.ended:
            try:
                view = next(follow)
                progress.show(view)
            except KeyboardInterrupt:
                if stopping:
                    raise
                stopping = True
                jobs.stop(StopLevel.NOW)
                progress.say(t("cli.stopping"))
                follow = jobs.follow(job.id)
        progress.close()
        views.append(view)
        # The stop dropped the waiting jobs too.
        if stopping:
            break
    jobs.close()
    return views


def run_demo(options: argparse.Namespace, t: Translator) -> int:
    """Render the miniature's example; with `--models`, or with random weights if there is no miniature, a photo."""
    from eichi_utils.cli.demo import demo_defaults, untrained_models

    models = Models(options.models)
    if options.models is None and "miniature" not in models.names and not options.dry_run:
        options.models = untrained_models(lambda key: say(t(key)))
    return run_render(options, t, demo_defaults(models))


def run_doctor(options: argparse.Namespace, t: Translator) -> int:
    """Report what this machine is and can do, and what would keep a film from being made. Returns the exit code."""
    from eichi_utils.cli.doctor import examine, report_lines

    findings = examine(Models(options.models), options.device, options.attention, options.compile)
    result(json.dumps(findings) if options.json else "\n".join(report_lines(findings, t)))
    return DONE


def report(view: View, t: Translator, options: argparse.Namespace) -> int:
    """Write how a job ended, and return the exit code."""
    if view.state == "failed" and not view.files and not options.json:
        return report_problems(view.problems, t, options, _failure_code(view))
    for line in problem_lines(view.problems, t, options):
        say(line)
    if options.json:
        document = {
            "files": list(view.files),
            "frames": view.frames,
            "seconds": round(view.frames / FPS, 3),
            "seed": view.seed,
            "took": round(view.elapsed, 3),
            "steps": view.all_steps,
            "computed_steps": view.computed_steps,
            "state": view.state,
        }
        if view.problems:
            document["problems"] = problems_document(view.problems, t)
        result(json.dumps(document))
    else:
        say(t(f"cli.{view.state}", frames=view.frames, seconds=f"{view.film_seconds:.2f}"))
        if view.computed_steps < view.all_steps:
            say(t("cli.computed", computed=view.computed_steps, steps=view.all_steps))
        for file in view.files:
            result(file)
    if view.state == "failed":
        return _failure_code(view)
    return STOPPED if view.state == "stopped" else DONE


def _failure_code(view: View) -> int:
    program = any(problem.key in ("unexpected", *OUT_OF_MEMORY, "download_failed") for problem in view.problems)
    return FAILED if program or view.sampling_since is not None else BAD_INPUT


if __name__ == "__main__":
    sys.exit(main())
