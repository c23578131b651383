"""Draw what each rank holds of a linear layer, of all weights of a module, or of a vector.

Each rank has a colour. Grey marks data that all ranks have. The placements come from PyTorch itself. A sharded module
exists only inside the function that runs on the ranks, so call placement_maps there.
"""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import nn
from torch.distributed.tensor import DTensor, Partial, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, parallelize_module

from ...parallel.simulation import SimulatedRanks
from ...parallel.tensors import placement_of, slices_of_ranks
from .canvas import MIXED, box, canvas, rank_colour, wrap_title

ALL = -1  # stands in place of a rank's number if all ranks have the data
CELL, BETWEEN = 0.27, 0.45  # in linear_split: the side of a number's cell, and the space between matrices, in inches


def linear_split(style: ParallelStyle, ranks: int, tokens: int = 4, inputs: int = 8, outputs: int = 12) -> Figure:
    """Draw x W = y for a linear layer that the style splits, and set apart from it W as nn.Linear stores it.

    Each rank's part has the rank's colour. A tensor that all ranks have is grey. The boxes at the bottom say how much
    of W each rank has.
    """
    layer = nn.Linear(inputs, outputs, bias=False)
    parts = SimulatedRanks(ranks).run(lambda mesh: slices_of_ranks(parallelize_module(layer, mesh, style).weight))[0]
    stored = torch.empty(outputs, inputs)
    for rank, part in enumerate(parts):
        stored[part] = rank
    by_columns = isinstance(style, ColwiseParallel)
    if by_columns:
        x, y, what = torch.full((1, inputs), ALL), stored[:, :1].T, "y: columns"
    else:
        x, y, what = stored[:1], torch.full((1, outputs), ALL), "y: sum over ranks"
    panels = [
        (f"x ({tokens}, {inputs})", x.expand(tokens, inputs), "×"),
        (f"W ({inputs}, {outputs})", stored.T, "="),
        (f"{what} ({tokens}, {outputs})", y.expand(tokens, outputs), ""),
        (f"as stored:\nlayer.weight ({outputs}, {inputs})", stored, ""),
    ]
    width = CELL * 2 * (inputs + outputs) + 3 * BETWEEN + 0.9
    tall = CELL * max(inputs, outputs, tokens)
    figure, axis = canvas(max(width, 1.55 * (ranks + 1) + 0.3), tall + 1.55)
    axis.text(0.3, tall + 1.35, f"{type(style).__name__} on {ranks} ranks", va="center", fontsize=13)
    left, middle = 0.3, 0.65 + tall / 2
    for title, owners, sign in panels:
        draw_owners(axis, left, middle, owners, ranks)
        right, top = left + CELL * owners.shape[1], middle + CELL * owners.shape[0] / 2
        axis.text((left + right) / 2, top + 0.08, title, ha="center", va="bottom", fontsize=11)
        axis.text(right + BETWEEN / 2, middle, sign, ha="center", va="center", fontsize=18)
        left = right + BETWEEN
        if title.startswith("y"):  # what follows is no factor of the product
            axis.plot([left, left], [middle - tall / 2, middle + tall / 2], color="#888888", linestyle="--")
            left += BETWEEN
    for rank, part in enumerate(parts):
        count = stored[part].shape[0 if by_columns else 1]
        share = f"{count} {'column' if by_columns else 'row'}{'s' * (count > 1)}" if count else "nothing"
        box(axis, 1.05 + 1.55 * rank, 0.25, 1.45, 0.3, f"rank {rank}: {share}", rank_colour(rank) if count else "white")
    box(axis, 1.05 + 1.55 * ranks, 0.25, 1.45, 0.3, "all ranks", MIXED)
    return figure


def draw_owners(axis: Axes, left: float, middle: float, owners: torch.Tensor, ranks: int) -> None:
    """Draw a matrix with a cell for each number, in the colour of the rank that has the number."""
    rows, columns = owners.shape
    across, down = left + CELL * np.arange(columns + 1), middle - CELL * (np.arange(rows + 1) - rows / 2)
    colours = ListedColormap([MIXED, *map(rank_colour, range(ranks))])
    style = {"cmap": colours, "vmin": ALL, "vmax": ranks - 1, "edgecolors": "white", "linewidth": 0.8}
    axis.pcolormesh(across, down, owners.numpy(), **style)
    frame = {"fill": False, "edgecolor": "black", "linewidth": 0.8}
    axis.add_patch(Rectangle((left, down[-1]), CELL * columns, CELL * rows, **frame))


