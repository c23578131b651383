"""Draw a lane for each simulated rank. It shows the rank's weights and results, and where all ranks must meet."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import nn
from torch.distributed.tensor import Partial, Shard

from ...parallel.ledger import Entry, size, summary
from ...parallel.tensors import placement_of, slices_of_ranks
from .canvas import MEETING, MIXED, arrow, box, canvas, rank_colour
from .shards import draw_part
from .trace import Step, alike, trace

LANE = 0.95  # the height of a lane in inches


@dataclass
class Column:
    """A column across all lanes: its title, its width in inches, and a function that draws it in the lane of a rank."""

    title: str
    width: float
    draw: Callable[[Axes, float, float, int], None]  # called with axis, x, y, rank
    linked: bool = True  # whether an arrow leads here from the column before


def megatron(module: nn.Module, *inputs: torch.Tensor, only: Sequence[str] = ()) -> Figure:
    """Draw a forward of a sharded module on simulated ranks, with a lane for each rank.

    A lane shows which part of each weight the rank has and what the rank computes. The drawing also shows where all
    ranks must meet. A weight is drawn as W in y = x W. A tensor is grey if it is the same on all ranks.

    Args:
        only: the names of the submodules to draw, by default all of them.
    """
    for name in only:
        module.get_submodule(name)  # raises an error if there is no such submodule
    events = [e for e in trace(module, *inputs) if not only or (e.name if isinstance(e, Step) else e.module) in only]
    ranks = next(len(event.given) for event in events if isinstance(event, Step))
    columns = lane_columns(events)
    collectives = summary([event for event in events if isinstance(event, Entry)])
    figure, axis = canvas(sum(column.width for column in columns) + 0.8, LANE * ranks + 1.1)
    title = f"{ranks} ranks, communication: {collectives}. Grey: the same on all ranks"
    axis.text(0.1, LANE * ranks + 0.93, title, va="center", fontsize=13)
    x = 0.8
    for column in columns:
        axis.text(x + column.width / 2, LANE * ranks + 0.05, column.title, ha="center", va="bottom", fontsize=10)
        for rank in range(ranks):
            y = LANE * (ranks - rank - 0.5)
            column.draw(axis, x + column.width / 2, y, rank)
            if column.linked:
                arrow(axis, (x - 0.13, y), (x + 0.13, y))
        x += column.width
    for rank in range(ranks):
        axis.text(0.1, LANE * (ranks - rank - 0.5), f"rank {rank}", va="center", fontsize=11)
    return figure


def lane_columns(events: list[Step | Entry]) -> list[Column]:
    """Return the columns from left to right. Modules with the same input, such as query and key, stand side by side."""
    given = next(event.given for event in events if isinstance(event, Step))
    columns, step, together = [tensors_column("input", given, linked=False)], None, 0
    for event, after in zip(events, [*events[1:], None], strict=True):
        if isinstance(event, Entry):
            columns.append(collective_column(event, len(given)))
            if step and step.name == event.module:  # otherwise it prepares the input of the next module
                columns.append(tensors_column("result" if after else "output", step.handed_on))
            continue
        step, together = event, together + 1
        columns.append(step_column(step, linked=together == 1))
        if not (isinstance(after, Step) and after.given[0] is step.given[0]):
            columns.append(tensors_column(what_is(step), step.computed, times=together))
            together = 0
    return columns


def tensors_column(title: str, tensors: list[torch.Tensor], times: int = 1, linked: bool = True) -> Column:
    """Return a column that shows a tensor of each rank, or `times` tensors of the same shape."""
    texts = [f"{times} × {tuple(part.shape)}" if times > 1 else f"{tuple(part.shape)}" for part in tensors]
    width = 0.085 * len(texts[0]) + 0.15
    same = alike(tensors)

    def draw(axis: Axes, x: float, y: float, rank: int) -> None:
        box(axis, x, y, width, 0.36, texts[rank], MIXED if same else rank_colour(rank))

    return Column(title, width + 0.3, draw, linked)


def what_is(step: Step) -> str:
    """Say which part of the whole result each rank has computed: columns, rows, or terms of a sum.

    The text is only "result" if nothing is known about a split.
    """
    if isinstance(step.placement, Shard):
        return "columns" if step.placement.dim == step.computed[0].ndim - 1 else "rows"
    return "terms of\na sum" if isinstance(step.placement, Partial) else "result"


def step_column(step: Step, linked: bool) -> Column:
    """Return a column that shows each rank's part of a linear layer's weight, or the class of any other module."""
    name = step.name.rpartition(".")[2]
    linear = isinstance(step.module, nn.Linear)
    name = f"{'layer' if linear else 'module'} {name}" if name.isdigit() else name
    if not linear:
        kind = type(step.module).__name__
        same = alike(step.computed)
        fill = [MIXED if same else rank_colour(rank) for rank in range(len(step.given))]
        return Column(name, 1.2, lambda axis, x, y, rank: box(axis, x, y, 0.9, 0.36, kind, fill[rank]), linked)
    weight = step.module.weight
    shape = tuple(weight.shape)[::-1]
    whole, placement = [slice(0, length) for length in shape], placement_of(weight)
    split = isinstance(placement, Shard)
    parts = [part[::-1] for part in slices_of_ranks(weight)] if split else [whole] * len(step.given)

    def draw(axis: Axes, x: float, y: float, rank: int) -> None:
        draw_part(axis, x, y + 0.1, shape, whole, "white", side=0.62)
        draw_part(axis, x, y + 0.1, shape, parts[rank], rank_colour(rank) if split else MIXED, side=0.62)
        local = tuple(part.stop - part.start for part in parts[rank])
        axis.text(x, y - 0.33, str(local), ha="center", va="center", fontsize=10)

    by = "whole" if not split else "by columns" if placement.dim == 0 else "by rows"  # W is stored transposed
    return Column(f"{name}\nW {shape}\n{by}", 1.1, draw, linked)


def collective_column(entry: Entry, ranks: int) -> Column:
    """Return a column that is one bar across all lanes."""

    def draw(axis: Axes, x: float, y: float, rank: int) -> None:
        if rank == 0:
            text = f"{entry.collective}, {size(entry.payload)}"
            style = {"color": "white", "rotation": 90, "ha": "center", "va": "center", "fontsize": 12, "zorder": 5}
            box(axis, x, LANE * ranks / 2, 0.4, LANE * ranks - 0.1, "", MEETING)
            axis.text(x, LANE * ranks / 2, text, **style)

    return Column("", 0.7, draw)
