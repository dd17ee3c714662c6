"""Translate what the existing program stores, labels in the language of its page and settings, into our request fields.

It stores labels where we store values ("全フレーム画像保存" for "all"), so its files can be read in one language only. Here
each label of its four languages has one value.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eichi_utils.problems import Problem, shown
from eichi_utils.requests.loras import Lora
from eichi_utils.requests.transfer import usable

LANGUAGES = ("ja", "en", "zh-tw", "ru")
# Its word for an empty LoRA slot, in the order of LANGUAGES.
NO_LORA = ("なし", "None", "無", "Нет")
# Value -> its label in the order of LANGUAGES, then spellings of older versions.
LABELS: Mapping[str, Mapping[Any, tuple[str, ...]]] = {
    "frame_save_mode": {
        "none": ("保存しない", "Do not save", "不保存", "Не сохранять"),
        "all": ("全フレーム画像保存", "Save all frame images", "保存所有幀圖像", "Сохранить все изображения кадров"),
        "last": (
            "最終セクションのみ全フレーム画像保存",
            "Save all frame images for final section only",
            "僅保存最終區域的所有幀圖像",
            "Сохранить все изображения кадров только для последней секции",
        ),
    },
    "lora_mode": {
        "directory": ("ディレクトリから選択", "Select from directory", "從目錄選擇", "Папка /lora", "directory_selection"),
        "upload": ("ファイルアップロード", "File upload", "檔案上傳", "Загрузка файла", "file_upload"),
    },
    "frame_size": {
        9.0: ("1秒 (33フレーム)", "1 second (33 frames)", "1秒 (33幀)", "1 секунда (33 кадра)", "_KEY_FRAME_SIZE_1SEC"),
        4.5: (
            "0.5秒 (17フレーム)",
            "0.5 seconds (17 frames)",
            "0.5秒 (17幀)",
            "0,5 секунды (17 кадров)",
            "0.5 секунды (17 кадров)",
            "_KEY_FRAME_SIZE_05SEC",
        ),
    },
    "mode": {
        "normal": ("通常", "Normal", "常規", "Normal", "Нормальный"),
        "loop": ("ループ", "Loop", "循環", "Loop", "Цикл"),
    },
}
# Film lengths that its page offers, in seconds.
LENGTHS = (1, 2, 3, 4, 6, 8, 10, 12, 16, 20, 30, 40, 60, 120)
# "6秒", "6s", "1 second", "12 сек", "10(5x2)秒", "1_5", "_KEY_VIDEO_LENGTH_6SEC"
LENGTH = re.compile(
    r"(?:_KEY_VIDEO_LENGTH_)?(?P<number>\d+(?:[.,_]\d+)?)\s*(?:\([^)]*\))?\s*"
    r"(?:秒|s|sec|secs|seconds?|с|сек|секунд[аы]?)?",
    re.IGNORECASE,
)
LONGEST_LABEL = 80
SETTINGS_BLOCKS = {"reverse": "app_settings_eichi", "forward": "app_settings_f1", "single": "app_settings_oichi"}
# Its name of a setting -> our request field, for values that need no translation.
FIELDS = {
    "prompt": "prompt",
    "resolution": "size",
    "mp4_crf": "crf",
    "steps": "steps",
    "cfg": "cfg_scale",
    "gs": "guidance_scale",
    "rs": "guidance_rescale",
    "end_frame_strength": "end_strength",
    "latent_window_size": "rope_value",
    "use_clean_latents_2x": "context_2x",
    "use_clean_latents_4x": "context_4x",
    "keep_section_videos": "keep_section_videos",
    "save_section_frames": "section_stills",
    "save_tensor_data": "save_latents",
}
LORA_KEYS = ("lora1", "lora2", "lora3")
# GB of card memory that the existing program leaves free by default, for its own work. We measure what that work needs.
PRESERVED_GB = 6
# Its settings that belong to the program or a page and to no request -> type of their values.
PROGRAM = {
    "add_timestamp_to_config": bool,
    "alarm_on_completion": bool,
    "batch_count": int,
    "gpu_memory_preservation": float,
    "history_index": int,
    "log_enabled": bool,
    "log_folder": str,
    "lora_cache": bool,
    "lora_mode": str,
    "output_folder": str,
    "reference_long_edge": bool,
    "reuse_optimized_dict": bool,
    "save_before_input_images": bool,
    "save_input_images": bool,
    "save_settings_on_start": bool,
    "target_index": int,
    "use_prompt_cache": bool,
    "use_queue": bool,
    "use_reference_image": bool,
    "use_rope_batch": bool,
    "use_vae_cache": bool,
}


@dataclass(frozen=True)
class Migrated:
    """Hold settings of the existing program in our terms.

    fields: request fields, in JSON form. program: settings that no request has, under their old names, language-free.
    notes: what was not understood; it stays in the file that it came from.
    """

    fields: Mapping[str, Any]
    program: Mapping[str, Any]
    notes: tuple[Problem, ...]


def value_of(group: str, label: Any) -> Any:
    """Return the value of a label in any language, or of the value's own text. Raises ValueError for other words."""
    text = str(label).strip()
    for value, labels in LABELS[group].items():
        if text in (str(value), *labels):
            return value
    raise ValueError(text)


