"""Run `eichi tensors info|trim|join|decode`, which work on files of latents (tensor data)."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from eichi_utils.cli.output import FAILED, Commands, report_problems, result, say, whole
from eichi_utils.exchange.metadata import film_tags, text_of
from eichi_utils.exchange.named_files import parts_without_paths, without_paths
from eichi_utils.files.latent_header import PARTS, LatentInfo, latents_problem, read_info
from eichi_utils.files.paths import folder_problem, is_same, resolved
from eichi_utils.jobs.queue import problems_of
from eichi_utils.models.catalogue import Models
from eichi_utils.problems import Problem, UserError
from eichi_utils.render.engine import Engine
from eichi_utils.requests.film_request import MOST_TRIMMED, FilmRequest
from eichi_utils.requests.plan import MOST_BETWEEN
from eichi_utils.requests.request import MODELS
from locales import Translator

LATENTS_SUFFIX, FILM_SUFFIX = ".safetensors", ".mp4"
# The highest CRF of H.264.
MOST_CRF = 51


def add_tensors_commands(commands: Commands, t: Translator) -> tuple[argparse.ArgumentParser, ...]:
    """Add four commands below `tensors` and return their parsers; only `decode` needs a model, and of that only the VAE."""
    tensors = commands.add_parser("tensors", help=t("cli.tensors"), description=t("cli.tensors"), allow_abbrev=False)
    kinds = tensors.add_subparsers(required=True, metavar="info|trim|join|decode")

    def command(name: str, text: str, run: Callable[..., int], files: str | int) -> argparse.ArgumentParser:
        made = kinds.add_parser(name, help=text, description=text, allow_abbrev=False)
        made.set_defaults(run=run)
        made.add_argument("files", nargs=files, metavar="FILE", help=t("cli.tensors.file"))
        return made

    info = command("info", t("cli.tensors.info"), run_info, "+")
    trim = command("trim", t("cli.tensors.trim"), run_trim, 1)
    trim.add_argument("--trim-start", type=whole, default=0, metavar="N", help=t("cli.tensors.start"))
    trim.add_argument("--trim-end", type=whole, default=0, metavar="N", help=t("cli.tensors.end"))
    join = command("join", t("cli.tensors.join"), run_join, "+")
    join.add_argument("--join-latents", type=whole, default=0, metavar="N", help=t("cli.tensors.between"))
    decode = command("decode", t("cli.tensors.decode"), run_decode, 1)
    decode.add_argument("--crf", type=whole, default=FilmRequest.crf, metavar="N", help=t("cli.help.crf"))
    decode.add_argument("--model", choices=MODELS, help=t("cli.tensors.model"))
    decode.add_argument("--models", metavar="DIR", type=Path, help=t("cli.help.models"))
    decode.add_argument("--device", default="auto", help=t("cli.help.device"))
    for writing in (trim, join, decode):
        writing.add_argument("--out", metavar="FILE", type=Path, help=t("cli.tensors.out"))
    return info, trim, join, decode


def run_info(options: argparse.Namespace, t: Translator) -> int:
    """Print what each file holds. Returns exit code 0 if all hold latents, else 2."""
    documents, lines = [], []
    for file in options.files:
        problem = latents_problem("files", file)
        if problem:
            text = t(f"problem.{problem.key}", **problem.values)
            documents.append({"file": file, "problem": problem.key, "text": text})
            lines += [file, f"  {text}"]
        else:
            documents.append(info_document(read_info(file)))
            lines += [file, *(f"  {line}" for line in info_lines(read_info(file), t))]
    result(json.dumps(documents) if options.json else "\n".join(lines))
    return 2 if any("problem" in document for document in documents) else 0


def info_document(info: LatentInfo) -> dict[str, Any]:
    """Return what `tensors info --json` says of a file."""
    return {**dataclasses.asdict(info), "frames": info.frames, "seconds": round(info.seconds, 3), "model": info.model}


def info_lines(info: LatentInfo, t: Translator) -> list[str]:
    """Return what `tensors info` says of a file, below its name."""
    sizes = {"width": info.width, "height": info.height, "latents": info.latents, "frames": info.frames}
    lines = [t("cli.tensors.facts", seconds=f"{info.seconds:.2f}", dtype=info.dtype, **sizes)]
    if info.request:
        said = {name: str(info.request.get(name, "")) for name in ("mode", "model", "seed", "prompt")}
        lines.append(t("cli.tensors.request", **said))
    for number, part in enumerate(info.parts):
        lines.append(t("cli.tensors.part", number=number, latents=part.get("latents", "?"), file=part.get("file", "?")))
    return lines


def run_trim(options: argparse.Namespace, t: Translator) -> int:
    """Write a file's latents without some at its start and end. Raises UserError."""
    wrong = [_negative(name, getattr(options, name)) for name in ("trim_start", "trim_end")]
    (file,) = options.files
    out = _result(options, "_trimmed", LATENTS_SUFFIX, wrong)
    from eichi_utils.exchange.latent_files import read_latents, trim, write_clip

    piece = trim(*read_latents(file, "files"), options.trim_start, options.trim_end, "trim_start")
    return _written(options, t, out, lambda: write_clip(out, piece))


