"""Draw a sharded module in the order of time: the ranks compute, meet in a collective, and compute again."""

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import nn

from ...parallel.ledger import Entry, size
from .canvas import MEETING, box, canvas, rank_colour
from .trace import Step, alike, trace

REPEATED = "#5f6b7a"  # the colour of modules that give the same on all ranks
# In inches: the width of a stretch of computing, the width of the largest collective, and the height of a rank's lane.
COMPUTING, LARGEST, LANE = 1.75, 1.5, 0.4


def timeline(module: nn.Module, *inputs: torch.Tensor) -> Figure:
    """Draw what simulated ranks do in a forward of a sharded module: compute, meet in a collective, compute again.

    The width of a collective is proportional to the bytes that each rank sends in it. Computing sends no bytes, so all
    its stretches have the same width. No width stands for seconds. A module in grey gives the same on all ranks, so
    each rank does all of the module's work.
    """
    events = trace(module, *inputs)
    ranks = next(len(event.given) for event in events if isinstance(event, Step))
    most = max((event.wire for event in events if isinstance(event, Entry)), default=1.0)
    stretches = by_collective(events)
    widths = [LARGEST * entry.wire / most if entry else 0.0 for _, entry in stretches]
    names = 0.19 * max(len(steps) for steps, _ in stretches)
    figure, axis = canvas(0.8 + COMPUTING * len(stretches) + sum(widths) + 0.6, LANE * ranks + names + 1.75)
    top = LANE * ranks + 1.55
    for rank in range(ranks):
        axis.text(0.1, top - LANE * (rank + 0.5), f"rank {rank}", va="center", fontsize=11)
    x, sent = 0.8, 0.0
    axis.text(x, 1.28, "0 KiB", ha="center", va="center", fontsize=10)
    for (steps, entry), width in zip(stretches, widths, strict=True):
        draw_computing(axis, x, top, steps, ranks)
        x += COMPUTING
        if entry:
            draw_meeting(axis, x, width, top, entry, entry.wire)
            sent += entry.wire
            x += width
            axis.text(x, 1.28, f"{sent / 1024:,.1f} KiB", ha="center", va="center", fontsize=10)
    note = (
        "Axis: bytes that each rank has sent, by the ring formula, not seconds; "
        "computing sends none, and has one width. Grey modules: the same on all ranks."
    )
    axis.text(0.1, 0.2, note, va="center", fontsize=10)
    return figure


def draw_computing(axis: Axes, x: float, top: float, steps: list[Step], ranks: int) -> None:
    """Draw a stretch of computing in every lane, and name the modules that run in it. They send no bytes."""
    for rank in range(ranks):
        style = {"facecolor": rank_colour(rank), "edgecolor": "white", "linewidth": 2}
        axis.add_patch(Rectangle((x, top - LANE * (rank + 1)), COMPUTING, LANE, **style))
    for i, step in enumerate(reversed(steps)):
        colour = REPEATED if alike(step.computed) else "black"
        name = step.name.removeprefix("visual_").removeprefix("self_attention.").removeprefix("cross_attention.")
        axis.text(x + 0.05, top + 0.12 + 0.19 * i, name, va="center", fontsize=10, color=colour)
    axis.plot([x, x + COMPUTING], [1.45, 1.45], color="black", linewidth=1, linestyle=":")


def draw_meeting(axis: Axes, x: float, width: float, top: float, entry: Entry, sends: float) -> None:
    """Draw a collective across all lanes. `sends` is the number of bytes that each rank sends in it."""
    box(axis, x + width / 2, (1.55 + top) / 2, width, top - 1.55, "", MEETING).set_edgecolor(MEETING)
    axis.plot([x, x + width], [1.45, 1.45], color="black", linewidth=3, solid_capstyle="butt")
    if width > 0.9:
        style = {"color": "white", "ha": "center", "va": "center", "fontsize": 11, "zorder": 5}
        axis.text(x + width / 2, (1.55 + top) / 2, f"each rank\nsends\n{size(sends)}", **style)
    label = f"{entry.collective}, {size(entry.payload)}\nin " + entry.module.replace(".", ".\n")
    axis.text(x + width / 2, 1.08, label, ha="center", va="top", fontsize=10, linespacing=1.2)


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
