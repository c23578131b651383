"""Draw what plans make of the ranks' tensors: tokens that an entry is given, and columns that a product multiplies."""

import copy
from collections.abc import Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from ...parallel.simulation import SimulatedRanks, per_rank
from ...parallel.tensors import placement_of, slices_of_ranks
from ..parity import How, shard
from .canvas import MIXED, arrow, box, canvas, rank_colour
from .fused import WRONG
from .trace import alike

# In inches: a token's cell, the space between two ranks, and the space for the labels on the left.
CELL, GAP, LABELS = 0.3, 0.15, 2.0
# In inches: a cell of columns, the space for a factor of a product, and the space on the left.
COLUMN, FACTOR, LEFT = 0.42, 1.75, 1.5
EACH = 2  # cells of each factor that a rank has


def claimed(tensor: DTensor) -> Figure:
    """Draw the tokens that each simulated rank holds of a DTensor, and below them the DTensor as a whole.

    A cell is a token, with the token's first number in it, which must be its place. A rank's tokens have the rank's
    colour. They are grey if all ranks hold the same ones.

    Raises:
        ValueError: the tensor is not Shard(0) of a matrix.
    """
    if placement_of(tensor) != Shard(0) or tensor.ndim != 2:
        raise ValueError(f"can draw a matrix that is Shard(0), not {placement_of(tensor)} of {tuple(tensor.shape)}")
    held, parts = per_rank(tensor), [part[0] for part in slices_of_ranks(tensor)]
    space = GAP * (len(held) - 1)
    figure, axis = canvas(max(LABELS + CELL * len(tensor) + space + 0.2, 4.5), 1.9)
    for rank, (local, part) in enumerate(zip(held, parts, strict=True)):
        left = LABELS + CELL * part.start + GAP * rank
        middle = left + CELL * len(local) / 2
        axis.text(middle, 1.72, f"rank {rank}", ha="center", va="center", fontsize=11)
        draw_tokens(axis, local, left, 1.4, MIXED if alike(held) else rank_colour(rank))
        draw_tokens(axis, local, LABELS + space / 2 + CELL * part.start, 0.65, rank_colour(rank))
    axis.text(0.1, 1.4, f"each rank holds\n{tuple(held[0].shape)}", va="center", fontsize=11)
    axis.text(0.1, 0.65, f"PyTorch takes it for\n{tuple(tensor.shape)}, Shard(0)", va="center", fontsize=11)
    note = "A cell is a token, and the number is the token's place."
    if alike(held):
        note += " Grey: all ranks hold the same."
    axis.text(0.1, 0.15, note, va="center", fontsize=10)
    return figure


def draw_tokens(axis: Axes, tokens: torch.Tensor, left: float, y: float, colour: str) -> None:
    """Draw a row of cells that begins at `left`, one for each token, with the token's first number."""
    for i, token in enumerate(tokens):
        box(axis, left + CELL * (i + 0.5), y, CELL, 0.36, f"{token[0]:g}", colour)