def run_join(options: argparse.Namespace, t: Translator) -> int:
    """Write several files' latents as one file, with interpolated latents between them. Raises UserError."""
    between = options.join_latents
    limits = {"value": between, "min": 0, "max": MOST_BETWEEN}
    wrong = [] if 0 <= between <= MOST_BETWEEN else [Problem("join_latents", "out_of_range", limits)]
    wrong += [Problem("files", "join_needs_two")] if len(options.files) < 2 else []
    out = _result(options, "_combined", LATENTS_SUFFIX, wrong)
    from eichi_utils.exchange.latent_files import join, read_latents, same_size, trim, write_clip

    if problems := same_size([read_info(file, "files") for file in options.files]):
        raise UserError(problems)
    piece = join([trim(*read_latents(file, "files")) for file in options.files], between)
    return _written(options, t, out, lambda: write_clip(out, piece))


def run_decode(options: argparse.Namespace, t: Translator) -> int:
    """Decode a file's latents to a film with the VAE of the model that made them. Raises UserError."""
    limits = {"value": options.crf, "min": 0, "max": MOST_CRF}
    wrong = [] if 0 <= options.crf <= MOST_CRF else [Problem("crf", "out_of_range", limits)]
    out = _result(options, "", FILM_SUFFIX, wrong)
    (file,) = options.files
    info = read_info(file, "files")
    models, model = Models(options.models), options.model or info.model
    # A file of the existing program names no model: it has FramePack only, and another model's decoder would make noise.
    model = model if model in MODELS else "framepack"
    if model not in models.names:
        raise UserError([Problem("model", "miniature_missing", {"folder": str(models.miniature)})])
    pool = Engine(models, out.parent, options.device).pool
    pool.use(models.files(model))
    try:
        for place in pool.files.missing_of("vae"):
            said = {"repository": place.repository, "folder": place.folder}
            say(t("notice.downloading", **said))
            pool.files.download(place)
    except UserError as error:
        return _failed(error.problems, options, t)
    pool.check_parts("vae")
    from eichi_utils.exchange.latent_files import read_latents
    from eichi_utils.render.joined_film import decode_film

    tags = film_tags(text_of(without_paths(info.request))) if info.request else {}
    if info.parts:
        tags[PARTS] = text_of(parts_without_paths(info.parts))
    _, latents = read_latents(file, "files")

    def decode() -> None:
        for frames in decode_film(pool, latents, out, options.crf, tags):
            say(t("cli.tensors.progress", frames=frames, total=info.frames))

    return _written(options, t, out, decode)


def _negative(name: str, value: int) -> Problem | None:
    return None if value >= 0 else Problem(name, "out_of_range", {"value": value, "min": 0, "max": MOST_TRIMMED})


def _result(options: argparse.Namespace, ending: str, suffix: str, wrong: Iterable[Problem | None]) -> Path:
    """Return the path of the result. Raises UserError with all problems, before anything is read whole or written."""
    files = [Path(file) for file in options.files]
    problems = [problem for problem in (*wrong, *(latents_problem("files", file) for file in files)) if problem]
    if problems and not options.out:
        raise UserError(problems)
    out = resolved("out", options.out) if options.out else free_name(files[0].resolve().with_suffix(""), ending, suffix)
    if out.suffix.lower() != suffix:
        problems.append(Problem("out", "out_suffix", {"file": str(out), "suffix": suffix}))
    elif any(is_same(out, file) for file in files):
        problems.append(Problem("out", "out_is_input", {"file": str(out)}))
    if problem := folder_problem(out.parent):
        problems.append(problem)
    if problems:
        raise UserError(problems)
    return out


def free_name(stem: Path, ending: str, suffix: str) -> Path:
    """Return a path that does not exist: the stem with the ending, and with a number if that is taken."""
    numbers = ("" if number == 1 else f"_{number}" for number in itertools.count(1))
    paths = (stem.with_name(f"{stem.name}{ending}{number}{suffix}") for number in numbers)
    return next(path for path in paths if not path.exists())


def _written(options: argparse.Namespace, t: Translator, out: Path, write: Callable[[], None]) -> int:
    """Run `write` and print the result's name, or print the problem if disk or memory run out. Returns the exit code."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write()
    except (OSError, MemoryError, RuntimeError) as error:
        problems = problems_of(error)
        if any(problem.key == "unexpected" for problem in problems):
            raise
        return _failed(problems, options, t)
    result(json.dumps({"files": [str(out)]}) if options.json else str(out))
    return 0


def _failed(problems: Sequence[Problem], options: argparse.Namespace, t: Translator) -> int:
    return report_problems(problems, t, options, FAILED)
