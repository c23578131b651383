"""Draw how a fused layer, which computes query, key and value at once, is cut over the ranks."""

import copy

import torch
from matplotlib.figure import Figure
from torch import nn

from ...parallel.simulation import SimulatedRanks
from ..parity import How, shard
from .canvas import box, canvas, rank_colour

WRONG = "#c00000"  # the edge of a part that is used as something that it is not
CELL = 0.42  # in inches


def fused_columns(attention: nn.Module, how: How, heads: int, ranks: int = 4) -> Figure:
    """Draw which columns of the layer `qkv` each rank gets when `how` shards the attention, and what it takes them for.

    `how` is a plan, or a function that is given the attention and the mesh. A cell is the query (q), the key (k) or
    the value (v) of one head. The upper row is the layer's W, as in y = x W, just before it is cut. A rank takes the
    first third of its columns for queries, the next for keys, and the last for values. A cell has a red edge if it is
    something else, or if its head is not the query's.
    """
    names = [names_of(part, attention.qkv, heads) for part in columns_of_ranks(attention, how, ranks)]
    whole, each = [name for own in names for name in own], len(names[0]) // 3
    figure, axis = canvas(1.2 + CELL * len(whole) + 0.1, 0.5 * ranks + 1.0)
    top = 0.5 * ranks + 0.72
    axis.text(0.1, top, "W of qkv", va="center", fontsize=11)
    for i, name in enumerate(whole):
        box(axis, 1.4 + CELL * i, top, 0.4, 0.36, name, rank_colour(i // (3 * each)))
    for rank, own in enumerate(names):
        y = 0.5 * (ranks - rank) - 0.22
        axis.text(0.1, y, f"rank {rank}", va="center", fontsize=11)
        for use, letter in enumerate("qkv"):
            for i, name in enumerate(own[use * each : (use + 1) * each]):
                patch = box(axis, 1.4 + CELL * (use * (each + 1) + i), y, 0.4, 0.36, name, rank_colour(rank))
                if name != letter + own[i][1:]:
                    patch.set(edgecolor=WRONG, linewidth=2.5, zorder=4.5)
    for use, word in enumerate(("queries", "keys", "values")):
        axis.text(1.2 + CELL * use * (each + 1), top - 0.42, f"as {word}", va="center", fontsize=10)
    return figure


def columns_of_ranks(attention: nn.Module, how: How, ranks: int) -> list[torch.Tensor]:
    """Return the numbers of the columns that each rank holds of the layer's W, as they were before `how`."""
    numbered = copy.deepcopy(attention)
    weight = numbered.qkv.weight
    weight.data = torch.arange(float(len(weight)))[:, None].expand_as(weight).clone()  # stored, a column of W is a row
    held = SimulatedRanks(ranks).run(lambda mesh: shard(numbered, mesh, how).qkv.weight)
    return [part[:, 0].long() for part in held]


def names_of(columns: torch.Tensor, qkv: nn.Linear, heads: int) -> list[str]:
    """Return a name such as "q0" for each run of columns that is a head's query, key or value."""
    head_dim = qkv.out_features // (3 * heads)
    return [f"{'qkv'[i // heads]}{i % heads}" for i in (columns[::head_dim] // head_dim).tolist()]
