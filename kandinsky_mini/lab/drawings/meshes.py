"""Draw how ranks are arranged and what each of them holds: a mesh, a ring in its rounds, a matrix in its placements."""

from collections.abc import Sequence
from math import cos, pi, sin

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch.distributed.tensor import Partial, Placement, Replicate, Shard

from .canvas import MIXED, box, canvas, rank_colour

ACROSS, DOWN = 0.58, 0.42  # the size of a part of a ring in inches
CELL = 0.3  # the side of a number of a matrix


def mesh_grid(grid: torch.Tensor, names: tuple[str, str], lines: dict[str, torch.Tensor], rank: int) -> Figure:
    """Draw a mesh of two dimensions, and mark the lines of ranks in it that contain one rank.

    Args:
        grid: the numbers of the ranks, `mesh.mesh`.
        names: the names of the mesh's dimensions, `mesh.mesh_dim_names`.
        lines: for each of these names, the ranks of that dimension's part of the mesh on this rank, `mesh[name].mesh`.
        rank: the rank that is written in bold.

    Raises:
        ValueError: one of the lines does not contain the rank.
    """
    if missing := [name for name, line in lines.items() if rank not in line.tolist()]:
        raise ValueError(f"the line of {missing[0]} does not contain rank {rank}: it is that of another rank")
    (rows, columns), places = grid.shape, {}
    left, top = 1.5, 0.8 * rows + 0.55
    figure, axis = canvas(left + 1.5 * columns + 2.2, 0.8 * rows + 1.25)
    axis.text(left - 0.15, top + 0.2, f"{names[0]} ↓", ha="right", va="center", fontsize=11)
    axis.text(left + 0.75 * columns, top + 0.5, f"{names[1]} →", ha="center", va="center", fontsize=11)
    for row in range(rows):
        axis.text(left - 0.15, top - 0.8 * (row + 0.5), str(row), ha="right", va="center", fontsize=11)
        for column in range(columns):
            number = int(grid[row, column])
            x, y = places[number] = left + 1.5 * (column + 0.5), top - 0.8 * (row + 0.5)
            box(axis, x, y, 1.1, 0.45, f"rank {number}", rank_colour(number))
            axis.texts[-1].set_fontweight("bold" if number == rank else "normal")
    for column in range(columns):
        axis.text(left + 1.5 * (column + 0.5), top + 0.2, str(column), ha="center", va="center", fontsize=11)
    for name, line in lines.items():
        across, down = zip(*(places[number] for number in line.tolist()), strict=True)
        corner = min(across) - 0.65, min(down) - 0.32
        size = max(across) - min(across) + 1.3, max(down) - min(down) + 0.64
        is_row = name == names[1]
        axis.add_patch(Rectangle(corner, *size, gid=name, fill=False, linewidth=2.5, linestyle="-" if is_row else "--"))
        x, y = (left + 1.5 * columns + 0.1, down[0]) if is_row else (across[0], 0.3)
        label = f'grid["{name}"]' + ("\n" if is_row else " ") + f"on rank {rank}: {line.tolist()}"
        axis.text(x, y, label, ha="left" if is_row else "center", va="center", fontsize=11)
    return figure


def ring(rounds: dict[str, torch.Tensor]) -> Figure:
    """Draw what ranks that stand in a ring hold after each round.

    A round is a matrix with a row for each rank and a column for each part of a tensor. Rank r's term of a part is
    10 ** r, so that a number tells whose terms have been added to it; the cell has these ranks' colours. A white cell,
    which is 0, is empty. An arrow leads to each part that has arrived in this round.
    """
    ranks, parts = next(iter(rounds.values())).shape
    panel = ACROSS * parts + 0.3
    figure, axis = canvas(2.6 + panel * len(rounds), max(DOWN * ranks + 0.95, 2.0))
    top = DOWN * ranks + 0.3
    draw_circle(axis, ranks, 0.85, DOWN * ranks / 2 + 0.3)
    earlier = [next(iter(rounds.values())), *rounds.values()]
    for i, ((title, held), before) in enumerate(zip(rounds.items(), earlier, strict=False)):
        left = 2.5 + panel * i
        axis.text(left + ACROSS * parts / 2, top + 0.5, title, ha="center", va="center", fontsize=12)
        for part in range(parts):
            axis.text(left + ACROSS * part + 0.03, top + 0.2, f"part {part}", va="center", fontsize=10)
        for rank in range(ranks):
            if i == 0:
                axis.text(left - 0.1, top - DOWN * (rank + 0.5), f"rank {rank}", ha="right", va="center", fontsize=11)
            for part in range(parts):
                value = int(held[rank, part])
                x, y = left + ACROSS * part, top - DOWN * (rank + 1)
                draw_sum(axis, x, y, value)
                if value > before[rank, part]:
                    style = {"arrowstyle": "->", "linewidth": 1.2, "shrinkA": 0, "shrinkB": 0}
                    ends = (x + 0.5, y + DOWN / 2), (x + 0.5, y + DOWN + 0.13)
                    axis.annotate("", *ends, arrowprops=style, zorder=6)
    return figure


