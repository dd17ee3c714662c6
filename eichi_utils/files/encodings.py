"""Which encoding a text without a mark has: Japanese, Chinese, Russian and Western ones, as older programs write them.

charset-normalizer needs some sentences to tell them apart; names of files and trigger words are two or three words. Here each
encoding that can be meant is judged by how much of the text is what its language is mostly made of. Their tables are ordered so
that this can be seen from the bytes: characters that everybody uses come first, rare ones after them.
"""

from __future__ import annotations

import codecs
import re
import unicodedata
from collections.abc import Callable

import charset_normalizer

# Bytes that are looked at, from the first that is no ASCII on, and some before it.
SAMPLE, BEFORE = 2**14, 64
# Of what is no ASCII, how much must be what the language is mostly made of; below, charset-normalizer is asked.
LIKELY = 0.6
# Characters that are a little common, and half-width katakana, which any Chinese text looks like.
RARE, HALF_WIDTH = 0.2, 0.3
PUNCTUATION = frozenset("、。，．・：；？！ー—…‘’“”（）〔〕［］｛｝〈〉《》「」『』【】～〜·　")
# A word as Cyrillic is written: all small, all capitals, or with a capital at its beginning.
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
        # The end of the sample may be within a character.
        text = codecs.getincrementaldecoder(encoding)().decode(sample, len(sample) < SAMPLE)
    except UnicodeDecodeError:
        return -1.0
    if any(unicodedata.category(character) in ("Cc", "Co", "Cn") and character not in "\t\n\r\x1a" for character in text):
        return -1.0
    return judge(text, encoding)


def _east_asian(text: str, encoding: str) -> float:
    """How much of the text is common, by bytes."""
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
    """How many of the letters are in words as Russian has them."""
    total = good = 0.0
    # In cp866 small letters stand where those encodings have their common characters.
    longest = 4 if encoding == "cp866" else 3
    for word in WORD.findall(text):
        own = sum(not character.isascii() for character in word)
        total += own
        if CYRILLIC.fullmatch(word) and (own < 3 or VOWELS.search(word)):
            # The bytes of two Chinese characters that make a Russian word by accident are rare, those of one are not.
            good += own * (1.05 if own > longest else 0.8)
    total += sum(not character.isascii() and not character.isalpha() for character in text)
    return good / total if total else 0.0


def _western(text: str, encoding: str) -> float:
    """How many of the letters with accents are in words with others."""
    total = good = 0.0
    for word in WORD.findall(text):
        own = sum(not character.isascii() for character in word)
        total += own
        if own <= len(word) / 2 and (word.islower() or word.isupper() or word.istitle()):
            good += own
    total += sum(not character.isascii() and not character.isalpha() for character in text)
    return 0.99 * good / total if total else 0.0


# Of equal ones the first counts. Windows writes Russian names into ZIP files in cp866.
JUDGES: dict[str, Callable[[str, str], float]] = {
    "cp932": _east_asian,
    "gb18030": _east_asian,
    "cp950": _east_asian,
    "cp1251": _cyrillic,
    "cp866": _cyrillic,
    "cp1252": _western,
}