def names_no_lora(name: Any) -> bool:
    """Say whether a slot's text means no LoRA: the word in any language, or a form of "nothing" found in files."""
    return str(name or "").strip() in ("", "0", "False", "none_option", *NO_LORA)


def label_of(group: str, value: Any, language: str) -> str:
    """Return the existing program's label of a value in this language."""
    return LABELS[group][value][LANGUAGES.index(language)]


def seconds_of(label: Any) -> float:
    """Return the seconds of a video length such as "6秒", "1 second" or "1_5". Raises ValueError for other words."""
    # Limits the length: the expression's work grows with the cube of a label's spaces.
    text = str(label).strip()
    found = LENGTH.fullmatch(text) if len(text) <= LONGEST_LABEL else None
    if not found or isinstance(label, bool):
        raise ValueError(label)
    return float(re.sub("[,_]", ".", found["number"]))


def length_label(seconds: float, language: str) -> str:
    """Return the label of the nearest length that the existing program's page offers."""
    nearest = min(LENGTHS, key=lambda length: abs(length - seconds))
    if language in ("ja", "zh-tw"):
        return f"{nearest}秒"
    return {"en": "1 second", "ru": "1 sec"}[language] if nearest == 1 else f"{nearest}s"


def loras_of(names: Sequence[Any], scales: Any) -> tuple[list[dict[str, Any]], list[Problem]]:
    """Return LoRA from slots and a text of their strengths ("0.8,0.5,0.8"), and notes on what was not understood.

    A slot that is empty keeps its place in the list of strengths.
    """
    strengths, notes = [], []
    for part in re.split("[,，、]", str(scales or "")):
        try:
            strength = float(part) if part.strip() else Lora.strength
            if not math.isfinite(strength):
                raise ValueError(part)
        except ValueError:
            strength = Lora.strength
            notes.append(_not_understood("scales", part))
        strengths.append(strength)
    found = []
    for number, name in enumerate(names):
        if not names_no_lora(name):
            strength = strengths[number] if number < len(strengths) else Lora.strength
            found.append({"file": str(name).strip(), "strength": strength})
    return found, notes


def migrated(mode: str, old: Mapping[str, Any]) -> Migrated:
    """Return a settings block or favourite of the existing program as fields of one of our modes."""
    fields: dict[str, Any] = {}
    program: dict[str, Any] = {}
    notes: list[Problem] = []
    for name, value in old.items():
        if name in ("name", "timestamp", "scales", "lora_scales", "use_lora", *LORA_KEYS):
            continue
        try:
            if name in FIELDS:
                fields[FIELDS[name]] = value
            elif name in PROGRAM:
                program[name] = _program_value(name, value)
            elif name in _READERS:
                fields |= _READERS[name](value, old)
            elif name != "latent_index" or value:
                notes.append(Problem(str(name), "legacy_unknown", {"name": str(name)[:80]}))
        except (TypeError, ValueError):
            notes.append(_not_understood(str(name), value))
    if program.get("gpu_memory_preservation", 0) > PRESERVED_GB:
        # More than the default was meant to leave room for other programs.
        program["reserve_gb"] = program["gpu_memory_preservation"] - PRESERVED_GB
    if old.get("use_lora", True) is not False and any(key in old for key in LORA_KEYS):
        fields["loras"], bad = loras_of([old.get(key) for key in LORA_KEYS], old.get("lora_scales", old.get("scales")))
        notes += bad
    if program.get("use_reference_image") and "target_index" in program:
        # The existing program limits the target to the last index before the empty context.
        last = old["latent_window_size"] if isinstance(old.get("latent_window_size"), int) else 9
        fields["target_index"] = min(program["target_index"], last - 1)
    fields, wrong = usable(mode, fields)
    return Migrated(fields, program, tuple(notes + wrong))


def _program_value(name: str, value: Any) -> Any:
    if name in LABELS:
        return value_of(name, value)
    wanted = PROGRAM[name]
    if isinstance(value, bool) != (wanted is bool) or not isinstance(value, (int, float) if wanted is float else wanted):
        raise TypeError(value)
    return value


def _switch(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(value)
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(value)
    return value


# Old key -> function of its value and the whole block that returns request fields.
_READERS = {
    "use_teacache": lambda value, old: {"step_cache": "teacache" if _switch(value) else "none"},
    "fp8_optimization": lambda value, old: {"precision": "auto" if _switch(value) else "bfloat16"},
    "use_all_padding": lambda value, old: {"padding": old.get("all_padding_value", 1.0) if _switch(value) else None},
    "all_padding_value": lambda value, old: {},
    "image_strength": lambda value, old: {"influence": round(100 * _number(value), 3)},
    # If on, the empty frame is used where no reference picture replaces it, as in our automatic choice.
    "use_clean_latents_post": lambda value, old: {"context_1x": None if _switch(value) else False},
    "seed": lambda value, old: {"seed": -1 if old.get("use_random_seed", False) is True else value},
    "use_random_seed": lambda value, old: {"seed": -1} if _switch(value) else {},
    "frame_save_mode": lambda value, old: {"save_frames": value_of("frame_save_mode", value)},
}


def _not_understood(name: str, value: Any) -> Problem:
    return Problem(name, "legacy_value", {"name": name, "value": shown(value)})
