"""Test that reading any document ends soon and gives values that can be stored again."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from eichi_utils.files import safe_reading
from eichi_utils.files.safe_reading import (
    DEEPEST,
    MOST_NODES,
    MOST_VALUES,
    UnsafeError,
    check_value,
    decode,
    open_regular,
    parse_json,
    parse_yaml,
    read_bytes,
    read_json,
    read_text,
)

CASES = Path(__file__).parents[2] / "cases"

TEXTS = {
    "cp932": (
        "花火 着物, hanabi style",
        "浴衣",
        "はなび",
        "カタカナ",
        "ソート表",
        "日本語のテキストです。",
        "東京",
        "最終フレーム",
    ),
    "gbk": ("古风 汉服, hanfu style", "夜晚", "灯塔", "樱花", "你好世界", "汉服少女，古风", "烟花", "赛博朋克", "水墨画"),
    "big5": ("古風 漢服, hanfu style", "夜晚", "燈塔", "櫻花", "你好世界", "煙火", "紅色", "日落", "開始.png", "賽博龐克"),
    "cp1251": ("кимоно, стиль", "привет", "Кошка", "ночь", "Маяк в шторм", "ёлка", "ПРИВЕТ", "Кот", "дом у моря"),
    "cp866": ("привет", "Кошка", "Маяк в шторм", "начало.png", "НАЧАЛО"),
    "cp1252": ("café", "Zürich", "façade, naïve style", "Müller", "crème brûlée"),
}


@pytest.mark.parametrize(("encoding", "text"), [(encoding, text) for encoding, texts in TEXTS.items() for text in texts])
def test_two_words_are_enough_to_tell_an_encoding(encoding: str, text: str) -> None:
    """Trigger words saved by Notepad in Japan, China, Taiwan and Russia were shown as garbage.

    charset-normalizer by itself takes "привет" for Big5 and "古风 汉服" for Western European.
    """
    assert decode(text.encode(encoding)) == text
    assert decode(f"style, {text}\r\n{text}, 8k\r\n".encode(encoding)) == f"style, {text}\r\n{text}, 8k\r\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("text", ["a cat, 8k\n", "花火 着物, hanabi style", "привет, style"])
def test_unicode_with_and_without_a_mark(encoding: str, text: str) -> None:
    """Notepad's "Unicode" is UTF-16 with a mark; PowerShell and SQL exports write it without one."""
    assert decode(text.encode(encoding)).removeprefix("\ufeff") == text


def test_the_case_of_a_file_beside_a_lora() -> None:
    assert read_text(CASES / "lora_trigger_words_shift_jis.txt").strip() == "花火 着物, hanabi style"


def test_other_languages_are_left_to_the_library() -> None:
    text = "Zażółć gęślą jaźń, źdźbło trawy na łące"
    assert decode(text.encode("cp1250")) == text


@pytest.mark.parametrize(
    "data", [b"\xff\xfea", b"\xff\xfe\x00\xd8", b"\x80", b"\xff" * 100, bytes(range(256)), b"\xef\xbb\xbf\xff"]
)
def test_bytes_that_mean_nothing_are_still_a_text(data: bytes) -> None:
    decode(data).encode()


def test_a_large_text_is_told_by_its_beginning() -> None:
    """16 MB of bytes of every value cost a second in a detector; what is no ASCII may also come late."""
    began = time.process_time()
    assert decode(b"a, " * 5_000_000 + "привет, ночь".encode("cp1251")).endswith("привет, ночь")
    decode(bytes(range(128, 256)) * 2**17)
    assert time.process_time() - began < 1.0


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"seed": ' + "7" * 400 + "}", "400 digits"),
        ('{"seed": -' + "7" * 21 + "}", "21 digits"),
        ('{"a": NaN}', "NaN"),
        ('{"a": -Infinity}', "-Infinity"),
        ('{"a": 1e999}', "1e999"),
        ('{"a": "\\ud800"}', "surrogate"),
        ('{"\\udfff": 1}', "surrogate"),
        ("[" * 100_000, "nested"),
        ("[" * (DEEPEST + 2) + "]" * (DEEPEST + 2), "nested"),
        ('{"a":' * 200 + "1" + "}" * 200, "nested"),
        ("[" + "1," * MOST_VALUES + "1]", "values"),
        ('"' * 2**21, "values"),
        ("{}x", "Extra data"),
        ("", "Expecting value"),
    ],
    ids=lambda text: text[:16],
)
def test_json_that_no_other_document_could_hold(text: str, reason: str) -> None:
    """json.loads gives numbers that str() refuses, NaN that no JSON has, half characters that no file can be written with, and
    a RecursionError."""
    for given in (text, text.encode()):
        with pytest.raises(ValueError, match=reason):
            parse_json(given)


