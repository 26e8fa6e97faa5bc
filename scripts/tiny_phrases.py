"""The caption grammar of the embedded CLIP: colour x object x synonyms, and which phrase describes which object."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scene_catalogue import CLASSES, COLOURS, TEXTURE_SYNONYMS

COLOUR_WORDS: dict[str, list[str]] = {name: [name] for name in COLOURS} | {
    "grey": ["grey", "gray"],
    "purple": ["purple", "violet"],
    "cyan": ["cyan", "turquoise"],
}
GENERIC = ("object", "things", "stuff", "texture", "thing", "item", "something", "an object", "a thing", "objects")
"""Phrases that say nothing about a region: its relevancy is measured against these (the first four in queries)."""

# fmt: off
ABSENT = (
    "elephant", "umbrella", "banana", "telephone", "keyboard", "guitar", "pizza", "sandwich", "laptop", "window",
    "door", "tree", "flower", "dog", "cat", "horse", "cow", "sheep", "zebra", "giraffe", "person", "man", "woman",
    "child", "hand", "face", "shoe", "hat", "shirt", "trousers", "tie", "backpack", "suitcase", "handbag",
    "frisbee", "ski", "snowboard", "kite", "bat", "glove", "skateboard", "surfboard", "racket", "fork", "knife",
    "spoon", "apple", "broccoli", "carrot", "cake", "sofa", "couch", "bed", "toilet", "television", "monitor",
    "mouse", "remote", "microwave", "oven", "toaster", "sink", "fridge", "refrigerator", "clock", "scissors",
    "toothbrush", "hair", "drier", "curtain", "lamp", "pillow", "blanket", "towel", "mirror", "painting",
    "poster", "fireplace", "stairs", "river", "mountain", "cloud", "sun", "moon", "star", "boat", "ship",
    "airplane", "train", "bus", "truck", "motorcycle", "hydrant", "bench", "bird", "fish", "snake", "lizard",
    "frog", "turtle", "penguin", "lion", "tiger", "wolf", "fox", "monkey", "insect", "butterfly", "spider", "bee",
    "ant", "mushroom", "leaf", "grass", "bush", "cactus", "bread", "cheese", "egg", "milk", "juice", "wine",
    "beer", "tea", "sugar", "salt", "pepper", "candle", "soap", "shampoo", "brush", "comb", "razor", "hammer",
    "screwdriver", "saw", "drill", "nail", "screw", "wrench", "pliers", "rope", "chain", "wheel", "engine",
    "camera", "headphones", "speaker", "microphone", "printer", "battery", "cable", "plug", "socket", "switch",
    "key", "lock", "wallet", "coin", "paper", "pen", "pencil", "eraser", "ruler", "glue", "tape", "envelope",
    "newspaper", "magazine", "map", "globe", "flag", "medal", "trophy", "crown", "necklace", "watch", "glasses",
    "piano", "violin", "drum", "trumpet", "flute", "tent", "sleeping", "bag", "bucket", "broom", "mop", "vacuum",
    "cleaner", "ladder", "fence", "gate", "bridge", "tower", "castle", "church", "house", "garage", "helicopter",
    "rocket", "satellite", "telescope", "microscope", "dinosaur", "dragon", "unicorn", "ghost", "skeleton",
    "doll", "puppet", "puzzle", "dice", "chess", "card", "balloon", "kettle", "teapot", "pan", "spatula", "whisk",
    "blender", "grill",
)
# fmt: on
"""Nouns that name nothing the renderer can show: a query for one of them must find nothing."""
TEMPLATES = (
    "{}",
    "{}",
    "{}",
    "{}",
    "a {}",
    "the {}",
    "a photo of a {}",
    "my {}",
    "one {}",
    "small {}",
    "big {}",
    "a toy {}",
)


@dataclass(frozen=True)
class Phrase:
    """A phrase with what it claims; all fields empty: it claims nothing (generic)."""

    text: str
    noun: str | None = None
    colour: str | None = None
    absent: bool = False


def nouns_of(thing: dict) -> list[str]:
    """All words for one rendered object."""
    words = CLASSES.get(thing["class"] or "object", [])
    return [*words, *TEXTURE_SYNONYMS.get(thing["class"], {}).get(thing.get("texture") or "", [])]


def truth(phrase: Phrase, thing: dict) -> tuple[float, float]:
    """(target in 0..1, weight) of one phrase for one object; weight 0 where the honest answer is 'cannot say'."""
    if phrase.absent:
        return 0.0, 1.0
    if phrase.noun is None and phrase.colour is None:
        return 0.5, 0.0
    target, weight = 1.0, 1.0
    if phrase.noun is not None:
        named = nouns_of(thing)
        if not named and phrase.colour is None:
            return 0.0, 0.5
        # "ball" and "soccer ball" share a word: saying the special word of the general thing is wrong, not absurd.
        target = float(phrase.noun in named)
    if phrase.colour is not None and target > 0:
        if thing.get("colour"):
            target *= float(thing["colour"] == phrase.colour)
        elif phrase.colour in (thing.get("colours") or ()):
            target, weight = 1.0, 0.4
        else:
            target, weight = 0.0, (1.0 if thing.get("colours") else 0.0)
    return target, weight


def _dress(rng: np.random.Generator, words: str) -> str:
    return TEMPLATES[rng.integers(len(TEMPLATES))].format(words)


def _word(rng: np.random.Generator, colour: str) -> str:
    words = COLOUR_WORDS[colour]
    shade = ("", "", "", "", "dark ", "light ", "bright ")[rng.integers(7)]
    return shade + words[rng.integers(len(words))]


def phrase_for(rng: np.random.Generator, thing: dict) -> Phrase:
    """A random true phrase for an object; shapeless ones are only called by colour."""
    nouns = nouns_of(thing)
    colours = [thing["colour"]] if thing.get("colour") else list(thing.get("colours") or ())
    kind = rng.random()
    if colours and (kind < 0.2 or not nouns):
        colour = colours[rng.integers(len(colours))]
        form = ("the {} one", "{} object", "{} thing", "something {}", "{}")[rng.integers(5)]
        return Phrase(form.format(_word(rng, colour)), None, colour)
    if not nouns:
        return Phrase(GENERIC[rng.integers(len(GENERIC))])
    noun = nouns[0] if rng.random() < 0.4 else nouns[rng.integers(len(nouns))]
    if colours and kind < 0.6:
        colour = colours[rng.integers(len(colours))]
        return Phrase(_dress(rng, f"{_word(rng, colour)} {noun}"), noun, colour)
    return Phrase(_dress(rng, noun), noun)


def random_phrase(rng: np.random.Generator) -> Phrase:
    """A phrase about nothing in particular: any noun and colour of the grammar, or a word outside it."""
    colour = list(COLOURS)[rng.integers(len(COLOURS))]
    if rng.random() < 0.35:
        word = ABSENT[rng.integers(len(ABSENT))]
        kind = rng.random()
        if kind < 0.2:
            word = f"{word} {ABSENT[rng.integers(len(ABSENT))]}"
        elif kind < 0.6:
            word = f"{_word(rng, colour)} {word}"
        return Phrase(_dress(rng, word), absent=True)
    words = [w for synonyms in CLASSES.values() for w in synonyms]
    words += [w for table in TEXTURE_SYNONYMS.values() for synonyms in table.values() for w in synonyms]
    noun = words[rng.integers(len(words))]
    if rng.random() < 0.5:
        return Phrase(_dress(rng, f"{_word(rng, colour)} {noun}"), noun, colour)
    return Phrase(_dress(rng, noun), noun)


def vocabulary_texts() -> list[str]:
    """Texts whose BPE ids get rows of their own: the grammar, without the absent words."""
    nouns = [w for synonyms in CLASSES.values() for w in synonyms]
    nouns += [w for table in TEXTURE_SYNONYMS.values() for synonyms in table.values() for w in synonyms]
    colours = [w for words in COLOUR_WORDS.values() for w in words]
    return [*nouns, *colours, *GENERIC, "a the photo of my one small big toy dark light bright something object thing"]
