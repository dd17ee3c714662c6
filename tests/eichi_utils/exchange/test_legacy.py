"""Test that words and settings of the existing program, in its four languages, become values of ours."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from eichi_utils.exchange.legacy import (
    LABELS,
    LANGUAGES,
    LENGTHS,
    NO_LORA,
    SETTINGS_BLOCKS,
    label_of,
    length_label,
    loras_of,
    migrated,
    names_no_lora,
    seconds_of,
    value_of,
)
from eichi_utils.requests import modes
from tests.diffusers_helper.inputs import GOLDEN
from tests.eichi_utils.helpers import found, say_everything

COMPAT = GOLDEN / "compat"
FRAMES = LABELS["frame_save_mode"]


def settings(mode: str) -> dict[str, Any]:
    return json.loads((COMPAT / "app_settings.json").read_text(encoding="utf-8"))[SETTINGS_BLOCKS[mode]]


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("group", list(LABELS))
def test_every_label_of_every_language_has_its_value(group: str, language: str) -> None:
    """Each label of each language has its value, and the value is written back as the existing program's page in that
    language wrote it."""
    for value, labels in LABELS[group].items():
        assert label_of(group, value, language) == labels[LANGUAGES.index(language)]
        for label in (*labels, value, f" {labels[0]} "):
            assert value_of(group, label) == value


def test_no_label_means_two_things() -> None:
    for group in LABELS.values():
        labels = [label for names in group.values() for label in set(names)]
        assert len(labels) == len(set(labels))


def test_a_label_of_a_thousand_spaces_takes_no_time() -> None:
    """A settings file or a ZIP from anywhere held one, and the work on it grew with the cube of the spaces: minutes."""
    started = time.process_time()
    with pytest.raises(ValueError):
        seconds_of("1" + " " * 100_000 + "x")
    assert time.process_time() - started < 1


@pytest.mark.parametrize("word", ["", None, "ja", "Save", 3, "1秒"])
def test_other_words_are_refused(word: Any) -> None:
    """A value that is nearly a label is somebody else's; guessing would change the film in silence."""
    for group in LABELS:
        with pytest.raises(ValueError):
            value_of(group, word)


@pytest.mark.parametrize(
    ("label", "seconds"),
    [
        ("1秒", 1),
        ("1 second", 1),
        ("1 sec", 1),
        ("1 секунда", 1),
        ("20s", 20),
        ("6 сек", 6),
        ("12 секунд", 12),
        ("10(5x2)秒", 10),
        ("_KEY_VIDEO_LENGTH_120SEC", 120),
        ("1_5", 1.5),
        ("0,5 секунды", 0.5),
        ("2.5s", 2.5),
        (" 4 ", 4),
        (8, 8),
    ],
)
def test_lengths(label: Any, seconds: float) -> None:
    assert seconds_of(label) == seconds


@pytest.mark.parametrize("label", ["", "s", "long", "1 minute", "-1s", "1e3", None, True, "1s2s", "٣秒x"])
def test_what_is_no_length(label: Any) -> None:
    with pytest.raises(ValueError):
        seconds_of(label)


@pytest.mark.parametrize("language", LANGUAGES)
def test_lengths_are_written_as_that_page_offers_them(language: str) -> None:
    """A choice that its list does not have makes the existing page fail; the nearest one is opened."""
    for seconds in LENGTHS:
        assert seconds_of(length_label(seconds, language)) == seconds
    assert length_label(2.4, language) == length_label(2, language)
    assert length_label(1, "en") == "1 second" and length_label(1, "ru") == "1 sec" and length_label(6, "ja") == "6秒"


@pytest.mark.parametrize("word", [*NO_LORA, None, "", "0", 0, False, "False", " なし "])
def test_no_lora_in_any_word(word: Any) -> None:
    """Read as a file's name, "None" of another language was the whole folder, and the job ended."""
    assert names_no_lora(word)
    assert loras_of([word], "1") == ([], [])


def test_strengths_belong_to_their_slots() -> None:
    """An empty first slot must not hand its strength to the second."""
    assert loras_of(["なし", "b.safetensors", "c.safetensors"], "1.0, 0.5,0.3") == (
        [{"file": "b.safetensors", "strength": 0.5}, {"file": "c.safetensors", "strength": 0.3}],
        [],
    )
    assert loras_of(["a", "b"], "0.2") == ([{"file": "a", "strength": 0.2}, {"file": "b", "strength": 0.8}], [])
    assert loras_of(["a"], None)[0][0]["strength"] == 0.8
    loras, notes = loras_of(["a", "b"], "strong,0.4")
    assert [lora["strength"] for lora in loras] == [0.8, 0.4]
    assert found(notes) == {("scales", "legacy_value")}


