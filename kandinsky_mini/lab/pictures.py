"""Pictures for the notebooks. They are PNG, so that a page that does not play videos shows them too."""

import textwrap
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle


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


def frames_of(video: np.ndarray | torch.Tensor, count: int = 5) -> Figure:
    """A strip of count frames, evenly spaced, of a video as in `side_by_side`."""
    frames = frames_first(video)
    chosen = evenly(len(frames), count)
    return strip([frames[i] for i in chosen], [f"frame {i}" for i in chosen])


def side_by_side(videos: dict[str, np.ndarray | torch.Tensor], count: int = 3) -> Figure:
    """The same count frames of several videos, a row for each video under its name, to compare them.

    A video is (1, 3, frames, height, width), as the pipeline gives it, or (frames, height, width, 3), as a file does.

    Raises:
        ValueError: the videos differ in their number of frames or in their size.
    """
    clips = {name: frames_first(video) for name, video in videos.items()}
    shapes = {clip.shape for clip in clips.values()}
    if len(shapes) != 1:
        raise ValueError(f"videos of one shape (frames, height, width, 3) are needed, not of {sorted(shapes)}")
    ((frames, height, width, _),) = shapes
    each = min(3.0, 12.0 / count)  # inches
    size = (each * count + 0.4, (each * height / width + 0.1) * len(clips) + 0.3)
    figure, axes = plt.subplots(len(clips), count, figsize=size, squeeze=False)
    for row, (name, clip) in zip(axes, clips.items(), strict=True):
        row[0].set_ylabel(name, fontsize=12)
        for axis, i in zip(row, evenly(frames, count), strict=True):
            axis.imshow(clip[i])
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
    for axis, i in zip(axes[0], evenly(frames, count), strict=True):
        axis.set_title(f"frame {i}", fontsize=12)
    figure.tight_layout(pad=0.3)
    plt.close(figure)
    return figure


def frames_first(video: np.ndarray | torch.Tensor) -> np.ndarray:
    """A video (1, 3, frames, height, width) as (frames, height, width, 3); one of four dimensions is that already."""
    video = np.asarray(video)
    return video[0].transpose(1, 2, 3, 0) if video.ndim == 5 else video


def evenly(frames: int, count: int) -> list[int]:
    """The numbers of count frames, evenly spaced from the first to the last."""
    return torch.linspace(0, frames - 1, count).round().int().tolist()


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty figure whose coordinates are inches, so that text fits the boxes that are drawn for it."""
    figure = plt.figure(figsize=(width, height))
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set(xlim=(0, width), ylim=(0, height))
    axis.axis("off")
    plt.close(figure)
    return figure, axis


def box(axis: Axes, x: float, y: float, width: float, height: float, text: str, colour: str) -> Rectangle:
    """A rectangle around (x, y) with its text, in front of lines."""
    style = {"facecolor": colour, "edgecolor": "black", "linewidth": 0.8, "zorder": 4}
    patch = axis.add_patch(Rectangle((x - width / 2, y - height / 2), width, height, **style))
    axis.text(x, y, text, ha="center", va="center", fontsize=10, linespacing=1.2, zorder=5)
    return patch


def arrow(axis: Axes, *points: tuple[float, float]) -> None:
    """A line through the points, with its head at the last."""
    axis.plot(*zip(*points[:-1], strict=True), color="black", linewidth=1.2)
    style = {"arrowstyle": "->", "linewidth": 1.2, "shrinkA": 0, "shrinkB": 0}
    axis.annotate("", points[-1], points[-2], arrowprops=style)


# Okabe and Ito's colours, which colour-blind eyes tell apart, made lighter to carry black text.
RANK_COLOURS = ("#8fc7ee", "#f3c26b", "#7fd1b9", "#e6aacb", "#f2ea8f", "#8fa9d8", "#eaa07c", "#a9a9a9")
MIXED = "#efefef"


def rank_colour(rank: int) -> str:
    return RANK_COLOURS[rank % len(RANK_COLOURS)]


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


def wrap_title(title: str, letters: int) -> str:
    return textwrap.fill(title, max(9, letters), break_long_words=False, break_on_hyphens=False)


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
        axis.imshow(held.view(rows, columns).numpy(), cmap=ListedColormap(["white", rank_colour(rank)]))
        rule(axis, rows, columns, "#cccccc")
        axis.set_title(f"rank {rank}: {tuple(part.shape)}", fontsize=11)
    figure.suptitle(title, fontsize=13)
    figure.tight_layout(pad=0.6, h_pad=1.5)
    plt.close(figure)
    return figure


def heads(count: int, ranks: int) -> Figure:
    """Which rank computes which attention heads, a row for each rank; dashed where a rank waits for the others.

    Each rank has the same number of heads if that divides; if not, the first ranks have one head more.
    """
    each, more = divmod(count, ranks)
    shares = [each + (rank < more) for rank in range(ranks)]
    *most, last = [str(n) for n in range(1, count + 1) if count % n == 0]
    fits = f"{count} is divisible by {', '.join(most)} and {last}" if most else f"{count} is divisible by {last}"
    title = f"{count} heads on {ranks} ranks: {each} each" if ranks > 1 else f"{count} heads on 1 rank"
    if more:
        title = f"{count} heads are not divisible by {ranks}. Uneven, on {ranks} ranks: {', '.join(map(str, shares))}"
        fits += f". If heads take equally long, {count / (ranks * shares[0]):.1%} of the ranks' time is used"
    figure, axis = canvas(max(0.42 * shares[0] + 1.1, 8.0), 0.42 * ranks + 0.8)
    axis.text(0.2, 0.42 * ranks + 0.58, title, va="center", fontsize=13)
    axis.text(0.2, 0.42 * ranks + 0.28, fits, va="center", fontsize=11)
    first = 0
    for rank, share in enumerate(shares):
        y = 0.42 * (ranks - rank) - 0.15
        axis.text(0.2, y, f"rank {rank}", va="center", fontsize=11)
        for place in range(shares[0]):
            x = 1.1 + 0.42 * place
            if place < share:
                box(axis, x, y, 0.38, 0.38, str(first + place), rank_colour(rank))
            else:
                box(axis, x, y, 0.38, 0.38, "", "white").set(linestyle="--", edgecolor="#888888")
        first += share
    return figure
