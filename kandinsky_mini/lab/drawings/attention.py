"""Draw attention: where a token looks, whose heads they are, whose columns, what is summed, and which heads are cut.

whose_heads, whose_columns and what_is_summed draw a sharded module, so call them on the simulated ranks where it lives.
"""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import nn
from torch.distributed.tensor.parallel import ColwiseParallel

from ...parallel.simulation import SimulatedRanks, per_rank
from ...parallel.tensors import slices_of_ranks
from ..parity import shard
from .canvas import MIXED, box, canvas, rank_colour
from .fused import WRONG
from .shards import draw_part
from .trace import Step, trace

Grid = tuple[int, int, int]  # how many tokens a video has along time, height and width
TOKEN = "#c00000"  # the edge of the token that looks


def one_map(weights: torch.Tensor, video: torch.Tensor, token: int, grid: Grid) -> Figure:
    """Draw how much a token looks at each token of the video. The more weight, the darker.

    Under the frames stand the maps, each with the share of the weight that it has.

    Args:
        weights: the attention weights of one head (tokens, tokens).
        video: (1, 3, frames, height, width) with 4 (T - 1) + 1 frames, where T is the grid's first number.
    """
    frames, height, width = grid
    frame, row, column = place_of(token, grid)
    looks = weights[token].view(grid)
    figure, axes = plt.subplots(2, frames, figsize=(12.0, 24.0 / frames * height / width + 0.6))
    patch = video.shape[-1] / width
    for i, (above, below) in enumerate(axes.T):
        above.imshow(video[0, :, 4 * i].permute(1, 2, 0).numpy())
        above.set_title(f"frame {4 * i}", fontsize=11)
        below.imshow(looks[i].numpy(), cmap="Greys", vmin=0.0, vmax=looks.max().item())
        below.set_title(f"{looks[i].sum():.0%}", fontsize=11)
        if i == frame:
            mark(above, column * patch - 0.5, row * patch - 0.5, patch)
            mark(below, column - 0.5, row - 0.5, 1.0)
    return finish(figure)


def whose_heads(attention: nn.Module, *inputs: torch.Tensor, token: int, grid: Grid) -> Figure:
    """Draw where each head of a sharded attention looks for one token. The frames have the colours of the ranks.

    A map shows how much weight the token gives to each place of the picture, in all frames together. It is computed
    from the queries and keys that the rank itself has.
    """
    seen: list[list[torch.Tensor]] = []

    def note(_, args: Sequence[torch.Tensor]) -> None:
        seen.extend(per_rank(tensor) for tensor in args[:2])

    hook = attention.attention.register_forward_pre_hook(note)
    attention(*inputs)
    hook.remove()
    _, row, column = place_of(token, grid)
    maps = []
    for rank, (part, q, k) in enumerate(zip(slices_of_ranks(attention.to_query.weight), *seen, strict=True)):
        scores = torch.einsum("hd,shd->hs", q[token], k) / q.shape[-1] ** 0.5
        looks = scores.softmax(dim=-1).unflatten(1, grid).sum(1)
        first = part[0].start // q.shape[-1]  # the first of the rank's columns tells its first head
        maps += [(f"rank {rank}\nhead {first + i}", rank, each) for i, each in enumerate(looks)]
    figure, axes = plt.subplots(1, len(maps), figsize=(12.0, 12.0 / len(maps) * grid[1] / grid[2] + 0.7))
    for axis, (title, rank, looks) in zip(axes, maps, strict=True):
        axis.imshow(looks.numpy(), cmap="Greys", vmin=0.0, vmax=looks.max().item())
        axis.set_title(title, fontsize=11)
        mark(axis, column - 0.5, row - 0.5, 1.0)
        axis.spines[:].set(color=rank_colour(rank), linewidth=5)
    return finish(figure)


