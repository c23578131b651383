"""Draw a sharded module in the order of its steps: the ranks compute, meet in a collective, and compute again."""

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import nn

from ...parallel.ledger import Entry, size
from .canvas import MEETING, box, canvas, rank_colour
from .trace import Step, alike, trace

REPEATED = "#5f6b7a"  # the colour of modules that give the same on all ranks
# In inches: the width of a stretch of computing, the width of the largest collective, and the height of a rank's lane.
COMPUTING, LARGEST, LANE = 1.75, 1.5, 0.4
LEFT, BELOW = 1.2, 1.4  # the room for the ranks' names, and for the labels below the lanes
TITLE = "Bytes, not time: the width of a dark bar is what each rank sends. The lines between the bars have no scale."


def timeline(module: nn.Module, *inputs: torch.Tensor) -> Figure:
    """Draw what simulated ranks do in a forward of a sharded module: compute, meet in a collective, compute again.

    The width of a collective is proportional to the bytes that each rank sends in it. Nothing stands for seconds: the
    stretches of computing are broken lines, all of the same length. A module in grey gives the same on all ranks, so
    each rank does all of the module's work.
    """
    events = trace(module, *inputs)
    ranks = next(len(event.given) for event in events if isinstance(event, Step))
    most = max((event.wire for event in events if isinstance(event, Entry)), default=1.0)
    stretches = by_collective(events)
    widths = [LARGEST * entry.wire / most if entry else 0.0 for _, entry in stretches]
    names = 0.19 * max(len(steps) for steps, _ in stretches)
    width = max(LEFT + COMPUTING * len(stretches) + sum(widths) + 0.6, 0.09 * len(TITLE))
    figure, axis = canvas(width, BELOW + LANE * ranks + names + 0.6)
    axis.text(0.1, BELOW + LANE * ranks + names + 0.38, TITLE, va="center", fontsize=11, fontweight="bold")
    top = BELOW + LANE * ranks
    for rank in range(ranks):
        axis.text(0.1, top - LANE * (rank + 0.5), f"rank {rank}", va="center", fontsize=11)
    axis.text(0.1, BELOW - 0.2, "sent so far", va="center", fontsize=10)
    x, sent = LEFT, 0.0
    for (steps, entry), width in zip(stretches, widths, strict=True):
        draw_computing(axis, x, top, steps, ranks)
        x += COMPUTING
        if entry:
            draw_meeting(axis, x, width, top, entry)
            sent += entry.wire
            x += width
            axis.text(x, BELOW - 0.2, size(sent), ha="center", va="center", fontsize=10)
    note = "Bytes are by the ring formula. A module in grey gives the same on all ranks: each rank does all of it."
    axis.text(0.1, 0.15, note, va="center", fontsize=10)
    return figure


def draw_computing(axis: Axes, x: float, top: float, steps: list[Step], ranks: int) -> None:
    """Draw a stretch of computing: a broken line in every lane, and the names of the modules that run in it."""
    middle = x + COMPUTING / 2
    for rank in range(ranks):
        y = top - LANE * (rank + 0.5)
        for start, end in ((x, middle - 0.07), (middle + 0.07, x + COMPUTING)):
            axis.plot([start, end], [y, y], color=rank_colour(rank), linewidth=7, solid_capstyle="butt")
        for slash in (middle - 0.07, middle + 0.07):  # as an axis is marked that leaves something out
            axis.plot([slash - 0.04, slash + 0.04], [y - 0.11, y + 0.11], color="black", linewidth=1)
    for i, step in enumerate(reversed(steps)):
        colour = REPEATED if alike(step.computed) else "black"
        name = step.name.removeprefix("visual_").removeprefix("self_attention.").removeprefix("cross_attention.")
        axis.text(x + 0.05, top + 0.12 + 0.19 * i, name, va="center", fontsize=10, color=colour)


def draw_meeting(axis: Axes, x: float, width: float, top: float, entry: Entry) -> None:
    """Draw a collective across all lanes, with the bytes that each rank sends in it if they fit into the bar."""
    box(axis, x + width / 2, (BELOW + top) / 2, width, top - BELOW, "", MEETING).set_edgecolor(MEETING)
    if width > 0.9:
        style = {"color": "white", "ha": "center", "va": "center", "fontsize": 11, "zorder": 5}
        axis.text(x + width / 2, (BELOW + top) / 2, f"each rank\nsends\n{size(entry.wire)}", **style)
    label = f"{entry.collective}, {size(entry.payload)}\nin " + entry.module.replace(".", ".\n")
    axis.text(x + width / 2, BELOW - 0.4, label, ha="center", va="top", fontsize=10, linespacing=1.2)


def by_collective(events: list[Step | Entry]) -> list[tuple[list[Step], Entry | None]]:
    """Return pairs of the steps before a collective and the collective. Steps after the last one have None."""
    stretches, steps = [], []
    for event in events:
        if isinstance(event, Entry):
            stretches.append((steps, event))
            steps = []
        else:
            steps.append(event)
    return [*stretches, (steps, None)] if steps else stretches
