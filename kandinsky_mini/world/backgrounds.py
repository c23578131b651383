"""The four backgrounds. They are still and muted, and their horizon is low, so the hat always stands against the sky.

Units: the picture is 128 units high, and y points up. `chance` is a list of four tensors (N, 1, 1, 1, 1), which hold
random numbers in 0..1 for each video. They shift the hills and move the sun, the palm, the firs or the moon.
"""

from torch import Tensor

from .brush import Brush


def sky(brush: Brush, top: str, bottom: str) -> None:
    """Fill the picture with a soft vertical gradient that ends at y = 40. Everything else is painted over it."""
    brush.image.copy_(brush.palette[bottom])
    brush.image.lerp_(brush.palette[top], ((brush.y - 40) / 88).clamp(0, 1))


def ground(brush: Brush, colour: str, height: float | Tensor) -> None:
    brush.paint(colour, brush.y - height)


def meadow(brush: Brush, chance: list[Tensor], width: float) -> None:
    sky(brush, "meadow sky", "meadow haze")
    brush.ellipse("sun", width * (0.15 + 0.7 * chance[0]), 104, 13, 13)
    cloud = brush.moved(width * (0.15 + 0.7 * chance[1]), 100 + 12 * chance[2])
    cloud.limb("cloud", (-13, 0), (13, 0), 5.5)
    cloud.ellipse("cloud", -3, 4, 8, 8)
    shift = 40 * chance[3]
    brush.ellipse("meadow far", width * 0.1 + shift, 10, 90, 52)
    tree = brush.moved(width * 0.02 + shift, 58)
    tree.limb("trunk", (0, 0), (0, 12), 2.2)
    tree.ellipse("tree", 0, 19, 11, 13)
    brush.ellipse("meadow hill", width * 0.7 + shift, 0, 110, 52)
    ground(brush, "meadow", 26)


def beach(brush: Brush, chance: list[Tensor], width: float) -> None:
    sky(brush, "beach sky", "beach haze")
    ground(brush, "sea", 52 + 4 * chance[0])
    ground(brush, "sea near", 38)
    palm = brush.moved(width * (0.08 + 0.84 * chance[2]), 30)
    palm.limb("trunk", (-2, -16), (3, 28), 3.6, 2.8)
    palm.limb("trunk", (3, 28), (12, 54), 2.8, 2.4)
    for colour, bend, tip in (
        ("palm far", (-1, 66), (-9, 60)),
        ("palm far", (25, 66), (33, 60)),
        ("palm", (0, 59), (-4, 48)),
        ("palm", (24, 59), (28, 48)),
    ):
        palm.limb(colour, (12, 57), bend, 4.2, 3.8)
        palm.limb(colour, bend, tip, 3.8, 1.6)
    brush.ellipse("sand", width * (0.2 + 0.6 * chance[1]), -60, 210, 94)


def snow(brush: Brush, chance: list[Tensor], width: float) -> None:
    sky(brush, "snow sky", "snow haze")
    shift = 40 * chance[0]
    brush.ellipse("snow far", width * 0.05 + shift, 10, 90, 52)
    brush.ellipse("snow hill", width * 0.65 + shift, 0, 110, 52)
    fir(brush.moved(width * (0.05 + 0.20 * chance[1]), 27), height=38)
    fir(brush.moved(width * (0.42 + 0.16 * chance[2]), 27), height=30)
    fir(brush.moved(width * (0.77 + 0.20 * chance[3]), 27), height=42)
    ground(brush, "snow", 28)


def fir(brush: Brush, height: float) -> None:
    brush.polygon("fir", (-13, 0), (13, 0), (0, height * 0.75))
    brush.polygon("fir", (-10, height * 0.4), (10, height * 0.4), (0, height))
    brush.polygon("fir snow", (-4.5, height * 0.75), (4.5, height * 0.75), (0, height + 1))


def night(brush: Brush, chance: list[Tensor], width: float) -> None:
    sky(brush, "night sky", "night haze")
    place = 0.12 + 0.76 * chance[0]
    for step, height in enumerate((92, 114, 97, 117, 88), start=1):  # a sixth apart, stars keep clear of the moon
        star = width * ((place + step / 6) % 1)
        brush.ellipse("star", star, height - 10 * chance[1], 2.3, 2.3)
    moon = brush.moved(width * place, 104)
    moon.paint("moon", moon.to_ellipse(0, 0, 19, 19), opacity=0.18)
    moon.ellipse("moon", 0, 0, 13, 13)
    shift = 40 * chance[3]
    brush.ellipse("night far", width * 0.1 + shift, 10, 90, 52)
    brush.ellipse("night hill", width * 0.7 + shift, 0, 110, 52)
    ground(brush, "night", 26)


BACKDROPS = {"meadow": meadow, "beach": beach, "snow": snow, "night": night}
