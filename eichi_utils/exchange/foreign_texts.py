"""Read prompt, negative prompt, seed and length from what other programs write into pictures, films and JSON files.

A reader takes a text, or the value of a JSON document, and returns the request fields that it finds: prompt, negative_prompt,
seed, seconds, section_prompt, section_number; none if the text has another format. All work is linear in the text's length, and
texts beyond any plausible length are not read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from eichi_utils.exchange.comfy_graph import is_graph, read_graph
from eichi_utils.files.safe_reading import parse_json

Said = dict[str, Any]
# Longest text that is read if it is no JSON. The longest prompts of others have some ten thousand characters.
MOST_CHARACTERS = 2**20
# "Seed: 7" alone on its line ends the prompt. Inside a prompt more words follow it, or more lines of the prompt.
SEED = re.compile(r"Seed:[ \t]*(-?\d{1,20})[ \t]*")
SECTION_NUMBER = re.compile(r"Section Number:[ \t]*(\d{1,20})[ \t]*")
SECTION_PROMPT, NEGATIVE = "Section Prompt:", "Negative prompt:"
# Beginnings of lines that may not belong to a prompt.
MARKS = ("Steps: ", "Seed:", "Section ", NEGATIVE)
# The line below the prompts of Stable Diffusion programs: "Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 5, Size: 512x512".
STEPS = re.compile(r"Steps: \d{1,9}, [A-Z][\w ]{0,40}: ")
STEPS_SEED = re.compile(r"\bSeed: (-?\d{1,20})\b")
# Negative parts of an old InvokeAI prompt, in square brackets.
UNWANTED = re.compile(r"\[([^\[\]]*)\]")
# NaN and Infinity are no JSON, but ComfyUI writes them. Strings match as a whole, so that these words inside them stay.
NO_NUMBERS = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"?|-?(?:NaN|Infinity)', re.DOTALL)
# Frames per second of Wan2GP's model families, by the beginning of the model's name.
RATES = (("hunyuan", 24), ("sky", 24), ("ltx2", 24), ("ltxv", 30), ("ti2v", 24), ("", 16))


def said_by(texts: Mapping[str, str], rate: float = 0.0) -> Said:
    """Return the request fields that all texts of a file give together; where several do, the more trusted text wins.

    texts: keyword or tag in lower case -> text. rate: frames per second of the film that the texts are from.
    """
    said: Said = {}
    for name, reader in SOURCES:
        if name in texts:
            said = {**reader(texts[name], rate), **said}
    return said


def said_by_document(value: Any, rate: float = 0.0) -> Said:
    """Return the request fields that a JSON document of any known program gives."""
    if not isinstance(value, Mapping):
        return {}
    for shape in SHAPES:
        if said := {name: one for name, one in shape(value, rate).items() if one is not None}:
            return said
    return {}


def parse_parameters(text: str) -> Said:
    """Return the request fields of a `parameters` text.

    It holds the prompt, of any number of lines, then `Seed: N`, `Section Prompt: ...`, `Section Number: N`; or what Stable
    Diffusion programs write.
    """
    if len(text) > MOST_CHARACTERS:
        return {}
    lines = text.replace("\r\n", "\n").strip().split("\n")
    # Only these lines are looked at below: a text may have a million lines.
    marked = [at for at, line in enumerate(lines) if line.startswith(MARKS)]
    if (steps := next((at for at in reversed(marked) if STEPS.match(lines[at])), None)) is not None:
        return _stable_diffusion(lines, marked, steps)
    seeds = ((at, int(found[1])) for at in marked if (found := SEED.fullmatch(lines[at])) and _ends_prompt(lines, at))
    seed_at, seed = next(seeds, (None, 0))
    tail = [at for at in marked if _is_section(lines[at]) and (seed_at is None or at > seed_at)]
    end = min([at for at in (seed_at, *tail[:1]) if at is not None], default=len(lines))
    said: Said = {"prompt": _joined(lines[:end])}
    if seed_at is not None:
        said["seed"] = seed
    if number := next(filter(None, (SECTION_NUMBER.fullmatch(lines[at]) for at in tail)), None):
        said["section_number"] = int(number[1])
    begin = next((at for at in tail if lines[at].startswith(SECTION_PROMPT)), None)
    if begin is not None:
        end = next((at for at in marked if at > begin and lines[at].startswith("Section Number:")), len(lines))
        said["section_prompt"] = _joined(lines[begin:end]).removeprefix(SECTION_PROMPT).strip()
    return {name: value for name, value in said.items() if value != ""}


def _joined(lines: Sequence[str]) -> str:
    return "\n".join(lines).strip()


def _is_section(line: str) -> bool:
    return line.startswith(SECTION_PROMPT) or SECTION_NUMBER.fullmatch(line) is not None


def _ends_prompt(lines: Sequence[str], seed: int) -> bool:
    """Say whether the line of a seed is followed by nothing, or by a section's lines."""
    after = next((at for at in range(seed + 1, len(lines)) if lines[at].strip()), None)
    return after is None or _is_section(lines[after].lstrip())


