"""Drawings of how tensors are split over ranks: a linear layer, all weights of a module, and Megatron's pair of layers.

Colours are ranks; grey is what all ranks have. They are drawn from the placements that PyTorch gives and from what
each simulated rank really computes. Those of a sharded module are called where it lives, in the function on the ranks.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from torch import nn
from torch.distributed.tensor import DTensor, Partial, Placement, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, parallelize_module

from .ledger import Entry, Ledger, size, summary
from .local import local_value
from .pictures import MIXED, RANK_COLOURS, arrow, box, canvas, rank_colour, rule
from .simulation import SimulatedRanks, per_rank

ALL = -1  # in place of a rank: all ranks have it
MEETING = "#444444"  # the colour of a collective


def placement_of(tensor: torch.Tensor) -> Placement | None:
    """On a mesh of one dimension; of a plain tensor, None."""
    return tensor.placements[0] if isinstance(tensor, DTensor) else None


def held(tensor: DTensor) -> list[tuple[slice, ...]]:
    """What each rank holds of a tensor, as slices of the whole, from its placement on a mesh of one dimension."""
    (placement,) = tensor.placements
    ranks = tensor.device_mesh.size()
    parts = [[slice(0, length) for length in tensor.shape] for _ in range(ranks)]
    if isinstance(placement, Shard):
        length = tensor.shape[placement.dim]
        most = -(-length // ranks)  # as torch.chunk does: the last ranks may have less, or nothing
        for rank, part in enumerate(parts):
            part[placement.dim] = slice(min(rank * most, length), min((rank + 1) * most, length))
    return [tuple(part) for part in parts]


def linear_split(style: ParallelStyle, ranks: int, tokens: int = 4, inputs: int = 8, outputs: int = 12) -> Figure:
    """x W = y for a linear layer that the style splits, and W as nn.Linear stores it. Colours: ranks; grey: all."""
    layer = nn.Linear(inputs, outputs, bias=False)
    parts = SimulatedRanks(ranks).run(lambda mesh: held(parallelize_module(layer, mesh, style).weight))[0]
    stored = torch.empty(outputs, inputs)
    for rank, part in enumerate(parts):
        stored[part] = rank
    if isinstance(style, ColwiseParallel):
        x, y, what = torch.full((1, inputs), ALL), stored[:, :1].T, "y: columns"
    else:
        x, y, what = stored[:1], torch.full((1, outputs), ALL), "y: sum over ranks"
    panels = {
        f"x ({tokens}, {inputs})": x.expand(tokens, inputs),
        f"W ({inputs}, {outputs})": stored.T,
        f"{what} ({tokens}, {outputs})": y.expand(tokens, outputs),
        f"as stored:\nlayer.weight ({outputs}, {inputs})": stored,
    }
    widths = [owners.shape[1] for owners in panels.values()]
    figure, axes = plt.subplots(1, 4, figsize=(0.29 * sum(widths) + 1.5, 0.29 * outputs + 0.6), width_ratios=widths)
    colours = ListedColormap([MIXED, *RANK_COLOURS[:ranks]])
    for axis, (title, owners) in zip(axes, panels.items(), strict=True):
        axis.imshow(owners.numpy(), cmap=colours, vmin=ALL, vmax=ranks - 1)
        rule(axis, *owners.shape, "white")
        axis.set_title(title, fontsize=11)
    figure.suptitle(f"{type(style).__name__} on {ranks} ranks", fontsize=13)
    figure.tight_layout(pad=0.6, w_pad=2)
    plt.close(figure)
    return figure


def placement_maps(tensors: dict[str, torch.Tensor], columns: int = 8) -> Figure:
    """What each rank holds of vectors and matrices: a map for each, such as all of `dict(block.named_parameters())`.

    A shard has its rank's colour; a tensor that all ranks have whole is grey; overlapping sheets, one for each rank,
    are the terms of a sum (Partial). A map shows whether a matrix is tall or wide; the maps have no common scale.
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
    """One tensor's map around (x, y)."""
    shape = tuple(tensor.shape)
    placement = placement_of(tensor)
    if not isinstance(placement, (Shard, Partial)):
        draw_part(axis, x, y, shape, [slice(0, length) for length in shape], MIXED)
        return
    for rank, part in reversed(list(enumerate(held(tensor)))):
        aside = 0.06 * rank if isinstance(placement, Partial) else 0.0
        draw_part(axis, x + aside, y - aside, shape, part, rank_colour(rank))