def placement_maps(tensors: dict[str, torch.Tensor], columns: int = 8) -> Figure:
    """Draw a map for each tensor, which shows what each rank holds of it.

    The tensors are vectors and matrices, for example all of `dict(block.named_parameters())`. A shard has its rank's
    colour. A tensor that all ranks have whole is grey. Overlapping sheets, one for each rank, are the terms of a sum
    (Partial). A map shows whether a matrix is tall or wide. The maps have no common scale.
    """
    columns = min(columns, len(tensors))
    rows = -(-len(tensors) // columns)
    figure, axis = canvas(max(1.6 * columns, 8.0), 2.0 * rows + 0.5)
    for i, (name, tensor) in enumerate(tensors.items()):
        x, y = 1.6 * (i % columns) + 0.8, 2.0 * (rows - i // columns)
        title = f"{name}\n{tuple(tensor.shape)}".replace(".", "\n", 1)
        axis.text(x, y - 0.55, title, ha="center", va="bottom", fontsize=10)
        draw_map(axis, tensor, x, y - 1.2)
    ranks = max((tensor.device_mesh.size() for tensor in tensors.values() if isinstance(tensor, DTensor)), default=1)
    for rank in range(ranks):
        box(axis, 0.6 + 0.85 * rank, 2.0 * rows + 0.3, 0.75, 0.25, f"rank {rank}", rank_colour(rank))
    box(axis, 0.7 + 0.85 * ranks, 2.0 * rows + 0.3, 0.9, 0.25, "all ranks", MIXED)
    return figure


def draw_map(axis: Axes, tensor: torch.Tensor, x: float, y: float) -> None:
    """Draw the map of one tensor around (x, y)."""
    shape = tuple(tensor.shape)
    placement = placement_of(tensor)
    if not isinstance(placement, (Shard, Partial)):
        draw_part(axis, x, y, shape, [slice(0, length) for length in shape], MIXED)
        return
    for rank, part in reversed(list(enumerate(slices_of_ranks(tensor)))):
        aside = 0.06 * rank if isinstance(placement, Partial) else 0.0
        draw_part(axis, x + aside, y - aside, shape, part, rank_colour(rank))


def draw_part(
    axis: Axes, x: float, y: float, shape: tuple[int, ...], part: Sequence[slice], colour: str, side: float = 1.1
) -> None:
    """Draw a part of a vector or of a matrix at its place in the whole.

    The whole lies around (x, y), and its longer side is `side` inches long. A vector stands upright.
    """
    wide = min(max(shape[1] / shape[0], 0.4), 2.5) if len(shape) == 2 else 0.12
    width, height = side * min(wide, 1.0), side * min(1 / wide, 1.0)
    of_rows, of_columns = (*shape, 1)[:2]
    rows, columns = (*part, slice(0, 1))[:2]
    left, top = x - width / 2 + width * columns.start / of_columns, y + height / 2 - height * rows.start / of_rows
    across, down = width * (columns.stop - columns.start) / of_columns, height * (rows.stop - rows.start) / of_rows
    if across and down:
        box(axis, left + across / 2, top - down / 2, across, down, "", colour)


def on_ranks(stages: dict[str, Sequence[torch.Tensor]]) -> Figure:
    """Draw the vector that each rank has at each stage.

    Each stage is a panel, in which each rank has a row and each number of its vector has a cell. A number that only one
    rank has at the first stage keeps this rank's colour. Any other number, such as a sum, is grey.
    """
    first = [set(vector.tolist()) for vector in next(iter(stages.values()))]
    widths = [max(vector.numel() for vector in vectors) for vectors in stages.values()]
    figsize = (0.55 * sum(widths) + 1.3 * len(stages), 0.5 * len(first) + 0.7)
    figure, axes = plt.subplots(1, len(stages), figsize=figsize, width_ratios=widths, squeeze=False)
    for axis, (title, vectors), width in zip(axes[0], stages.items(), widths, strict=True):
        for rank, vector in enumerate(vectors):
            for place, value in enumerate(vector.tolist()):
                owners = [owner for owner, values in enumerate(first) if value in values]
                colour = rank_colour(owners[0]) if len(owners) == 1 else MIXED
                axis.add_patch(Rectangle((place, rank), 1, 1, facecolor=colour, edgecolor="white", linewidth=2))
                axis.text(place + 0.5, rank + 0.5, f"{value:g}", ha="center", va="center", fontsize=12)
        axis.set(xlim=(0, width), ylim=(len(first), 0), xticks=[], yticks=[rank + 0.5 for rank in range(len(first))])
        axis.set_yticklabels([f"rank {rank}" for rank in range(len(first))], fontsize=11)
        axis.set_title(wrap_title(title, 6 * width), fontsize=12)
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
    figure.tight_layout(pad=0.4, w_pad=2)
    plt.close(figure)
    return figure