def product(feed_forward: nn.Module, how: How, layers: Sequence[str], ranks: int = 4) -> Figure:
    """Draw which columns each rank of a gated feed-forward multiplies, and which rows of `out_layer` it has for them.

    `how` is a plan, or a function that is given the feed-forward and the mesh. `layers` names the two layers whose
    results a and b are multiplied, or the fused layer whose first half is a and whose second half is b. A cell is
    some neighbouring columns: a0 and b0 meet the rows 0. An upper row is a layer's W, as in y = x W, just before it
    is cut. A cell of a rank has a red edge if it does not belong to the rank's rows of out_layer.

    Raises:
        ValueError: the ranks do not share the columns and rows equally.
    """
    names, rows = names_held(feed_forward, how, layers, ranks)
    top = 0.5 * (ranks + len(layers)) + 0.2
    figure, axis = canvas(LEFT + max(COLUMN * len(names[0][0]) * ranks, 2 * FACTOR + 1.3) + 0.1, top + 0.3)
    for i, (layer, of_ranks) in enumerate(zip(layers, names, strict=True)):
        axis.text(0.1, top - 0.5 * i, f"W of {layer}", va="center", fontsize=11)
        for rank, own in enumerate(of_ranks):
            draw_columns(axis, own, LEFT + COLUMN * len(own) * rank, top - 0.5 * i, rank)
    titles = [f"from {layer}" for layer in layers] if len(layers) > 1 else ["taken for a", "taken for b"]
    for i, title in enumerate([*titles, "rows of out_layer"]):
        x = LEFT + COLUMN * EACH / 2 + FACTOR * i
        axis.text(x, 0.5 * ranks + 0.2, title, ha="center", va="center", fontsize=10)
    for rank, of_out in enumerate(rows):
        y = 0.5 * (ranks - rank) - 0.22
        held = [name for of_ranks in names for name in of_ranks[rank]]
        axis.text(0.1, y, f"rank {rank}", va="center", fontsize=11)
        for i, letter in enumerate("ab"):
            right = [letter + row for row in of_out]
            draw_columns(axis, held[EACH * i : EACH * (i + 1)], LEFT + FACTOR * i, y, rank, right)
        axis.text(LEFT + (COLUMN * EACH + FACTOR) / 2, y, "×", ha="center", va="center", fontsize=16)
        arrow(axis, (LEFT + FACTOR + COLUMN * EACH + 0.2, y), (LEFT + 2 * FACTOR - 0.2, y))
        draw_columns(axis, of_out, LEFT + 2 * FACTOR, y, rank)
    return figure


def draw_columns(
    axis: Axes, names: Sequence[str], left: float, y: float, rank: int, right: Sequence[str] | None = None
) -> None:
    """Draw a row of cells in the rank's colour. A cell has a red edge if its name is not the right one."""
    for i, name in enumerate(names):
        patch = box(axis, left + COLUMN * (i + 0.5), y, 0.4, 0.36, name, rank_colour(rank))
        if right and name != right[i]:
            patch.set(edgecolor=WRONG, linewidth=2.5, zorder=4.5)


def names_held(
    feed_forward: nn.Module, how: How, layers: Sequence[str], ranks: int
) -> tuple[list[list[list[str]]], list[list[str]]]:
    """Return the names of the columns that each rank holds of each layer, and the names of its rows of `out_layer`.

    A name such as "a0" stands for neighbouring columns as they were before `how`, and "?" for columns that were apart.
    """
    numbered = copy.deepcopy(feed_forward)
    first = 0
    for name in layers:
        weight = numbered.get_submodule(name).weight  # stored, a column of W is a row
        weight.data = torch.arange(float(first), first + len(weight))[:, None].expand_as(weight).clone()
        first += len(weight)
    weight = numbered.out_layer.weight
    weight.data = torch.arange(float(weight.shape[1])).expand_as(weight).clone()

    def held_by_a_rank(mesh: DeviceMesh) -> list[torch.Tensor]:
        sharded = shard(numbered, mesh, how)
        return [sharded.get_submodule(name).weight for name in (*layers, "out_layer")]

    held = [[*(part[:, 0] for part in own[:-1]), own[-1][0]] for own in SimulatedRanks(ranks).run(held_by_a_rank)]
    size, rest = divmod(first // 2, EACH * ranks)
    lengths = [2 * EACH // len(layers) * size] * len(layers) + [EACH * size]
    if rest or any(list(map(len, own)) != lengths for own in held):
        raise ValueError(f"{ranks} ranks do not share the columns of {' and '.join(layers)} and the rows equally")
    cells = [f"{letter}{i}" for letter in "ab" for i in range(EACH * ranks)]

    def name_of(run: torch.Tensor) -> str:
        cell, offset = divmod(int(run[0]), size)
        return cells[cell] if not offset and torch.equal(run, run[0] + torch.arange(size)) else "?"

    names = [[[name_of(run) for run in part.split(size)] for part in own] for own in held]
    rows = [[name.strip("ab") for name in own[-1]] for own in names]
    return [[own[i] for own in names] for i in range(len(layers))], rows