def draw_circle(axis: Axes, ranks: int, x: float, y: float) -> None:
    """Draw the ring itself around (x, y): each rank sends to the next one, and the last to the first."""
    places = [(x + 0.55 * sin(2 * pi * r / ranks), y + 0.6 * cos(2 * pi * r / ranks)) for r in range(ranks)]
    for rank, (here, there) in enumerate(zip(places, places[1:] + places[:1], strict=True)):
        style = {"arrowstyle": "->", "shrinkA": 14, "shrinkB": 14, "connectionstyle": "arc3,rad=-0.25"}
        axis.annotate("", there, here, arrowprops=style)
        box(axis, *here, 0.3, 0.3, str(rank), rank_colour(rank))


def draw_sum(axis: Axes, x: float, y: float, value: int) -> None:
    """Draw a part with its corner at (x, y), in the colours of the ranks whose terms have been added to it."""
    added = [rank for rank, digit in enumerate(reversed(str(value))) if digit != "0"]
    for i, rank in enumerate(added):
        width = ACROSS / len(added)
        axis.add_patch(Rectangle((x + width * i, y), width, DOWN, facecolor=rank_colour(rank), zorder=4))
    axis.add_patch(Rectangle((x, y), ACROSS, DOWN, fill=False, edgecolor="black", linewidth=0.8, zorder=5))
    if added:
        axis.text(x + 0.24, y + DOWN / 2, str(value), ha="center", va="center", fontsize=10, zorder=6)


def placements(held: dict[Placement, Sequence[torch.Tensor]], whole: torch.Tensor) -> Figure:
    """Draw what each rank holds of a matrix, with a row for each placement, and the matrix itself beside it.

    A rank's numbers have its colour, and grey marks what all ranks have. A shard begins behind the earlier ones.
    `held` gives for each placement the tensors of the ranks, rank 0 first.
    """
    (rows, columns), ranks = whole.shape, len(next(iter(held.values())))
    wide, high = CELL * columns + 0.3, CELL * rows + 0.25
    figure, axis = canvas(1.35 + wide * (ranks + 1) + 0.2, high * len(held) + 0.45)
    for i in range(ranks + 1):
        title = f"rank {i}" if i < ranks else "logical tensor"
        x, y = 1.35 + wide * i + CELL * columns / 2, high * len(held) + 0.2
        axis.text(x, y, title, ha="center", va="center", fontsize=11)
    for i, (placement, tensors) in enumerate(held.items()):
        top = high * (len(held) - i)
        name = f"Shard({placement.dim})" if isinstance(placement, Shard) else f"{type(placement).__name__}()"
        axis.text(0.1, top - CELL * rows / 2, name, va="center", fontsize=12)
        offset = [0, 0]
        for rank, tensor in enumerate(tensors):
            colour = MIXED if isinstance(placement, Replicate) else rank_colour(rank)
            draw_matrix(axis, 1.35 + wide * rank, top, whole.shape, tensor, offset, colour)
            if isinstance(placement, Shard):
                offset[placement.dim] += tensor.shape[placement.dim]
            elif isinstance(placement, Partial):
                sign, x = "+" if rank + 1 < ranks else "=", 1.35 + wide * (rank + 1) - 0.15
                axis.text(x, top - CELL * rows / 2, sign, ha="center", va="center", fontsize=14)
        draw_matrix(axis, 1.35 + wide * ranks, top, whole.shape, whole, [0, 0], MIXED)
    return figure


def draw_matrix(
    axis: Axes, left: float, top: float, shape: Sequence[int], part: torch.Tensor, offset: Sequence[int], colour: str
) -> None:
    """Draw the part of a matrix that begins at `offset`, and white cells where the rest would be."""
    for row in range(shape[0]):
        for column in range(shape[1]):
            x, y, r, c = left + CELL * (column + 0.5), top - CELL * (row + 0.5), row - offset[0], column - offset[1]
            if 0 <= r < part.shape[0] and 0 <= c < part.shape[1]:
                box(axis, x, y, CELL, CELL, f"{part[r, c]:g}", colour)
            else:
                box(axis, x, y, CELL, CELL, "", "white").set(edgecolor="#cccccc", zorder=3)
