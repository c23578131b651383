"""Draw the tokens that ranks give to an entry of a plan, and the tensor that PyTorch takes them for."""

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch.distributed.tensor import DTensor, Shard

from ...parallel.simulation import per_rank
from ...parallel.tensors import placement_of, slices_of_ranks
from .canvas import MIXED, box, canvas, rank_colour
from .trace import alike

# In inches: a token's cell, the space between two ranks, and the space for the labels on the left.
CELL, GAP, LABELS = 0.3, 0.15, 2.0


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
