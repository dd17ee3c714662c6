"""Guess the encoding of an unmarked text: Japanese, Chinese, Russian and Western ones, as older programs write them.

charset-normalizer needs some sentences to tell them apart, but names of files and trigger words have two or three words. Here
each possible encoding is scored by how much of the text consists of its language's common characters. The bytes show this,
because the encodings' tables have common characters first and rare ones after them.
"""

from __future__ import annotations

import codecs
import re
import unicodedata
from collections.abc import Callable

import charset_normalizer

# Bytes that are looked at from the first that is not ASCII, and before it.
SAMPLE, BEFORE = 2**14, 64
# Smallest share of common characters in what is not ASCII; below it, charset-normalizer is asked.
LIKELY = 0.6
# Weight of rarer characters, and of half-width katakana, as which any Chinese text can be read.
RARE, HALF_WIDTH = 0.2, 0.3
PUNCTUATION = frozenset("、。，．・：；？！ー—…‘’“”（）〔〕［］｛｝〈〉《》「」『』【】～〜·　")
# A word in Cyrillic: all small, all capitals, or with a capital at its beginning.
CYRILLIC = re.compile("[А-ЯЁЄІЇҐ]?[а-яёєіїґ]+|[А-ЯЁЄІЇҐ]+")
VOWELS = re.compile("[аеёиоуыэюяєії]", re.IGNORECASE)
WORD = re.compile(r"[^\W\d_]+")
NO_ASCII = re.compile(rb"[\x80-\xff]")


def likeliest(data: bytes) -> str:
    """Return the name of the likeliest encoding of a text that is no UTF-8, for `bytes.decode`."""
    found = NO_ASCII.search(data)
    first = found.start() if found else 0
    sample = data[max(0, first - BEFORE) : first + SAMPLE]
    scores = {encoding: _score(sample, encoding, judge) for encoding, judge in JUDGES.items()}
    best = max(scores, key=lambda encoding: scores[encoding])
    if scores[best] >= LIKELY:
        return best
    other = charset_normalizer.from_bytes(sample).best()
    return other.encoding if other else best


def _score(sample: bytes, encoding: str, judge: Callable[[str, str], float]) -> float:
    try:
        # The sample may end inside a character.
        text = codecs.getincrementaldecoder(encoding)().decode(sample, len(sample) < SAMPLE)
    except UnicodeDecodeError:
        return -1.0
    if any(unicodedata.category(character) in ("Cc", "Co", "Cn") and character not in "\t\n\r\x1a" for character in text):
        return -1.0
    return judge(text, encoding)


def _east_asian(text: str, encoding: str) -> float:
    """Return the share of common characters in the text, measured in bytes."""
    total = common = 0.0
    for character in text:
        if not character.isascii():
            code = character.encode(encoding)
            total += len(code)
            common += len(code) * _commonness(character, code, encoding)
    return common / total if total else 0.0


def _commonness(character: str, code: bytes, encoding: str) -> float:
    if character in PUNCTUATION:
        return 1.0
    if "\uff61" <= character <= "\uff9f":
        return HALF_WIDTH
    if encoding == "cp932":
        kana = "\u3041" <= character <= "\u30fe"
        # JIS X 0208, level 1: 2,965 characters.
        return 1.0 if kana or b"\x88\x9f" <= code <= b"\x98\x72" else RARE
    if encoding == "gb18030":
        # GB 2312, level 1: 3,755 characters.
        return 1.0 if len(code) == 2 and 0xB0 <= code[0] <= 0xD7 and code[1] >= 0xA1 else RARE
    # Big5, level 1: 5,401 characters.
    return 1.0 if b"\xa4\x40" <= code <= b"\xc6\x7e" else RARE


def _cyrillic(text: str, encoding: str) -> float:
    """Return the share of letters that are in plausible Russian words."""
    total = good = 0.0
    # cp866 has small letters where the Chinese and Japanese encodings have their common characters.
    longest = 4 if encoding == "cp866" else 3
    for word in WORD.findall(text):
        own = sum(not character.isascii() for character in word)
        total += own
        if CYRILLIC.fullmatch(word) and (own < 3 or VOWELS.search(word)):
            # By chance, one Chinese character often looks like a Russian word, two rarely do.
            good += own * (1.05 if own > longest else 0.8)
    total += sum(not character.isascii() and not character.isalpha() for character in text)
    return good / total if total else 0.0


def _western(text: str, encoding: str) -> float:
    """Return the share of accented letters that are in words with other letters."""
    total = good = 0.0
    for word in WORD.findall(text):
        own = sum(not character.isascii() for character in word)
        total += own
        if own <= len(word) / 2 and (word.islower() or word.isupper() or word.istitle()):
            good += own
    total += sum(not character.isascii() and not character.isalpha() for character in text)
    return 0.99 * good / total if total else 0.0


# Scoring functions by encoding; the first of equal scores wins. cp866 is what Windows writes Russian names in ZIP files in.
JUDGES: dict[str, Callable[[str, str], float]] = {
    "cp932": _east_asian,
    "gb18030": _east_asian,
    "cp950": _east_asian,
    "cp1251": _cyrillic,
    "cp866": _cyrillic,
    "cp1252": _western,
}