def whose_columns(layers: dict[str, nn.Linear], head_dim: int) -> Figure:
    """Draw which part of each W a rank holds, W as in y = x W. Dotted lines and numbers show the heads in it."""
    ranks = next(iter(layers.values())).weight.device_mesh.size()
    figure, axis = canvas(max(3.05 * len(layers), 0.85 * ranks + 0.4), 3.5)
    for rank in range(ranks):
        box(axis, 0.65 + 0.85 * rank, 3.3, 0.75, 0.25, f"rank {rank}", rank_colour(rank))
    for i, (name, layer) in enumerate(layers.items()):
        x, shape = 3.05 * (i + 0.5), tuple(layer.weight.shape)[::-1]
        parts = [part[::-1] for part in slices_of_ranks(layer.weight)]  # W is stored transposed
        by_rows = parts[0][1] == slice(0, shape[1])
        title = f"{name}: W {shape}, by {'rows' if by_rows else 'columns'}"
        axis.text(x, 2.92, title, ha="center", va="center", fontsize=11)
        for rank, part in enumerate(parts):
            draw_part(axis, x, 1.4, shape, part, rank_colour(rank), side=2.5)
        each = 2.5 * head_dim / shape[0 if by_rows else 1]
        for head in range(round(2.5 / each)):
            line, middle = each * head, each * (head + 0.5)
            ends = ((x - 1.25, x + 1.25), (2.65 - line,) * 2) if by_rows else ((x - 1.25 + line,) * 2, (0.15, 2.65))
            axis.plot(*ends, color="black", linewidth=0.8, linestyle=":", zorder=5)
            place = (x, 2.65 - middle) if by_rows else (x - 1.25 + middle, 1.4)
            axis.text(*place, str(head), ha="center", va="center", fontsize=11, zorder=6)
    return figure


def cut_heads(layer: nn.Linear, head_dim: int, ranks: Sequence[int]) -> Figure:
    """Draw where ColwiseParallel cuts a layer's heads, with a row for each number of ranks.

    A row shows the columns of W, as in y = x W, in the colours of the ranks that hold them. A cell is a head. If the
    head has columns on two ranks, the cell has both colours and a red edge.
    """
    each = 0.4 / head_dim  # the width of a column, in inches
    heads = layer.out_features // head_dim
    figure, axis = canvas(0.4 * heads + 1.0, 0.55 * len(ranks) + 0.1)
    for row, count in enumerate(ranks):
        bottom = 0.55 * (len(ranks) - row) - 0.4
        axis.text(0.1, bottom + 0.2, f"{count} ranks", va="center", fontsize=11)
        parts = SimulatedRanks(count).run(lambda mesh: slices_of_ranks(shard(layer, mesh, ColwiseParallel()).weight))
        columns = [part[0] for part in parts[0]]  # W is stored transposed
        for rank, own in enumerate(columns):
            place, width = (0.9 + each * own.start, bottom), each * (own.stop - own.start)
            axis.add_patch(Rectangle(place, width, 0.4, facecolor=rank_colour(rank)))
        for head in range(heads):
            first, end = head * head_dim, (head + 1) * head_dim
            cut = any(first < own.start < end for own in columns)
            edge = {"edgecolor": WRONG, "linewidth": 2.5, "zorder": 4.5} if cut else {"edgecolor": "black", "zorder": 4}
            axis.add_patch(Rectangle((0.9 + each * first, bottom), 0.4, 0.4, fill=False, **edge))
            axis.text(0.9 + each * (first + end) / 2, bottom + 0.2, str(head), ha="center", va="center", fontsize=10)
    return figure


def what_is_summed(module: nn.Module, *inputs: torch.Tensor, layer: str, tokens: int = 12, columns: int = 18) -> Figure:
    """Draw the terms that the ranks compute in a row-wise layer, and their sum, for the first tokens and columns.

    The colours of the numbers end at a value that a tenth of the sum's numbers exceed.
    """
    step = next(event for event in trace(module, *inputs) if isinstance(event, Step) and event.name == layer)
    panels = [(f"term of rank {rank}", rank_colour(rank), term) for rank, term in enumerate(step.computed)]
    panels.append(("the sum, on every rank", MIXED, step.handed_on[0]))
    most = step.handed_on[0][:tokens, :columns].abs().quantile(0.9).item()
    figure, axes = plt.subplots(1, len(panels), figsize=(12.0, 12.0 / len(panels) * tokens / columns + 0.3))
    for i, (axis, (title, colour, term)) in enumerate(zip(axes, panels, strict=True)):
        axis.imshow(term[:tokens, :columns].numpy(), cmap="RdBu", vmin=-most, vmax=most)
        axis.set_title(title, fontsize=11)
        axis.spines[:].set(color=colour, linewidth=5)
        sign = "" if i == 0 else "=" if i == len(panels) - 1 else "+"
        axis.text(-0.1, 0.5, sign, transform=axis.transAxes, ha="center", va="center", fontsize=15)
    return finish(figure)


def place_of(token: int, grid: Grid) -> Grid:
    """Return the frame, row and column of a token."""
    _, height, width = grid
    return token // (height * width), token // width % height, token % width


def mark(axis: Axes, left: float, top: float, side: float) -> None:
    axis.add_patch(Rectangle((left, top), side, side, fill=False, edgecolor=TOKEN, linewidth=1.8))


def finish(figure: Figure) -> Figure:
    for axis in figure.axes:
        axis.set(xticks=[], yticks=[])
    figure.tight_layout(pad=0.5)
    plt.close(figure)
    return figure
