"""Write captions for the training clips in a small fixed language: one phrase for each motion, then other wordings of it."""

from __future__ import annotations

from itertools import product

# Colour names with hue (in turns), saturation and value of `pictures.hue`'s wheel; white, grey and black have no hue.
COLOURS = {
    "red": (0.0, 1.5, 0.50), "green": (1 / 3, 1.5, 0.45), "blue": (2 / 3, 1.5, 0.50), "yellow": (1 / 6, 1.1, 0.62),
    "purple": (5 / 6, 1.0, 0.50), "white": (0.0, 0.0, 0.97), "black": (0.0, 0.0, 0.04), "orange": (0.08, 1.4, 0.55),
}  # fmt: skip
# Shape names with corners and inner radius (None: a regular polygon's) of `pictures.radius`.
SHAPES = {
    "circle": (64, None), "square": (4, None), "triangle": (3, None), "star": (5, 0.45), "hexagon": (6, None),
    "diamond": (2, 0.55),
}  # fmt: skip

DIRECTIONS = ("left", "right", "up", "down")
# Kinds of clips with the number of their directions.
KINDS = {"move": 4, "pan": 4, "zoom": 2, "grow": 2, "turn": 2, "still": 1}

# Wordings of each kind and direction; the first one is the only one that the first lessons use.
_WHERE = {"left": "to the left", "right": "to the right", "up": "up", "down": "down"}
PHRASES = {
    **{
        ("move", i): (
            f"The {{colour}} {{shape}} moves {_WHERE[d]}.",
            f"The {{shape}} moves {_WHERE[d]}.",
            f"The {{colour}} {{shape}} slides {_WHERE[d]}.",
            f"The {{shape}} flies {_WHERE[d]}.",
        )
        for i, d in enumerate(DIRECTIONS)
    },
    **{
        ("pan", i): (
            f"The camera pans {_WHERE[d]}.",
            f"The camera slowly pans {_WHERE[d]}.",
            f"The camera moves {_WHERE[d]}.",
        )
        for i, d in enumerate(DIRECTIONS)
    },
    ("zoom", 0): ("The camera zooms in.", "The camera slowly zooms in.", "The camera moves closer."),
    ("zoom", 1): ("The camera zooms out.", "The camera slowly zooms out.", "The camera moves away."),
    ("grow", 0): ("The {colour} {shape} grows.", "The {shape} grows.", "The {colour} {shape} becomes larger."),
    ("grow", 1): ("The {colour} {shape} shrinks.", "The {shape} shrinks.", "The {colour} {shape} becomes smaller."),
    ("turn", 0): ("The {colour} {shape} turns to the right.", "The {colour} {shape} rotates clockwise."),
    ("turn", 1): ("The {colour} {shape} turns to the left.", "The {colour} {shape} rotates counterclockwise."),
    ("still", 0): ("Nothing moves.", "A still picture."),
}

# Words of users' prompts that no caption has. The tokenizer learns them too, so that it need not spell them in letters.
COMMON_WORDS = (
    "a an and the of in on at with from into over under behind before after while then slowly quickly gently smoothly "
    "person man woman girl boy child people face hair hand eyes smile smiles walks runs dances waves looks talks jumps "
    "dog cat bird lion cheetah horse animal tower house tree mountain sky cloud clouds sea water river city street car "
    "light sun moon night day morning evening wind rain snow fire smoke flower grass field forest background picture "
    "photo scene video film clear beautiful soft bright dark warm cold colorful detailed cinematic motion movement"
)


# Endings that a camera caption may have; they do not change what happens in the clip.
TAILS = ("on the tower", "on the lion", "on the face", "over the city", "across the field", "in soft light")
# Parts of prompts by people who do not know the captions' language. Clips with such prompts zoom in gently.
_SUBJECTS = "person woman girl boy dog cat lion tower tree car"
_ACTIONS = "walks runs dances waves talks jumps looks|up smiles moves|gently turns|around"
_MANNERS = "slowly|gently|in the wind|with clear movements|in beautiful soft light, cinematic and detailed"


def caption(kind: str, direction: int, shape: str, colour: str, phrase: int = 0) -> str:
    """Return the caption of a motion. phrase: number of the wording, taken modulo the number of wordings."""
    phrases = PHRASES[kind, direction]
    return phrases[phrase % len(phrases)].format(shape=shape, colour=colour)


def with_tail(sentence: str, tail: int) -> str:
    """Return a camera caption with one of `TAILS` as its ending; it means the same."""
    return f"{sentence[:-1]} {TAILS[tail]}."


def everyday_captions() -> list[str]:
    """Return prompts such as people write who do not know the captions' language."""
    manners = ("", *(f" {manner}" for manner in _MANNERS.split("|")))
    parts = product(_SUBJECTS.split(), (action.replace("|", " ") for action in _ACTIONS.split()), manners)
    return [f"The {subject} {action}{manner}." for subject, action, manner in parts]


def trained_captions() -> list[str]:
    """Return all captions that training uses, including the empty one."""
    camera = [sentence for key, phrases in PHRASES.items() if key[0] in ("pan", "zoom") for sentence in phrases]
    tails = [with_tail(sentence, tail) for sentence, tail in product(camera, range(len(TAILS)))]
    return [*every_caption(), *tails, *everyday_captions(), ""]


def every_caption() -> list[str]:
    """Return all captions of the language once. The tokenizers are made from them, so a change here needs new weights."""
    sentences = []
    for key, phrases in PHRASES.items():
        for phrase, shape, colour in product(range(len(phrases)), SHAPES, COLOURS):
            sentences.append(caption(*key, shape, colour, phrase))
    return list(dict.fromkeys(sentences))
