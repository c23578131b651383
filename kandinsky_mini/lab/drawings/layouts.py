"""Draw how layouts differ: what each rank holds, who computed which part of a video, and what a step is made of."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.colors import ListedColormap, to_rgb
from matplotlib.figure import Figure

from .canvas import box, canvas, rank_colour, rule

CELL = 0.42  # the side of a head in inches
# Okabe and Ito's colours, as in the figures of the benchmark.
PARTS = {"attention": "#0072b2", "linear": "#009e73", "elementwise": "#cc79a7", "communication": "#e69f00"}


def held(parts: dict[str, Sequence[torch.Tensor]], shape: tuple[int, int], names: tuple[str, str]) -> Figure:
    """Draw a matrix for each title, whose cells have the colour of the rank that holds them.

    Args:
        parts: for each title, what each rank holds: the numbers of its cells, counted row by row.
        shape: the rows and columns of the matrix.
        names: what a row and a column of it stand for, such as ("tokens", "heads").
    """
    ranks = max(len(each) for each in parts.values())
    colours = ListedColormap([rank_colour(rank) for rank in range(ranks)])
    figure, axes = plt.subplots(1, len(parts), figsize=(0.36 * shape[1] * len(parts) + 3.0, 0.36 * shape[0] + 0.9))
    for axis, (title, of_ranks) in zip(np.atleast_1d(axes), parts.items(), strict=True):
        owner = torch.full(shape, -1)  # nobody's
        for rank, numbers in enumerate(of_ranks):
            owner.view(-1)[numbers.flatten().long()] = rank
        axis.imshow(np.ma.masked_less(owner.numpy(), 0), cmap=colours, vmin=-0.5, vmax=ranks - 0.5)
        rule(axis, *shape, "white")
        axis.set(title=title, ylabel=f"← {names[0]}", xlabel=f"{names[1]} →")
    handles = [plt.Rectangle((0, 0), 1, 1, color=rank_colour(rank)) for rank in range(ranks)]
    figure.legend(handles, [f"rank {rank}" for rank in range(ranks)], loc="center right", frameon=False)
    figure.tight_layout(rect=(0, 0, 1 - 1.1 / figure.get_figwidth(), 1))
    plt.close(figure)
    return figure


def tinted(pictures: Sequence[torch.Tensor], owners: torch.Tensor, titles: Sequence[str]) -> Figure:
    """Draw pictures side by side, and lay over each part of them the colour of the rank that computed it.

    Args:
        pictures: uint8 (height, width, 3) each.
        owners: the rank for each picture and each cell of a grid over it (pictures, rows, columns).
    """
    each = 12.0 / len(pictures)
    height, width = pictures[0].shape[:2]
    figure, axes = plt.subplots(1, len(pictures), figsize=(12.4, each * height / width + 0.5))
    for axis, picture, owner, title in zip(np.atleast_1d(axes), pictures, owners, titles, strict=True):
        axis.imshow(picture.numpy())
        colours = np.array([to_rgb(rank_colour(int(rank))) for rank in owner.flatten()])
        tint = np.dstack([colours.reshape(*owner.shape, 3), np.full(owner.shape, 0.5)])
        axis.imshow(tint, extent=(-0.5, width - 0.5, height - 0.5, -0.5))
        axis.set_title(title, fontsize=11)
        axis.axis("off")
    figure.tight_layout(pad=0.3)
    plt.close(figure)
    return figure


def heads(count: int, ranks: int) -> Figure:
    """Draw which attention heads each rank computes, if the first ranks take one more where they do not divide.

    Dashed cells show where a rank waits for those that have one head more.
    """
    each, more = divmod(count, ranks)
    shares = [each + (rank < more) for rank in range(ranks)]
    figure, axis = canvas(CELL * shares[0] + 4.6, CELL * ranks + 0.4)
    used = count / (ranks * shares[0])
    axis.text(
        CELL * shares[0] + 1.3, CELL * ranks / 2 + 0.1, f"{used:.1%} of the time is used", va="center", fontsize=12
    )
    first = 0
    for rank, share in enumerate(shares):
        y = CELL * (ranks - rank) - 0.05
        axis.text(0.2, y, f"rank {rank}", va="center", fontsize=11)
        for place in range(shares[0]):
            works = place < share
            text, colour = (str(first + place), rank_colour(rank)) if works else ("", "white")
            cell = box(axis, 1.1 + CELL * place, y, 0.38, 0.38, text, colour)
            cell.set(linestyle="-" if works else "--", edgecolor="black" if works else "#888888")
        first += share
    return figure


def steps(predicted: dict[str, dict[str, float]], measured: dict[str, float] | None = None) -> Figure:
    """Draw what a step is made of, with a bar for each layout, the shortest on top.

    Args:
        predicted: for each layout, the seconds of each part of PARTS.
        measured: for some of these layouts, the seconds of a step that was measured. A black line marks them.
    """
    rows = sorted(predicted, key=lambda name: -sum(predicted[name].values()))
    figure, axis = plt.subplots(figsize=(10.0, 0.45 * len(rows) + 1.1), layout="constrained")
    left = np.zeros(len(rows))
    for part, colour in PARTS.items():
        widths = np.array([predicted[name].get(part, 0.0) for name in rows])
        axis.barh(rows, widths, 0.6, left, color=colour, label=part)
        left += widths
    for row, (name, end) in enumerate(zip(rows, left, strict=True)):
        known = (measured or {}).get(name)
        text = f"{end:.2f}" if known is None else f"{end:.2f} predicted, {known:.2f} measured"
        axis.annotate(text, (max(end, known or 0.0), row), (8, 0), textcoords="offset points", va="center", fontsize=9)
    for number, name in enumerate(name for name in rows if name in (measured or {})):
        place, label = rows.index(name), "measured" if number == 0 else None
        axis.plot([measured[name]] * 2, [place - 0.42, place + 0.42], color="black", linewidth=2.5, label=label)
    axis.set(
        xlabel="seconds a step",
        xlim=(0, (1.4 if measured else 1.15) * max(left.max(), *(measured or {"": 0.0}).values())),
    )
    figure.legend(loc="outside right center", fontsize=9)
    plt.close(figure)
    return figure
