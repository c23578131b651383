"""Tools that the drawings share: a canvas in inches, boxes, arrows, and a colour for each rank."""

import textwrap

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

# These are Okabe and Ito's colours, which colour-blind readers can tell apart. They are lightened, so that black text
# on them is legible.
RANK_COLOURS = ("#8fc7ee", "#f3c26b", "#7fd1b9", "#e6aacb", "#f2ea8f", "#8fa9d8", "#eaa07c", "#a9a9a9")
MIXED = "#efefef"  # marks data that is the same on all ranks
MEETING = "#444444"  # marks a collective


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """Return an empty figure whose coordinates are inches, so that text fits the boxes that are drawn for it."""
    figure = plt.figure(figsize=(width, height))
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set(xlim=(0, width), ylim=(0, height))
    axis.axis("off")
    plt.close(figure)
    return figure, axis


def box(axis: Axes, x: float, y: float, width: float, height: float, text: str, colour: str) -> Rectangle:
    """Draw a rectangle centred on (x, y), with the text in it, in front of all lines. Return the rectangle."""
    style = {"facecolor": colour, "edgecolor": "black", "linewidth": 0.8, "zorder": 4}
    patch = axis.add_patch(Rectangle((x - width / 2, y - height / 2), width, height, **style))
    axis.text(x, y, text, ha="center", va="center", fontsize=10, linespacing=1.2, zorder=5)
    return patch


def arrow(axis: Axes, *points: tuple[float, float]) -> None:
    """Draw a line through the points, with an arrowhead at the last one."""
    axis.plot(*zip(*points[:-1], strict=True), color="black", linewidth=1.2)
    style = {"arrowstyle": "->", "linewidth": 1.2, "shrinkA": 0, "shrinkB": 0}
    axis.annotate("", points[-1], points[-2], arrowprops=style)


def rank_colour(rank: int) -> str:
    return RANK_COLOURS[rank % len(RANK_COLOURS)]


def wrap_title(title: str, letters: int) -> str:
    return textwrap.fill(title, max(9, letters), break_long_words=False, break_on_hyphens=False)


def rule(axis: Axes, rows: int, columns: int, colour: str) -> None:
    """Draw lines between the cells of a matrix that imshow has drawn, and remove the numbers at its sides."""
    axis.set_xticks(np.arange(columns + 1) - 0.5, labels=[])
    axis.set_yticks(np.arange(rows + 1) - 0.5, labels=[])
    axis.grid(color=colour, linewidth=1)
    axis.tick_params(length=0)