def test_json_as_people_have_it() -> None:
    value = {"猫": ["\U0001f408", 2**64 - 1, -0.5, None, True, {"a": '[{,:\\" \n'}], "quotes": '"' * 50 + "," * MOST_VALUES}
    assert parse_json(json.dumps(value)) == value
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"):
        assert parse_json(json.dumps(value, ensure_ascii=False).encode(encoding)) == value
    assert parse_json('{"words": "花火"}'.encode("cp932")) == {"words": "花火"}
    assert parse_json('{"r": "\\ud83d\\udc08"}') == {"r": "\U0001f408"}
    assert read_json(CASES / "adapter_config_with_bom.json")["lora_alpha"] == 16
    deep = "[" * DEEPEST + "]" * DEEPEST
    assert parse_json(deep) == json.loads(deep)


@pytest.mark.parametrize("value", [{"a": [float("nan")]}, {"a": 10**400}, ["\ud800"], {"\ud800": 1}, float("inf")])
def test_values_from_elsewhere(value: object) -> None:
    with pytest.raises(UnsafeError):
        check_value(value)
    check_value({"a": [1, 0.5, None, True, "猫", ()]})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: &x 1", "anchors"),
        ("a: &x 1\nb: *x", "anchors"),
        ("a: *x", "anchors"),
        ("a: !!timestamp 2001-01-01", "tags"),
        ("a: !!python/name:os.system", "tags"),
        ("a: !local x", "tags"),
        ("a: !!int 7", "tags"),
        ("a: " + "[" * (DEEPEST + 5) + "]" * (DEEPEST + 5), "nested"),
        ("[" * 100_000, "nest"),
        ("? " * 100_000, "nested"),
        ("- " * 100_000, "nested"),
        ("x: [" + "1," * (MOST_NODES + 1) + "]", "values"),
        ('a: "\\ud800"', "."),
        ("a: \ud800", "."),
        ("{[a]: b}", "."),
        ("a: 1\n---\nb: 2", "single document"),
    ],
    ids=lambda text: text[:16],
)
def test_yaml_that_is_no_plain_data(text: str, reason: str) -> None:
    with pytest.raises(UnsafeError, match=reason):
        parse_yaml(text)


def test_yaml_as_the_existing_program_writes_it() -> None:
    """YAML 1.1's base 60 took an hour for a number of 2,000 groups; dates became objects that JSON has no place for."""
    text = (
        "a: 7\nb: -0.5\nc: true\nd: null\ne: ~\nf:\ng: 猫\nh: 1:20:30\ni: 2001-01-01\nj: 0x10\nk: 010\nl: .nan\nm: 1.0e+400\n"
    )
    values = {"a": 7, "b": -0.5, "c": True, "d": None, "e": None, "f": None, "g": "猫", "h": "1:20:30", "i": "2001-01-01"}
    assert parse_yaml(text) == {**values, "j": "0x10", "k": "010", "l": ".nan", "m": "1.0e+400"}
    assert parse_yaml(text.encode("utf-16")) == parse_yaml(text)
    assert parse_yaml("a: " + "1:" * 200_000 + "1")["a"].startswith("1:1:")
    assert parse_yaml("a: " + "1" * 400) == {"a": "1" * 400}
    assert parse_yaml("<<: {a: 1}") == {"<<": {"a": 1}}
    assert parse_yaml("") is None


def test_four_megabytes_of_yaml_are_read_at_once() -> None:
    """PyYAML's own parser takes five seconds for them."""
    began = time.process_time()
    for text in ("# " + "x" * 2**22, "a: '" + "x y " * 2**20 + "'", "\n" * 2**22, "a: |\n" + " x\n" * 2**20):
        parse_yaml(text)
    assert time.process_time() - began < 2.0


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    """Reading a pipe that nobody writes to hangs for ever; /dev/zero never ends."""
    with pytest.raises((UnsafeError, OSError)):
        read_bytes(tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        for place in (tmp_path / "pipe", Path("/dev/zero")):
            with pytest.raises(UnsafeError):
                open_regular(place)
    with pytest.raises(FileNotFoundError):
        read_text(tmp_path / "gone")


def test_files_have_a_largest_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.json"
    file.write_bytes(b'"' + b"x" * 2**20 + b'"')
    with pytest.raises(UnsafeError, match="more than 1 MB"):
        read_json(file, 2**20)
    assert read_json(file) == "x" * 2**20
    # A file that the system says is small may still not end.
    with file.open("wb") as sparse:
        sparse.truncate(safe_reading.MOST_BYTES + 1)
    with pytest.raises(UnsafeError, match="16 MB"):
        read_bytes(file)