def _stable_diffusion(lines: Sequence[str], marked: Sequence[int], steps: int) -> Said:
    """Return the texts above the line of steps and the seed in it; below that line some programs write templates."""
    negative = next((at for at in marked if at < steps and lines[at].startswith(NEGATIVE)), steps)
    seed = STEPS_SEED.search(lines[steps])
    said = {
        "prompt": _joined(lines[:negative]),
        "negative_prompt": _joined(lines[negative:steps]).removeprefix(NEGATIVE).strip(),
        "seed": int(seed[1]) if seed else "",
    }
    return {name: value for name, value in said.items() if value != ""}


def _document(text: str) -> Any:
    """Return the JSON object that a text holds, or None."""
    if not text.lstrip("\ufeff \t\r\n").startswith("{"):
        return None
    if "NaN" in text or "Infinity" in text:
        text = NO_NUMBERS.sub(lambda found: found[0] if found[0].startswith('"') else "null", text)
    try:
        return parse_json(text)
    except ValueError:
        return None


def _json(text: str, rate: float = 0.0) -> Said:
    """Read a text that must be a JSON document; return its request fields."""
    return said_by_document(_document(text), rate)


def _parameters(text: str, rate: float) -> Said:
    """Read the `parameters` text, which most programs write: a JSON document, or lines."""
    document = _document(text)
    return parse_parameters(text) if document is None else said_by_document(document, rate)


def _remark(text: str, rate: float) -> Said:
    """Read a comment: a JSON document or the lines of Stable Diffusion programs; any other text gives nothing."""
    document = _document(text)
    if document is not None:
        return said_by_document(document, rate)
    said = parse_parameters(text)
    # A seed shows that a program wrote the text; without one it may be anybody's remark.
    return said if "seed" in said else {}


def _dream(text: str, rate: float) -> Said:
    """Read InvokeAI's oldest format, a command line: "a cat [blurry]" -s 50 -S 1234 -W 512 -A k_lms."""
    text = text[:MOST_CHARACTERS].strip()
    end = text.rfind('" -')
    if not text.startswith('"') or end < 1:
        return {}
    words = text[end + 1 :].split()
    seeds = [word[2:] or following for word, following in zip(words, [*words[1:], ""], strict=True) if word.startswith("-S")]
    return {**_bracketed(text[1:end]), **_seed(seeds[0] if seeds else None)}


def _bracketed(prompt: str) -> Said:
    unwanted = [part.strip() for part in UNWANTED.findall(prompt) if part.strip()]
    said = {"prompt": " ".join(UNWANTED.sub(" ", prompt).split()) if unwanted else prompt.strip()}
    return said | ({"negative_prompt": ", ".join(unwanted)} if unwanted else {})


def _swarmui(value: Mapping[str, Any], rate: float) -> Said:
    inner = value.get("sui_image_params")
    return _named(inner, "prompt", "negativeprompt") if isinstance(inner, Mapping) else {}


def _comfyui(value: Mapping[str, Any], rate: float) -> Said:
    """Read a ComfyUI graph, or one under `prompt`, as an object or as JSON text."""
    inner = value.get("prompt")
    inner = _document(inner) if isinstance(inner, str) else inner
    graph = value if is_graph(value) else inner
    if not is_graph(graph):
        return {}
    said = read_graph(graph, rate)
    return {**said, **_seed(said.pop("seed", None)), **_seconds(said.pop("seconds", None))}


