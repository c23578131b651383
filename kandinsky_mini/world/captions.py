"""Captions of scenes, in several phrasings, in English and in Russian.

A caption may leave attributes out, as "a cat in a red hat" does. What it does not name is left to chance.
"""

import random

from .scenes import Scene

LANGUAGES = ("en", "ru")

WORDS = {
    "en": {
        "cat": ["cat"], "dog": ["dog"], "rabbit": ["rabbit", "bunny"],
        "bear": ["bear"], "duck": ["duck"], "pig": ["pig"],
        "red": ["red"], "yellow": ["yellow"], "green": ["green"],
        "blue": ["blue"], "purple": ["purple"], "black": ["black"],
        "walks left": ["walks left", "walks to the left", "goes left", "is walking left"],
        "walks right": ["walks right", "walks to the right", "goes right", "is walking right"],
        "jumps": ["jumps", "hops", "is jumping"],
        "dances": ["dances", "is dancing"],
        "meadow": ["on a meadow", "on the grass", "in a green meadow"],
        "beach": ["on a beach", "on the beach", "by the sea"],
        "snow": ["in the snow", "in winter", "on the snow"],
        "night": ["at night", "under the stars", "in the night"],
    },
    "ru": {
        "cat": ["кот", "кошка"], "dog": ["собака", "пес"], "rabbit": ["кролик", "заяц"],
        "bear": ["медведь", "мишка"], "duck": ["утка"], "pig": ["свинья", "поросенок"],
        "red": ["красной"], "yellow": ["желтой"], "green": ["зеленой"],
        "blue": ["синей"], "purple": ["фиолетовой"], "black": ["черной"],
        "walks left": ["идет влево", "идет налево", "шагает влево"],
        "walks right": ["идет вправо", "идет направо", "шагает вправо"],
        "jumps": ["прыгает", "скачет"],
        "dances": ["танцует", "пляшет"],
        "meadow": ["на лугу", "на траве", "на зеленом лугу"],
        "beach": ["на пляже", "у моря", "на берегу моря"],
        "snow": ["в снегу", "зимой", "на снегу"],
        "night": ["ночью", "под звездами", "в темноте"],
    },
}  # fmt: skip

# In each language, the first phrasing names all four attributes in the plainest way.
PHRASINGS = {
    "en": [
        "{a} {animal} in a {colour} hat {motion} {background}",
        "{a} {animal} wearing a {colour} hat {motion} {background}",
        "{a} {animal} with a {colour} hat {motion} {background}",
        "{background} {a} {animal} in a {colour} hat {motion}",
        "{background}, {a} {animal} with a {colour} hat {motion}",
        "{a} {animal} that wears a {colour} hat {motion} {background}",
        "{a} {animal} {motion} {background}, its hat is {colour}",
    ],
    "ru": [
        "{animal} в {colour} шляпе {motion} {background}",
        "{animal} в {colour} шляпе {background} {motion}",
        "{background} {animal} в {colour} шляпе {motion}",
        "{background} {motion} {animal} в {colour} шляпе",
        "{motion} {animal} в {colour} шляпе {background}",
        "{background}, {animal} в {colour} шляпе {motion}",
    ],
}
PARTIAL_PHRASINGS = {
    "en": [
        "{a} {animal} in a {colour} hat",
        "{a} {animal} wearing a {colour} hat",
        "{a} {animal} in a {colour} hat {motion}",
        "{a} {animal} in a {colour} hat {background}",
        "{a} {animal} {motion} {background}",
        "{a} {animal} {motion}",
        "{a} {animal}",
    ],
    "ru": [
        "{animal} в {colour} шляпе",
        "{animal} в {colour} шляпе {motion}",
        "{animal} в {colour} шляпе {background}",
        "{animal} {motion} {background}",
        "{animal} {motion}",
        "{animal}",
    ],
}
# Training never uses these. They show whether a model understands words, or only sentences that it knows.
UNSEEN_PHRASINGS = {
    "en": [
        "in a {colour} hat {background}, {a} {animal} {motion}",
        "{a} {animal} {background} {motion} in a {colour} hat",
        "{animal}, {colour} hat, {motion}, {background}",
        "its hat is {colour}, {a} {animal} that {motion} {background}",
    ],
    "ru": [
        "в {colour} шляпе {background} {motion} {animal}",
        "{animal} {motion} {background} в {colour} шляпе",
        "{animal}, {colour}, {motion}, {background}",
        "{motion} {background} в {colour} шляпе {animal}",
    ],
}


def plain_caption(scene: Scene, language: str) -> str:
    """Return the plainest caption that names all four attributes."""
    words = {name: forms[0] for name, forms in WORDS[language].items()}
    return _fill(PHRASINGS[language][0], scene, words, "a")


def full_caption(scene: Scene, language: str, rng: random.Random) -> str:
    """Return a caption that names all four attributes, in a random phrasing."""
    return _fill(rng.choice(PHRASINGS[language]), scene, _draw_words(language, rng), rng.choice(["a", "the"]))


def unseen_caption(scene: Scene, language: str, rng: random.Random) -> str:
    """Return a caption that names all four attributes, in a random phrasing that training never uses."""
    return _fill(rng.choice(UNSEEN_PHRASINGS[language]), scene, _draw_words(language, rng), "a")


def caption(scene: Scene, language: str, rng: random.Random, partial: float = 0.3) -> str:
    """Return a caption in a random phrasing. With probability `partial` it leaves attributes out."""
    end = rng.choice(["", "", "", "."])
    if rng.random() >= partial:
        return full_caption(scene, language, rng) + end
    phrasing = rng.choice(PARTIAL_PHRASINGS[language])
    return _fill(phrasing, scene, _draw_words(language, rng), rng.choice(["a", "the"])) + end


def vocabulary() -> list[str]:
    """Return every word and punctuation mark that a caption can have, and the exclamation mark, sorted."""
    texts = [text for table in (PHRASINGS, PARTIAL_PHRASINGS) for group in table.values() for text in group]
    texts += [form for table in WORDS.values() for forms in table.values() for form in forms]
    fields = {"{a}", "{animal}", "{colour}", "{motion}", "{background}"}
    words = {word for text in texts for word in text.replace(",", " , ").split()}
    return sorted(words - fields | {"a", "the", ".", "!"})


def _draw_words(language: str, rng: random.Random) -> dict[str, str]:
    return {name: rng.choice(forms) for name, forms in WORDS[language].items()}


def _fill(phrasing: str, scene: Scene, words: dict[str, str], article: str) -> str:
    return phrasing.format(
        a=article,
        animal=words[scene.animal],
        colour=words[scene.colour],
        motion=words[scene.motion],
        background=words[scene.background],
    )