def draw_part(
    axis: Axes, x: float, y: float, shape: tuple[int, ...], part: Sequence[slice], colour: str, side: float = 1.1
) -> None:
    """A part of a vector, drawn upright, or of a matrix, whose longer side is `side` inches long, around (x, y)."""
    wide = min(max(shape[1] / shape[0], 0.4), 2.5) if len(shape) == 2 else 0.12
    width, height = side * min(wide, 1.0), side * min(1 / wide, 1.0)
    of_rows, of_columns = (*shape, 1)[:2]
    rows, columns = (*part, slice(0, 1))[:2]
    left, top = x - width / 2 + width * columns.start / of_columns, y + height / 2 - height * rows.start / of_rows
    across, down = width * (columns.stop - columns.start) / of_columns, height * (rows.stop - rows.start) / of_rows
    if across and down:
        box(axis, left + across / 2, top - down / 2, across, down, "", colour)


@dataclass
class Step:
    """A module's turn in a forward on simulated ranks: what each rank is given, computes, and hands on.

    The plan may communicate before it hands on; `placement` says what the parts are until then.
    """

    name: str
    module: nn.Module
    given: list[torch.Tensor]
    computed: list[torch.Tensor]
    placement: Placement | None
    handed_on: list[torch.Tensor] = field(default_factory=list)


def alike(tensors: list[torch.Tensor]) -> bool:
    """Whether all ranks have the same."""
    return all(torch.equal(tensor, tensors[0]) for tensor in tensors)


