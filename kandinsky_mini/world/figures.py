"""The six animals and their hat. They are painted with few bold shapes, so that they survive a small autoencoder.

Units: one unit is about one pixel in a picture that is 128 pixels high. Each animal faces right and stands on y = 0,
around x = 0. You see it from the side, but its face is turned a little towards you, so both eyes show. With its hat it
is 71 to 77 units high. Shapes are painted from back to front: far legs, tail, body, near legs, head, hat.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .brush import Brush, Point

STEP, COUNTERSTEP = 1, -1  # two legs on a diagonal swing together, the other two the opposite way


@dataclass
class Pose:
    """How a figure stands in each frame. Every field is a tensor (N, 1, T, 1, 1).

    swing and rise describe the STEP feet. For the COUNTERSTEP feet, the sign is reversed.
    """

    x: Tensor  # where it stands, in units from the left edge
    lift: Tensor  # height of the figure above the ground, in units
    size: Tensor  # 1 is the normal size
    facing: Tensor  # +1 is right, -1 is left
    tilt: Tensor  # radians around the feet; a positive tilt leans backwards
    stretch: Tensor  # above 1 the figure is tall and thin, below 1 it is squashed
    swing: Tensor  # how far a walking foot is ahead of its hip
    rise: Tensor  # how high it is lifted, where this is positive
    airborne: Tensor  # from 0 on the ground to 1 at the top of a hop


def leg(brush: Brush, colour: str, pose: Pose, hip: Point, step: int, width: float) -> Point:
    """Paint a leg from the hip to its foot, and return where the foot is.

    The foot swings in a walk, spreads outwards in a hop, and stays put while the body tilts.
    """
    x = hip[0] + step * pose.swing + (3 if hip[0] > 0 else -3) * pose.airborne
    y = width + (step * pose.rise).clamp(min=0)
    cos, sin = pose.tilt.cos(), pose.tilt.sin()
    foot = (cos * x + sin * y, cos * y - sin * x)
    brush.limb(colour, hip, foot, width)
    return foot


def torso(brush: Brush, fur: str, x: float, y: float, rx: float, ry: float, chin: Point) -> None:
    """Paint an oval body, and the shade that the head throws on it. The shade keeps the two from melting into one."""
    body = brush.to_ellipse(x, y, rx, ry)
    brush.paint(fur, body)
    brush.paint(f"{fur} far", torch.maximum(body, brush.to_ellipse(*chin, 17, 15)), opacity=0.6)


def eyes(head: Brush, x: float, y: float) -> None:
    """Paint two big eyes that look ahead. The far one is a little narrower."""
    for ex, rx in ((x - 6, 4.2), (x + 6, 3.7)):
        head.ellipse("eye white", ex, y, rx, 5.0)
        head.ellipse("pupil", ex + 1.1, y - 0.3, rx - 1.4, 3.5)


def hat(head: Brush, x: float, y: float) -> None:
    """Paint a top hat with its brim at (x, y). The light rim sets it off from every background and fur."""
    hat = head.moved(x, y, -5)
    brim = hat.to_limb((-11.5, 0), (11.5, 0), 2.8)
    crown = hat.to_polygon((-8.5, 0), (8.5, 0), (10, 16), (-10, 16))
    shape = torch.minimum(brim, crown)
    hat.paint("hat rim", shape - 1.4)
    hat.paint("hat", shape)
    hat.polygon("hat band", (-8.8, 2.6), (8.8, 2.6), (9.2, 7), (-9.2, 7))


def cat(brush: Brush, pose: Pose) -> None:
    leg(brush, "cat far", pose, (12, 14), STEP, 4.2)
    leg(brush, "cat far", pose, (-20, 14), COUNTERSTEP, 4.2)
    brush.limb("cat", (-24, 24), (-33, 32), 3.8)
    brush.limb("cat", (-33, 32), (-33, 45), 3.8)
    brush.limb("cat stripe", (-33, 45), (-28, 52), 3.8)
    torso(brush, "cat", -7, 23, 24, 13.5, chin=(10, 36))
    brush.limb("cat stripe", (-22, 29), (-21, 36), 2.0)
    brush.limb("cat stripe", (-14, 30), (-13, 37), 2.0)
    leg(brush, "cat", pose, (6, 15), COUNTERSTEP, 4.5)
    leg(brush, "cat", pose, (-25, 15), STEP, 4.5)
    head = brush.moved(12, 39)
    head.polygon("cat", (-19, 0), (-3, 13), (-21, 29))
    head.polygon("cat far", (-17, 8), (-9, 13), (-18.5, 23))
    head.polygon("cat", (4, 13), (19, 0), (21, 29))
    head.polygon("cat far", (10, 13), (17, 8), (18.5, 23))
    head.ellipse("cat", 0, 0, 19.5, 15.5)
    head.ellipse("cream", 7, -7, 9.5, 6.5)
    head.ellipse("cat nose", 8, -4, 3.2, 2.4)
    eyes(head, 5.5, 3.5)
    hat(head, 0, 14)


def dog(brush: Brush, pose: Pose) -> None:
    leg(brush, "dog far", pose, (11, 16), STEP, 4.8)
    leg(brush, "dog far", pose, (-19, 16), COUNTERSTEP, 4.8)
    brush.limb("dog", (-28, 28), (-34, 42), 4.2, 3.0)
    torso(brush, "dog", -7, 25, 24, 14, chin=(9, 38))
    leg(brush, "dog", pose, (5, 16), COUNTERSTEP, 5.0)
    leg(brush, "dog", pose, (-24, 16), STEP, 5.0)
    head = brush.moved(10, 42)
    head.limb("dog ear", (13, 10), (20, 3), 4.0, 4.5)
    head.ellipse("dog", 0, 0, 17.5, 15)
    head.limb("dog snout", (7, -6.5), (16, -6.5), 8.0, 7.0)
    head.ellipse("pupil", 20, -3, 4.2, 3.4)
    head.limb("dog ear", (-13, 8), (-19, -9), 4.5, 7.0)
    eyes(head, 5, 4)
    hat(head, -0.5, 13)


def rabbit(brush: Brush, pose: Pose) -> None:
    leg(brush, "rabbit far", pose, (10, 13), STEP, 4.4)
    leg(brush, "rabbit far", pose, (-15, 13), COUNTERSTEP, 5.0)
    brush.ellipse("rabbit belly", -27, 21, 7.5, 7.5)
    torso(brush, "rabbit", -8, 21, 20, 15, chin=(6, 35))
    leg(brush, "rabbit", pose, (5, 14), COUNTERSTEP, 4.4)
    leg(brush, "rabbit", pose, (-19, 13), STEP, 5.6)
    head = brush.moved(8, 38)
    for side in (-1, 1):
        head.limb("rabbit", (side * 12, 8), (side * 20, 34), 5.8, 5.2)
        head.limb("rabbit pink", (side * 13, 12), (side * 19.7, 33), 2.8)
    head.ellipse("rabbit", 0, 0, 18, 15)
    head.ellipse("rabbit belly", 7, -7, 9, 6.5)
    head.ellipse("rabbit pink", 8, -4, 3.2, 2.4)
    head.ellipse("blush", -7, -5.5, 3.6, 2.6)
    eyes(head, 5.5, 3.5)
    hat(head, 0, 14)


def bear(brush: Brush, pose: Pose) -> None:
    leg(brush, "bear far", pose, (13, 16), STEP, 6.2)
    leg(brush, "bear far", pose, (-15, 16), COUNTERSTEP, 6.2)
    brush.ellipse("bear", -30, 32, 5, 5)
    torso(brush, "bear", -6, 26, 26, 18, chin=(10, 38))
    leg(brush, "bear", pose, (5, 16), COUNTERSTEP, 6.8)
    leg(brush, "bear", pose, (-22, 16), STEP, 6.8)
    head = brush.moved(12, 42)
    for side in (-1, 1):
        head.ellipse("bear", side * 17, 10, 7.5, 7.5)
        head.ellipse("bear muzzle", side * 17, 10, 4, 4)
    head.ellipse("bear", 0, 0, 19, 16)
    head.ellipse("bear muzzle", 8, -6.5, 10, 7.5)
    head.ellipse("pupil", 10, -3, 4.2, 3)
    eyes(head, 5.5, 5)
    hat(head, 0, 14.5)


def duck(brush: Brush, pose: Pose) -> None:
    for colour, hip, step in (("beak far", (3, 14), STEP), ("beak", (-8, 14), COUNTERSTEP)):
        x, y = leg(brush, colour, pose, hip, step, 3.0)
        brush.limb(colour, (x, y), (x + 6, y - 0.5), 2.6)  # webbed foot
    brush.polygon("duck", (-10, 14), (-12, 36), (-36, 39))
    torso(brush, "duck", -5, 25, 24, 15, chin=(9, 42))
    brush.limb("duck wing", (-7, 25), (-21, 24), 8.0, 4.0)
    head = brush.moved(10, 45)
    head.ellipse("duck", 0, 0, 16.5, 14)
    head.limb("beak", (13, -4.5), (22, -5.5), 5.2, 3.8)
    head.ellipse("blush", -6, -5, 3.6, 2.6)
    eyes(head, 5, 3)
    hat(head, -0.5, 12.5)


def pig(brush: Brush, pose: Pose) -> None:
    leg(brush, "pig far", pose, (12, 13), STEP, 4.8)
    leg(brush, "pig far", pose, (-18, 13), COUNTERSTEP, 4.8)
    brush.limb("pig far", (-27, 25), (-34, 27), 2.4)
    brush.limb("pig far", (-34, 27), (-34, 34), 2.4)
    brush.limb("pig far", (-34, 34), (-29, 38), 2.4)
    torso(brush, "pig", -6, 25, 24, 17, chin=(9, 36))
    leg(brush, "pig", pose, (5, 13), COUNTERSTEP, 5.0)
    leg(brush, "pig", pose, (-24, 13), STEP, 5.0)
    head = brush.moved(11, 40)
    head.polygon("pig far", (-18, 2), (-4, 13), (-22, 19))
    head.polygon("pig far", (5, 13), (18, 2), (22, 19))
    head.ellipse("pig", 0, 0, 18.5, 15.5)
    head.ellipse("snout", 11, -5.5, 8.5, 7)
    head.ellipse("nostril", 8, -5.5, 1.9, 2.8)
    head.ellipse("nostril", 14, -5.5, 1.9, 2.8)
    eyes(head, 4.5, 5)
    hat(head, 0, 14.5)


FIGURES = {"cat": cat, "dog": dog, "rabbit": rabbit, "bear": bear, "duck": duck, "pig": pig}
