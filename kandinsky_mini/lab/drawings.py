"""Drawings of how a layer is split, from the shards that PyTorch makes of it."""

import matplotlib.pyplot as plt
import torch
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from torch import nn
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, parallelize_module

from .pictures import MIXED, RANK_COLOURS
from .simulation import SimulatedRanks

ALL = -1  # in place of a rank: all ranks have it


def weight_owners(style: ParallelStyle, ranks: int, inputs: int, outputs: int) -> torch.Tensor:
    """Which rank holds each number of nn.Linear's weight (outputs, inputs), once the style has sharded it."""
    layer = nn.Linear(inputs, outputs, bias=False)
    layer.weight.data = torch.arange(outputs * inputs, dtype=torch.float32).view(outputs, inputs)

    def held(mesh):
        return parallelize_module(layer, mesh, style).weight

    owners = torch.full((outputs * inputs,), ALL)
    for rank, part in enumerate(SimulatedRanks(ranks).run(held)):
        owners[part.flatten().long()] = rank
    return owners.view(outputs, inputs)


def linear_split(style: ParallelStyle, ranks: int, tokens: int = 4, inputs: int = 8, outputs: int = 12) -> Figure:
    """x W = y for a linear layer that the style splits, and W as nn.Linear stores it. Colours: ranks; grey: all."""
    stored = weight_owners(style, ranks, inputs, outputs)
    if isinstance(style, ColwiseParallel):
        x, y, what = torch.full((1, inputs), ALL), stored[:, :1].T, "y: columns"
    else:
        x, y, what = stored[:1], torch.full((1, outputs), ALL), "y: sum over ranks"
    panels = {
        f"x ({tokens}, {inputs})": x.expand(tokens, inputs),
        f"W ({inputs}, {outputs})": stored.T,
        f"{what} ({tokens}, {outputs})": y.expand(tokens, outputs),
        f"layer.weight ({outputs}, {inputs})": stored,
    }
    widths = [owners.shape[1] for owners in panels.values()]
    figure, axes = plt.subplots(1, 4, figsize=(0.29 * sum(widths) + 1.5, 0.29 * outputs + 0.6), width_ratios=widths)
    colours = ListedColormap([MIXED, *RANK_COLOURS[:ranks]])
    for axis, (title, owners) in zip(axes, panels.items(), strict=True):
        rows, columns = owners.shape
        axis.imshow(owners.numpy(), cmap=colours, vmin=ALL, vmax=ranks - 1)
        axis.set_xticks([i - 0.5 for i in range(columns + 1)], labels=[])
        axis.set_yticks([i - 0.5 for i in range(rows + 1)], labels=[])
        axis.grid(color="white", linewidth=1)
        axis.tick_params(length=0)
        axis.set_title(title, fontsize=11)
    figure.suptitle(f"{type(style).__name__} on {ranks} ranks", fontsize=13)
    figure.tight_layout(pad=0.6, w_pad=2)
    plt.close(figure)
    return figure
