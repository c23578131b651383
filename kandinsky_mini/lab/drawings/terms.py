"""Draw a row-wise product: each rank's columns of x, its rows of W, its term of y, and the sum of the terms."""

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate
from torch.distributed.tensor.parallel import RowwiseParallel, parallelize_module

from ...parallel.ledger import Entry, Ledger, summary
from ...parallel.simulation import SimulatedRanks
from ...parallel.tensors import slices_of_ranks
from .canvas import MEETING, arrow, box, canvas, rank_colour

SUM = "#8c8c8c"  # a grey whose shades are as far apart as those of the ranks' colours
CELL = 0.19  # the side of a number's cell in inches
LEFT, GAP = 0.9, 0.55  # the width of the ranks' names, and the space between two matrices


def row_terms(x: torch.Tensor, weight: torch.Tensor, ranks: int = 4) -> Figure:
    """Draw y = x W, with W split by rows over simulated ranks. x is (tokens, inputs), and W is (inputs, outputs).

    Each rank has a lane with its columns of x, its rows of W, and its term of y. The bar is the collective that adds
    the terms, and y is behind it. Each cell is a number. The further it is from zero, the darker the cell is.

    Raises:
        ValueError: the number of rows of W is not divisible by the number of ranks.
    """
    tokens, (inputs, outputs) = len(x), weight.shape
    if inputs % ranks:
        raise ValueError(f"{inputs} rows cannot be shared equally by {ranks} ranks")
    rows, terms, y, entries = row_products(x, weight, ranks)
    wide, narrow = CELL * outputs, CELL * inputs / ranks
    lane = CELL * max(tokens, inputs // ranks) + 0.3
    middle, height = lane * ranks / 2, lane * ranks
    at_x = LEFT + narrow / 2
    at_w = at_x + narrow / 2 + GAP + wide / 2
    at_term = at_w + wide + GAP
    at_bar = at_term + wide / 2 + GAP + 0.2
    at_y = at_bar + 0.2 + GAP + wide / 2
    figure, axis = canvas(at_y + wide / 2 + 0.3, height + 0.7)
    for rank in range(ranks):
        level, colour = lane * (ranks - rank - 0.5), rank_colour(rank)
        axis.text(0.1, level, f"rank {rank}", va="center", fontsize=11)
        draw_numbers(axis, at_x, level, x[:, rows[rank]], colour, x)
        axis.text(at_w - wide / 2 - GAP / 2, level, "×", ha="center", va="center", fontsize=14)
        draw_numbers(axis, at_w, level, weight[rows[rank]], colour, weight)
        axis.text(at_term - wide / 2 - GAP / 2, level, "=", ha="center", va="center", fontsize=14)
        draw_numbers(axis, at_term, level, terms[rank], colour, y)
        arrow(axis, (at_term + wide / 2 + 0.1, level), (at_bar - 0.2, level))
    box(axis, at_bar, middle, 0.4, height - 0.1, "", MEETING)
    style = {"color": "white", "rotation": 90, "ha": "center", "va": "center", "fontsize": 12, "zorder": 5}
    axis.text(at_bar, middle, summary(entries), **style)
    arrow(axis, (at_bar + 0.2, middle), (at_y - wide / 2 - 0.1, middle))
    draw_numbers(axis, at_y, middle, y, SUM, y)
    term = f"terms of y {tuple(y.shape)}"
    titles = {at_x: "columns of x", at_w: "rows of W", at_term: term, at_y: "y, on every rank"}
    for at, title in titles.items():
        axis.text(at, height + 0.35, title, ha="center", va="center", fontsize=12)
    return figure


def row_products(
    x: torch.Tensor, weight: torch.Tensor, ranks: int
) -> tuple[list[slice], list[torch.Tensor], torch.Tensor, list[Entry]]:
    """Return the rows of W that each rank has, the rank's term of y, their sum, and the collectives of the sum."""
    layer = nn.Linear(*weight.shape, bias=False)
    layer.weight.data = weight.T.contiguous()  # as nn.Linear stores it
    unfinished = RowwiseParallel(input_layouts=Replicate(), output_layouts=Partial())

    def product(mesh: DeviceMesh) -> tuple:
        split = parallelize_module(layer, mesh, unfinished)
        term = split(x)
        with Ledger() as ledger:
            y = DTensor.from_local(term, mesh, [Partial()]).full_tensor()
        return slices_of_ranks(split.weight), term, y, ledger.entries

    slices, _, y, entries = (results := SimulatedRanks(ranks).run(product))[0]
    return [columns for _, columns in slices], [term for _, term, *_ in results], y, entries


def draw_numbers(axis: Axes, x: float, y: float, numbers: torch.Tensor, colour: str, of: torch.Tensor) -> QuadMesh:
    """Draw a matrix around (x, y), with a cell for each number. The largest numbers of `of` are darkest."""
    rows, columns = numbers.shape
    across = x + CELL * (np.arange(columns + 1) - columns / 2)
    down = y - CELL * (np.arange(rows + 1) - rows / 2)
    light, dark = 0.55 + 0.45 * np.array(to_rgb(colour)), 0.65 * np.array(to_rgb(colour))
    shades = LinearSegmentedColormap.from_list("shades", [light, to_rgb(colour), dark])
    style = {"cmap": shades, "vmin": 0.0, "vmax": of.abs().max().item(), "edgecolors": "white", "linewidth": 0.5}
    return axis.pcolormesh(across, down, numbers.abs().numpy(), **style, zorder=4)