def test_settings_of_the_three_modes() -> None:
    """The golden file: an all-Japanese page wrote one block, a Russian one another."""
    standard = migrated("reverse", settings("reverse"))
    assert standard.fields == {
        "size": 768,
        "crf": 18,
        "steps": 30,
        "cfg_scale": 1.0,
        "step_cache": "none",
        "guidance_scale": 9.5,
        "padding": 0.7,
        "end_strength": 0.3,
        "keep_section_videos": True,
        "section_stills": True,
        "save_latents": True,
        "save_frames": "all",
    }
    assert standard.program == {
        "gpu_memory_preservation": 8,
        "reserve_gb": 2,
        "use_vae_cache": True,
        "save_settings_on_start": True,
        "alarm_on_completion": False,
    }
    forward = migrated("forward", settings("forward"))
    assert forward.fields == {"size": 640, "influence": 101.0, "save_frames": "last"} and forward.program == {}
    single = migrated("single", settings("single"))
    assert single.fields == {"size": 960, "context_2x": False}
    assert single.program == {"target_index": 5, "history_index": 13, "lora_mode": "directory"}
    assert standard.notes == forward.notes == ()
    assert found(single.notes) == {("unknown_future_key", "legacy_unknown")}


def test_every_key_ends_as_a_field_a_setting_or_a_note() -> None:
    """Every key of the existing program becomes a field, a setting or a note; none is dropped in silence, whatever its
    value."""
    for mode in SETTINGS_BLOCKS:
        for name in settings(mode):
            whole = migrated(mode, {name: object()})
            assert (whole.fields, whole.program) == ({}, {}) or name == "all_padding_value", name
            assert name == "all_padding_value" or [note.field for note in say_everything(whole.notes)], name


def test_values_that_no_request_can_have_are_named() -> None:
    """A value that no request can have is named with the sentence of its field; the other fields are read."""
    made = migrated("reverse", {"resolution": 1024, "steps": 0, "cfg": "x", "mp4_crf": 90, "gs": 12, "image_strength": 1.01})
    assert made.fields == {"guidance_scale": 12}
    assert found(made.notes) == {
        ("size", "not_a_choice"),
        ("steps", "out_of_range"),
        ("cfg_scale", "wrong_type"),
        ("crf", "out_of_range"),
        ("influence", "key_unknown"),
    }
    made = migrated("reverse", {"frame_save_mode": "保存", "use_teacache": 1, "alarm_on_completion": "yes", "steps": True})
    assert (made.fields, made.program) == ({}, {})
    assert found(made.notes) == {
        ("frame_save_mode", "legacy_value"),
        ("use_teacache", "legacy_value"),
        ("alarm_on_completion", "legacy_value"),
        ("steps", "wrong_type"),
    }


def test_a_favourite() -> None:
    """The golden one: everything of it that a request holds. 1024 pixels are no size family of ours, and that is said."""
    (favourite,) = json.loads((COMPAT / "favorite_settings.json").read_text(encoding="utf-8"))["favorites"]
    made = migrated("single", favourite)
    assert made.fields == {
        "prompt": "wearing a red coat",
        "loras": [{"file": "a.safetensors", "strength": 0.8}],
        "rope_value": 9,
        "seed": 42,
        "steps": 25,
        "guidance_scale": 10.0,
    }
    assert found(made.notes) == {("size", "not_a_choice")}
    assert made.program == {"target_index": 5, "history_index": 13}
    assert modes.from_json({"mode": "single", **made.fields}).seed == 42


@pytest.mark.parametrize(
    ("old", "fields"),
    [
        ({"seed": 5, "use_random_seed": True}, {"seed": -1}),
        ({"seed": 5}, {"seed": 5}),
        ({"use_all_padding": True}, {"padding": 1.0}),
        ({"use_all_padding": False, "all_padding_value": 2.0}, {"padding": None}),
        ({"use_lora": False, "lora1": "a.safetensors"}, {}),
        ({"fp8_optimization": True}, {"precision": "auto"}),
        ({"fp8_optimization": False}, {"precision": "bfloat16"}),
        ({"latent_index": 0}, {}),
        *(({"frame_save_mode": label}, {"save_frames": value}) for value, labels in FRAMES.items() for label in labels),
    ],
)
def test_switches_decide_over_their_values(old: dict, fields: dict) -> None:
    assert migrated("reverse", old).fields == fields
    assert migrated("reverse", old).notes == ()


@pytest.mark.parametrize(("preserved", "reserve"), [(6, None), (2.5, None), (6.5, 0.5), (24, 18), ("much", None)])
def test_what_was_kept_free_of_the_card(preserved: Any, reserve: float | None) -> None:
    """The existing program's 6 GB kept free are not taken over: we measure our own need, and they would leave an 8 GB card
    nothing."""
    assert migrated("reverse", {"gpu_memory_preservation": preserved}).program.get("reserve_gb") == reserve


def test_the_target_counts_where_a_reference_is_used() -> None:
    """The target index counts only with a reference, as in the existing program; then the index stays below the window."""
    used = {"use_reference_image": True, "target_index": 12, "latent_window_size": 10, "use_clean_latents_post": False}
    assert migrated("single", used).fields == {"rope_value": 10, "target_index": 9, "context_1x": False}
    assert migrated("single", {"use_clean_latents_post": True}).fields == {"context_1x": None}
    assert "target_index" not in migrated("single", {**used, "use_reference_image": False}).fields
