"""Drawings of live models: how a layer is split, from the shards that PyTorch makes of it, and the CrossDiT."""

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from torch import nn
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, parallelize_module

from ..models.dit import DiffusionTransformer3D
from .pictures import MIXED, RANK_COLOURS, rule
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


# Where the CrossDiT's modules stand in its drawing: name, column, row.
PLACES = (
    ("time_embeddings", 0, 2),
    ("pooled_text_embeddings", 0, 1),
    ("text_embeddings", 1, 1),
    ("text_transformer_blocks", 2, 1),
    ("visual_embeddings", 1, 0),
    ("visual_transformer_blocks", 2, 0),
    ("out_layer", 3, 0),
)
ARROWS = (  # from, to; the time embedding goes to all blocks and the output layer
    ("text_embeddings", "text_transformer_blocks"),
    ("text_transformer_blocks", "visual_transformer_blocks"),
    ("visual_embeddings", "visual_transformer_blocks"),
    ("visual_transformer_blocks", "out_layer"),
)


def output_shapes(dit: DiffusionTransformer3D, *inputs) -> dict[str, tuple[int, ...]]:
    """The shape that each part of the model gives in a forward; of a list of blocks, the last one's."""
    shapes, hooks = {}, []
    for name, _, _ in PLACES:
        module = dit.get_submodule(name)
        module = module[-1] if isinstance(module, nn.ModuleList) else module
        note = lambda _, __, output, name=name: shapes.__setitem__(name, tuple(output.shape))  # noqa: E731
        hooks.append(module.register_forward_hook(note))
    with torch.no_grad():
        dit(*inputs)
    for hook in hooks:
        hook.remove()
    return shapes


def crossdit(dit: DiffusionTransformer3D, *inputs) -> Figure:
    """The parts of the model, with their number of parameters and the shape that each gives for these inputs."""
    shapes = output_shapes(dit, *inputs)
    figure, axis = plt.subplots(figsize=(12, 4.2))
    centres = {}
    for name, column, row in PLACES:
        x, y = 3.3 * column, 1.6 * row
        centres[name] = (x, y)
        module = dit.get_submodule(name)
        millions = sum(parameter.numel() for parameter in module.parameters()) / 1e6
        times = f" × {len(module)}" if isinstance(module, nn.ModuleList) else ""
        colour = RANK_COLOURS[1] if times else RANK_COLOURS[0]
        axis.add_patch(plt.Rectangle((x - 1.35, y - 0.5), 2.7, 1, facecolor=colour, edgecolor="black", linewidth=0.8))
        axis.text(x, y + 0.22, f"{name}{times}", ha="center", va="center", fontsize=9.5)
        axis.text(x, y - 0.22, f"{millions:.2f} M, gives {shapes[name]}", ha="center", va="center", fontsize=9.5)
    line = {"arrowstyle": "->", "linewidth": 1.2}
    for start, end in ARROWS:
        (x0, y0), (x1, y1) = centres[start], centres[end]
        here, there = ((x0 + 1.35, y0), (x1 - 1.35, y1)) if y0 == y1 else ((x0, y0 - 0.5), (x1, y1 + 0.5))
        axis.annotate("", there, here, arrowprops=line)
    draw_time_embedding(axis, centres, line)
    axis.set(xlim=(-1.5, 11.4), ylim=(-0.7, 3.9))
    axis.axis("off")
    figure.tight_layout(pad=0.2)
    plt.close(figure)
    return figure


def draw_time_embedding(axis: Axes, centres: dict[str, tuple[float, float]], line: dict) -> None:
    """Time and pooled text are added, and go to all blocks and the output layer."""
    (x, top), (_, middle) = centres["time_embeddings"], centres["pooled_text_embeddings"]
    (blocks, low), (last, _) = centres["visual_transformer_blocks"], centres["out_layer"]
    plus, branch = x + 1.65, (blocks + last) / 2
    axis.text(plus, top, "+", ha="center", va="center", fontsize=14, bbox={"boxstyle": "circle,pad=0.1", "fc": "white"})
    axis.plot([x + 1.35, plus - 0.15], [top, top], color="black", linewidth=1.2)
    axis.plot([x + 1.35, plus, plus], [middle, middle, top - 0.17], color="black", linewidth=1.2)
    axis.plot([plus + 0.15, last], [top, top], color="black", linewidth=1.2)
    axis.plot([branch, branch], [top, low + 0.3], color="black", linewidth=1.2)
    axis.annotate("", (last, low + 0.5), (last, top), arrowprops=line)
    axis.annotate("", (blocks, middle + 0.5), (blocks, top), arrowprops=line)
    axis.annotate("", (blocks + 1.35, low + 0.3), (branch, low + 0.3), arrowprops=line)
    axis.text(plus + 0.3, top + 0.12, "time and pooled text, to all blocks and out_layer", fontsize=9.5)