def _novelai(value: Mapping[str, Any], rate: float) -> Said:
    """Read NovelAI's `Comment`. In WebP files all texts are in one document, and the comment is one of them."""
    inner = value.get("Comment")
    if isinstance(inner, str):
        return _json(inner, rate)
    if isinstance(inner, Mapping):
        return said_by_document({name: one for name, one in inner.items() if name != "Comment"}, rate)
    if "uc" not in value and "v4_prompt" not in value:
        return {}
    said = _named(value, "prompt", "uc")
    for name, key in (("prompt", "v4_prompt"), ("negative_prompt", "v4_negative_prompt")):
        caption = value[key].get("caption") if isinstance(value.get(key), Mapping) else None
        base = caption.get("base_caption") if isinstance(caption, Mapping) else None
        if isinstance(base, str) and base.strip():
            said[name] = base
    return said


def _invokeai(value: Mapping[str, Any], rate: float) -> Said:
    """Read InvokeAI's `invokeai_metadata`, or the older `sd-metadata`."""
    if isinstance(value.get("positive_prompt"), str):
        return _named(value, "positive_prompt", "negative_prompt")
    image = value.get("image")
    if not isinstance(image, Mapping):
        return {}
    prompts = image.get("prompt")
    if isinstance(prompts, (list, tuple)):
        parts = [part.get("prompt") if isinstance(part, Mapping) else part for part in prompts]
        prompts = ", ".join(part for part in parts if isinstance(part, str))
    return {**_bracketed(prompts), **_seed(image.get("seed"))} if isinstance(prompts, str) and prompts.strip() else {}


def _flat(value: Mapping[str, Any], rate: float) -> Said:
    """Read settings under plain names: Wan2GP (length as `video_length` frames), FramePack-Studio (`total_second_length`)."""
    said = _named(value, "prompt", "negative_prompt")
    if not said:
        return {}
    own = (_number(value.get(name)) for name in ("fps", "frame_rate", "force_fps", "output_fps"))
    rate = rate or next((one for one in own if one), 0.0)
    seconds = _number(value.get("total_second_length")) or _number(value.get("seconds"))
    frames = next((one for name in ("video_length", "num_frames", "frames") if (one := _number(value.get(name)))), None)
    rate = rate or _wan2gp_rate(value)
    if seconds is None and frames and frames > 1 and rate:
        seconds = frames / rate
    return {**said, **_seconds(seconds)}


def _wan2gp_rate(value: Mapping[str, Any]) -> int:
    """Return the frames per second of the model that a Wan2GP document names, 0 if it names none."""
    model = str(value.get("model_type") or value.get("base_model_type") or "").lower()
    return next(rate for begin, rate in RATES if model.startswith(begin)) if model else 0


def _named(value: Mapping[str, Any], prompt: str, negative: str) -> Said:
    """Return the texts under these two keys, with `seed`; nothing if there is no text."""
    texts = {"prompt": value.get(prompt), "negative_prompt": value.get(negative)}
    said = {name: text for name, text in texts.items() if isinstance(text, str) and text.strip()}
    return {**said, **_seed(value.get("seed"))} if said else {}


def _seed(value: Any) -> Said:
    if isinstance(value, str) and re.fullmatch(r"-?\d{1,20}", value.strip()):
        value = int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return {"seed": value} if isinstance(value, int) and not isinstance(value, bool) else {}


def _seconds(value: Any) -> Said:
    seconds = _number(value)
    return {"seconds": round(seconds, 2)} if seconds and seconds > 0 else {}


def _number(value: Any) -> float | None:
    if isinstance(value, str) and len(value) < 30:
        try:
            value = float(value)
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


# Readers of each program's document, in the order in which they are tried.
SHAPES: tuple[Callable[[Mapping[str, Any], float], Said], ...] = (_swarmui, _comfyui, _novelai, _invokeai, _flat)
# Readers by keyword or tag, the most trusted first.
SOURCES: tuple[tuple[str, Callable[[str, float], Said]], ...] = (
    ("parameters", _parameters),
    ("invokeai_metadata", _json),
    ("sd-metadata", _json),
    ("dream", _dream),
    ("comment", _remark),
    ("description", _remark),
    ("metadata", _json),
    ("prompt", _json),
)
