"""Draw what NABLA does: the order of the patches, the coarse map of each head, and how much the ranks have to do."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import torch
from einops import rearrange
from matplotlib.figure import Figure

from .attention import finish
from .canvas import rank_colour


def order_of_patches(grid: tuple[int, int], block: tuple[int, int]) -> Figure:
    """Draw the patches of one frame, with their numbers: row by row, and block by block as NABLA wants them.

    Neighbouring blocks differ in colour. grid and block are heights and widths in patches.
    """
    (height, width), (bh, bw) = grid, block
    ordered = torch.arange(height * width)
    by_rows = ordered.view(height, width)
    by_blocks = rearrange(ordered, "(h w bh bw) -> (h bh) (w bw)", w=width // bw, bh=bh, bw=bw)
    down, across = by_blocks // (bh * bw) // (width // bw), by_blocks // (bh * bw) % (width // bw)
    figure, axes = plt.subplots(1, 2, figsize=(12.0, 6.0 * height / width + 0.4))
    for axis, numbers, title in zip(axes, (by_rows, by_blocks), ("row by row", "block by block"), strict=True):
        axis.imshow((2 * (down % 2) + across % 2).numpy(), cmap="Pastel1", vmin=0, vmax=8)
        for row in range(height):
            for column in range(width):
                axis.text(column, row, str(numbers[row, column].item()), ha="center", va="center", fontsize=9)
        axis.set_title(title, fontsize=11)
    return finish(figure)


def maps(pictures: dict[str, torch.Tensor], columns: int = 4) -> Figure:
    """Draw maps (blocks of queries, blocks of keys), each under its title. The larger a value, the darker."""
    rows = -(-len(pictures) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(12.0, rows * (12.0 / columns + 0.4)), squeeze=False)
    for axis in axes.flat[len(pictures) :]:
        axis.axis("off")
    for axis, (title, picture) in zip(axes.flat, pictures.items(), strict=False):
        axis.imshow(picture.float().numpy(), cmap="Greys", vmin=0.0)
        axis.set_title(title, fontsize=11)
    return finish(figure)


def work_of_ranks(orders: dict[str, Sequence[Sequence[float]]]) -> Figure:
    """Draw how much each rank has to do in each layer, with a panel for each order of the heads.

    orders[title][layer][rank] is the rank's work, as a share of the average. Red lines are the layers' slowest ranks.
    """
    figure, axes = plt.subplots(1, len(orders), figsize=(12.0, 2.8), sharey=True, layout="constrained", squeeze=False)
    for axis, (title, layers) in zip(axes[0], orders.items(), strict=True):
        ranks = len(layers[0])
        for layer, work in enumerate(layers):
            places = [layer + 0.8 * (rank - (ranks - 1) / 2) / ranks for rank in range(ranks)]
            axis.bar(places, work, 0.8 / ranks, color=[rank_colour(rank) for rank in range(ranks)], edgecolor="black")
            axis.plot((layer - 0.42, layer + 0.42), (max(work),) * 2, color="#c00000", linewidth=2)
        axis.set(title=title, xlabel="visual block", xticks=range(len(layers)))
    axes[0, 0].set_ylabel("blocks to compute,\nas a share of the average")
    plt.close(figure)
    return figure