def trace(module: nn.Module, *inputs: torch.Tensor) -> list[Step | Entry]:
    """Run a sharded module on simulated ranks: the steps of its smallest parts and its collectives, in their order.

    Raises:
        ValueError: no weight of the module is sharded.
        TypeError: the ranks are not simulated, so that one cannot see what the others have.
    """
    sharded = [parameter for parameter in module.parameters() if isinstance(parameter, DTensor)]
    if not sharded:
        raise ValueError("no weight of this module is sharded: call parallelize_module first, on two ranks or more")
    ranks = len(per_rank(sharded[0]))
    names = {part: name for name, part in module.named_modules() if not any(part.children())}
    ledger, events, hooks, begun = Ledger(ranks, module), [], [], []

    def on_each(value: torch.Tensor) -> list[torch.Tensor]:
        value = local_value(value)
        return [value] * ranks if type(value) is torch.Tensor else per_rank(value)

    def note_collectives() -> None:
        events.extend(ledger.entries[sum(isinstance(event, Entry) for event in events) :])

    def begin(_, args: tuple) -> None:
        begun.append(on_each(args[0]))

    def compute(part: nn.Module, _, output: torch.Tensor) -> None:
        note_collectives()
        events.append(Step(names[part], part, begun.pop(), on_each(output), placement_of(output)))

    def hand_on(_, __, output: torch.Tensor) -> None:
        events[-1].handed_on = on_each(output)

    for part in names:  # in front of the plan's own hooks, and behind them
        hooks += [part.register_forward_pre_hook(begin, prepend=True)]
        hooks += [part.register_forward_hook(compute, prepend=True), part.register_forward_hook(hand_on)]
    try:
        with ledger:
            module(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    note_collectives()
    return events


LANE = 0.95  # inches


@dataclass
class Column:
    """Of a drawing with a lane for each rank: what stands over it, how wide it is, and what it draws for a rank."""

    title: str
    width: float
    draw: Callable[[Axes, float, float, int], None]  # axis, x, y, rank
    linked: bool = True  # by an arrow from the column before


def megatron(module: nn.Module, *inputs: torch.Tensor, only: Sequence[str] = ()) -> Figure:
    """A lane for each simulated rank: which part of each weight it has, what it computes, and where all must meet.

    The module is sharded; `only` names the submodules to draw, by default all. A weight is drawn as W in y = x W.
    A tensor is grey where all ranks have the same.
    """
    for name in only:
        module.get_submodule(name)  # raises if there is none
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
    """What stands in each lane from left to right; modules that get the same input, as query and key, side by side."""
    given = next(event.given for event in events if isinstance(event, Step))
    columns, step, together = [tensors_column("input", given, linked=False)], None, 0
    for event, after in zip(events, [*events[1:], None], strict=True):
        if isinstance(event, Entry):
            columns.append(collective_column(event, len(given)))
            if step and step.name == event.module:  # else it prepares the input of the next one
                columns.append(tensors_column("" if after else "output", step.handed_on))
            continue
        step, together = event, together + 1
        columns.append(step_column(step, linked=together == 1))
        if not (isinstance(after, Step) and after.given[0] is step.given[0]):
            columns.append(tensors_column(what_is(step), step.computed, times=together))
            together = 0
    return columns


def tensors_column(title: str, tensors: list[torch.Tensor], times: int = 1, linked: bool = True) -> Column:
    """A tensor on each rank, or several of one shape."""
    texts = [f"{times} × {tuple(part.shape)}" if times > 1 else f"{tuple(part.shape)}" for part in tensors]
    width = 0.085 * len(texts[0]) + 0.15
    same = alike(tensors)

    def draw(axis: Axes, x: float, y: float, rank: int) -> None:
        box(axis, x, y, width, 0.36, texts[rank], MIXED if same else rank_colour(rank))

    return Column(title, width + 0.3, draw, linked)


def what_is(step: Step) -> str:
    """What the ranks have computed of the whole result."""
    if isinstance(step.placement, Shard):
        return "columns" if step.placement.dim == step.computed[0].ndim - 1 else "rows"
    return "terms of\na sum" if isinstance(step.placement, Partial) else ""


def step_column(step: Step, linked: bool) -> Column:
    """Each rank's part of a linear layer's weight; any other module by its kind."""
    name = step.name.rpartition(".")[2]
    name = f"layer {name}" if name.isdigit() else name
    if not isinstance(step.module, nn.Linear):
        kind = type(step.module).__name__
        same = alike(step.computed)
        fill = [MIXED if same else rank_colour(rank) for rank in range(len(step.given))]
        return Column(name, 1.2, lambda axis, x, y, rank: box(axis, x, y, 0.9, 0.36, kind, fill[rank]), linked)
    weight = step.module.weight
    shape = tuple(weight.shape)[::-1]
    whole, placement = [slice(0, length) for length in shape], placement_of(weight)
    split = isinstance(placement, Shard)
    parts = [part[::-1] for part in held(weight)] if split else [whole] * len(step.given)

    def draw(axis: Axes, x: float, y: float, rank: int) -> None:
        draw_part(axis, x, y + 0.1, shape, whole, "white", side=0.62)
        draw_part(axis, x, y + 0.1, shape, parts[rank], rank_colour(rank) if split else MIXED, side=0.62)
        local = tuple(part.stop - part.start for part in parts[rank])
        axis.text(x, y - 0.33, str(local), ha="center", va="center", fontsize=10)

    by = "whole" if not split else "by columns" if placement.dim == 0 else "by rows"  # stored transposed
    return Column(f"{name}\nW {shape}\n{by}", 1.1, draw, linked)


def collective_column(entry: Entry, ranks: int) -> Column:
    """One bar across all lanes."""

    def draw(axis: Axes, x: float, y: float, rank: int) -> None:
        if rank == 0:
            text = f"{entry.collective}, {size(entry.payload)}"
            style = {"color": "white", "rotation": 90, "ha": "center", "va": "center", "fontsize": 12, "zorder": 5}
            box(axis, x, LANE * ranks / 2, 0.4, LANE * ranks - 0.1, "", MEETING)
            axis.text(x, LANE * ranks / 2, text, **style)

    return Column("", 0.7, draw)
