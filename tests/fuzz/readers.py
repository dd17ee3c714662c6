"""List all readers of files that users bring: their seed files, the function that reads, and the errors it may raise."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import av

from eichi_utils.exchange import metadata, picture_text, video
from eichi_utils.exchange.film_texts import film_texts
from eichi_utils.exchange.section_zip import import_sections
from eichi_utils.files.latent_header import read_info
from eichi_utils.files.pictures import fitted_size, open_mask, open_picture, picture_problem
from eichi_utils.jobs.timings import Timings
from eichi_utils.models.description import read_description
from eichi_utils.models.lora_fit import fit, published_layers
from eichi_utils.problems import Problem, UserError
from eichi_utils.requests import loras, modes
from eichi_utils.user_data.lora_library import about
from eichi_utils.user_data.presets import ENTRIES, PromptPresets, favourites, lora_presets
from eichi_utils.user_data.settings import CHOICES, AppSettings, JsonFile
from locales import Translator
from tests.fuzz import seeds


@dataclass(frozen=True)
class Reader:
    """Describe a reader.

    seeds: writes good files into a folder. read: reads a file, which lies in a folder of its own. errors: what its callers
    handle besides UserError.
    """

    name: str
    seeds: Callable[[Path], Iterable[Path]]
    read: Callable[[Path], None]
    errors: tuple[type[Exception], ...] = ()


def say(problems: Iterable[Problem]) -> None:
    """Make the sentence of every problem, and check that it can be encoded."""
    t = Translator("en")
    for problem in problems:
        t(f"problem.{problem.key}", **problem.values).encode()
        problem.field.encode()


def read_request(path: Path) -> None:
    made = modes.from_json(metadata.read_placed_document(path))
    problems = made.check()
    say(problems)
    if not problems:
        made.plan()


def read_document(path: Path) -> None:
    metadata.read_placed_document(path)


def read_picture(path: Path) -> None:
    problem = picture_problem("image", str(path))
    say([problem] if problem else [])
    for read in (open_picture, open_mask):
        try:
            read(path).tobytes()
            assert problem is None or problem.key == "picture_too_small", problem
        except UserError as error:
            say(error.problems)
    with suppress(OSError, ValueError):
        fitted_size(path, 640)


def read_texts(path: Path) -> None:
    text = picture_text.read_text(path)
    for mode in modes.MODES:
        for wanted in ("prompt", "seed", "everything"):
            fields, notes = picture_text.request_fields(text, mode, wanted)
            say(notes)
            say(modes.from_json({"mode": mode, **fields}).check())


def read_latents(path: Path) -> None:
    info = read_info(path)
    json.dumps([dataclasses.asdict(info), info.model, info.seconds]).encode()


def read_lora(path: Path) -> None:
    judged = fit(loras.Lora(str(path)), published_layers())
    say([judged.problem] if judged.problem else [])
    say(loras.Lora(str(path)).check("loras/0"))
    about(path)


def read_peft(path: Path) -> None:
    place = path.parent / "peft"
    place.mkdir(exist_ok=True)
    if not (place / "adapter_model.safetensors").exists():
        seeds.write_lora(place / "adapter_model.safetensors")
    (place / "adapter_config.json").write_bytes(path.read_bytes())
    read_lora(place / "adapter_model.safetensors")


def read_sections(path: Path) -> None:
    made, notes = import_sections(path, uploads=path.parent / "uploads")
    say(notes)
    say(made.check())


def _store(path: Path, name: str) -> JsonFile:
    """Copy a file to a folder of its own, because damaged files are kept beside it, and return it as a JsonFile."""
    place = path.parent / path.stem
    place.mkdir()
    (place / name).write_bytes(path.read_bytes())
    return JsonFile(place / name, (ENTRIES,) if name == "prompt_presets.json" else ())


def read_settings(path: Path) -> None:
    app = AppSettings(_store(path, "app_settings.json"))
    for mode in modes.MODES:
        fields, notes = app.fields(mode)
        say(notes)
        json.dumps([fields, app.program(mode), [app.choice(mode, name) for name in CHOICES]], allow_nan=False).encode()
    app.save_fields("reverse", {"steps": 5})
    assert app.fields("reverse")[0]["steps"] == 5


def read_presets(path: Path) -> None:
    for name in ("prompt_presets.json", "loras.json", "lora_presets.json", "favorites.json", "favorite_settings.json"):
        (path.parent / name).write_bytes(path.read_bytes())
    prompts = PromptPresets(JsonFile(path.parent / "prompt_presets.json", (ENTRIES,)))
    for store in (prompts, lora_presets(path.parent), favourites(path.parent)):
        values, notes = store.read()
        say(notes)
        json.dumps([str(value) for value in values], allow_nan=False).encode()
    prompts.startup()
    prompts.save("a", "b")
    for file in path.parent.glob("*.damaged-*"):
        file.unlink()


def read_timings(path: Path) -> None:
    seconds = Timings(_store(path, "timings.json")).seconds(seeds.ASKED, 128, 128)
    assert seconds is None or 0 <= seconds < 1e12, seconds


def read_model_description(path: Path) -> None:
    (path.parent / "eichi.json").write_bytes(path.read_bytes())
    found = read_description(path.parent)
    json.dumps([found.name, found.sizes, dict(found.recommended), found.checkpoints], allow_nan=False).encode()


def read_film(path: Path) -> None:
    target = io.BytesIO()
    video.last_frame(path).save(target, "PNG")


def read_film_texts(path: Path) -> None:
    found = film_texts(path)
    picture_text.picture_text(found.texts, found.rate)


READERS = {
    reader.name: reader
    for reader in (
        Reader("request", seeds.request_seeds, read_request),
        Reader("metadata", seeds.document_seeds, read_document),
        Reader("pictures", seeds.picture_seeds, read_picture),
        Reader("texts", seeds.text_seeds, read_texts),
        Reader("latents", seeds.latent_seeds, read_latents),
        Reader("lora", seeds.lora_seeds, read_lora),
        Reader("peft", seeds.peft_seeds, read_peft),
        Reader("sections", seeds.sections_seeds, read_sections),
        Reader("settings", seeds.settings_seeds, read_settings),
        Reader("presets", seeds.preset_seeds, read_presets),
        Reader("timings", seeds.timing_seeds, read_timings),
        Reader("description", seeds.description_seeds, read_model_description),
        Reader("films", seeds.film_seeds, read_film, (av.FFmpegError, OSError, ValueError)),
        Reader("film-texts", seeds.film_text_seeds, read_film_texts, (av.FFmpegError, OSError, ValueError)),
    )
}
