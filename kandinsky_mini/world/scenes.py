"""The scenes of the small world: an animal in a coloured hat moves in front of a background."""

from dataclasses import dataclass, fields
from itertools import product

ANIMALS = ("cat", "dog", "rabbit", "bear", "duck", "pig")
COLOURS = ("red", "yellow", "green", "blue", "purple", "black")  # of the hat
MOTIONS = ("walks left", "walks right", "jumps", "dances")
BACKGROUNDS = ("meadow", "beach", "snow", "night")

ALLOWED = {"animal": ANIMALS, "colour": COLOURS, "motion": MOTIONS, "background": BACKGROUNDS}


@dataclass(frozen=True)
class Scene:
    """The four attributes of a video that a caption can name. Position, size and pace are left to chance."""

    animal: str
    colour: str
    motion: str
    background: str

    def __post_init__(self) -> None:
        for field in fields(self):
            value, allowed = getattr(self, field.name), ALLOWED[field.name]
            if value not in allowed:
                raise ValueError(f"unknown {field.name} {value!r}: choose one of {', '.join(allowed)}")


def all_scenes() -> list[Scene]:
    """Return the 6 x 6 x 4 x 4 = 576 scenes, in a fixed order."""
    return [Scene(*words) for words in product(ANIMALS, COLOURS, MOTIONS, BACKGROUNDS)]


def is_held_out(scene: Scene) -> bool:
    """Return whether the scene is kept out of training because of its animal, colour and motion.

    24 of the 144 triples are held out: those whose positions in the lists add up to a multiple of six. As in a Latin
    square, each animal with each motion misses one colour. So training still shows every pair of attributes, and only
    the combination of all three is new.
    """
    positions = ANIMALS.index(scene.animal), COLOURS.index(scene.colour), MOTIONS.index(scene.motion)
    return sum(positions) % 6 == 0
