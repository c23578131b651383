"""Pictures for the notebooks. They are PNG, so that a page that does not play videos shows them too."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure


def strip(pictures: Sequence[np.ndarray | torch.Tensor], titles: Sequence[str]) -> Figure:
    """Pictures (height, width, 3), or (height, width) in grey, side by side, each under its title."""
    height, width = pictures[0].shape[:2]
    each = min(2.4, 12.0 / len(pictures))  # inches
    figure, axes = plt.subplots(1, len(pictures), figsize=(each * len(pictures), each * height / width + 0.4))
    for axis, picture, title in zip(np.atleast_1d(axes), pictures, titles, strict=True):
        axis.imshow(picture, cmap="gray")
        axis.set_title(title, fontsize=11)
        axis.axis("off")
    figure.tight_layout(pad=0.3)
    plt.close(figure)  # shown once, by the cell that it is the value of
    return figure


def frames_of(video: torch.Tensor, count: int = 5) -> Figure:
    """A strip of count frames, evenly spaced, of a video (1, 3, frames, height, width)."""
    chosen = torch.linspace(0, video.shape[2] - 1, count).round().int().tolist()
    return strip([video[0, :, i].permute(1, 2, 0) for i in chosen], [f"frame {i}" for i in chosen])


# Okabe and Ito's colours, which colour-blind eyes tell apart, made lighter to carry black text.
RANK_COLOURS = ("#8fc7ee", "#f3c26b", "#7fd1b9", "#e6aacb", "#f2ea8f", "#8fa9d8", "#eaa07c", "#c9c9c9")
MIXED = "#efefef"


def on_ranks(stages: dict[str, Sequence[torch.Tensor]]) -> Figure:
    """What each rank has at each stage: a panel for each, a row for each rank, a cell for each number of a vector.

    A number that one rank alone has at the first stage keeps this rank's colour; any other, such as a sum, is grey.
    """
    first = [set(vector.tolist()) for vector in next(iter(stages.values()))]
    widths = [max(vector.numel() for vector in vectors) for vectors in stages.values()]
    figsize = (0.55 * sum(widths) + 1.3 * len(stages), 0.5 * len(first) + 0.7)
    figure, axes = plt.subplots(1, len(stages), figsize=figsize, width_ratios=widths, squeeze=False)
    for axis, (title, vectors), width in zip(axes[0], stages.items(), widths, strict=True):
        for rank, vector in enumerate(vectors):
            for place, value in enumerate(vector.tolist()):
                owners = [owner for owner, values in enumerate(first) if value in values]
                colour = RANK_COLOURS[owners[0] % len(RANK_COLOURS)] if len(owners) == 1 else MIXED
                axis.add_patch(plt.Rectangle((place, rank), 1, 1, facecolor=colour, edgecolor="white", linewidth=2))
                axis.text(place + 0.5, rank + 0.5, f"{value:g}", ha="center", va="center", fontsize=12)
        axis.set(xlim=(0, width), ylim=(len(first), 0), xticks=[], yticks=[rank + 0.5 for rank in range(len(first))])
        axis.set_yticklabels([f"rank {rank}" for rank in range(len(first))], fontsize=11)
        axis.set_title(title.replace(" ", "\n", 1), fontsize=12)
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
    figure.tight_layout(pad=0.4, w_pad=2)
    plt.close(figure)
    return figure


def rule(axis: Axes, rows: int, columns: int, colour: str) -> None:
    """Lines between the cells of a matrix that imshow has drawn, and no numbers at the sides."""
    axis.set_xticks(np.arange(columns + 1) - 0.5, labels=[])
    axis.set_yticks(np.arange(rows + 1) - 0.5, labels=[])
    axis.grid(color=colour, linewidth=1)
    axis.tick_params(length=0)


def shard_map(parts: Sequence[torch.Tensor], shape: tuple[int, int], title: str = "") -> Figure:
    """Which part of a matrix each rank holds, from the parts of `torch.arange(rows * columns).view(rows, columns)`."""
    rows, columns = shape
    figure, axes = plt.subplots(1, len(parts), figsize=(2.3 * len(parts), 2.3 * rows / columns + 0.6), squeeze=False)
    for rank, (axis, part) in enumerate(zip(axes[0], parts, strict=True)):
        held = torch.zeros(rows * columns)
        held[part.flatten().long()] = 1.0
        axis.imshow(
            held.view(rows, columns).numpy(), cmap=ListedColormap(["white", RANK_COLOURS[rank % len(RANK_COLOURS)]])
        )
        rule(axis, rows, columns, "#cccccc")
        axis.set_title(f"rank {rank}: {tuple(part.shape)}", fontsize=11)
    figure.suptitle(title, fontsize=13)
    figure.tight_layout(pad=0.6, h_pad=1.5)
    plt.close(figure)
    return figure
