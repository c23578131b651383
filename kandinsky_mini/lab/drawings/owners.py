"""Draw who owns what in a sharded model: which rank holds the weights, and which rank computed each attention head.

Each rank has a colour. Grey marks what all ranks have.
"""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, to_rgb
from matplotlib.figure import Figure
from torch import nn
from torch.distributed.tensor import Shard

from ...models.attention import Attention
from ...parallel.ledger import size
from ...parallel.tensors import placement_of, slices_of_ranks
from .canvas import MIXED, box, canvas, rank_colour

LENGTH = 6.0  # of the longest bar, in inches
NARROW = 0.1  # inches


def weights(model: nn.Module) -> Figure:
    """Draw a bar for each part of a sharded model. Its length is proportional to the bytes of the unsharded weights.

    Each rank's own share of a bar has the rank's colour. The grey share stands on every rank. Beside the bar stands how
    many of its bytes one rank holds. The model lives on ranks, so call this there.
    """
    parts = {name: part for name, part in model.named_children() if any(True for _ in part.parameters())}
    shares = {name: shares_of(part) for name, part in parts.items()}
    ranks = max(len(own) for own, _ in shares.values())
    most = max(sum(own) + whole for own, whole in shares.values())
    figure, axis = canvas(11.2, 0.42 * len(parts) + 0.75)
    top = 0.42 * len(parts) + 0.5
    for rank in range(ranks):
        box(axis, 2.95 + 0.85 * rank, top, 0.75, 0.25, f"rank {rank}", rank_colour(rank))
    box(axis, 3.15 + 0.85 * ranks, top, 0.95, 0.25, "every rank", MIXED)
    for row, (name, (own, whole)) in enumerate(shares.items()):
        y, x = top - 0.42 * (row + 1), 2.55
        axis.text(x - 0.12, y, name, ha="right", va="center", fontsize=11)
        for rank, held in enumerate(own):
            x = segment(axis, x, y, LENGTH * held / most, rank_colour(rank))
        x = segment(axis, x, y, LENGTH * whole / most, MIXED)
        text = f"{size(max(own, default=0) + whole)} of {size(sum(own) + whole)}"
        axis.text(x + 0.1, y, text, va="center", fontsize=10)
    return figure


def segment(axis: Axes, x: float, y: float, length: float, colour: str) -> float:
    """Draw a piece of a bar that begins at x. Return where it ends."""
    if length:
        piece = box(axis, x + length / 2, y, length, 0.28, "", colour)
        if length < NARROW:
            piece.set(linewidth=0)  # its outline would hide it
    return x + length


def shares_of(part: nn.Module) -> tuple[list[int], int]:
    """Return the bytes that each rank has for itself, and the bytes that every rank has."""
    own: list[int] = []
    whole = 0
    for parameter in part.parameters():
        if not isinstance(placement_of(parameter), Shard):
            whole += parameter.numel() * parameter.element_size()
            continue
        held = [torch.Size([s.stop - s.start for s in here]).numel() for here in slices_of_ranks(parameter)]
        own = own or [0] * len(held)
        own = [before + numbers * parameter.element_size() for before, numbers in zip(own, held, strict=True)]
    return own, whole


def attention_weights(model: nn.Module, name: str, *inputs) -> torch.Tensor:
    """Run the model once, and return how much each token looks at each token in the attention core of that name.

    The weights are (heads, queries, keys). On ranks these are the heads that the rank itself computes.

    Raises:
        TypeError: the module of that name is no attention core.
    """
    core = model.get_submodule(name)
    if not isinstance(core, Attention):
        raise TypeError(f"{name} is no attention core, but {type(core).__name__}")
    seen: list[torch.Tensor] = []

    def note(_, args: Sequence[torch.Tensor]) -> None:
        q, k, _ = args
        scores = torch.einsum("qhd,khd->hqk", q, k) / q.shape[-1] ** 0.5
        seen.append(scores.softmax(dim=-1))

    hook = core.register_forward_pre_hook(note)
    try:
        model(*inputs)
    finally:
        hook.remove()
    return seen[0]


def heads(maps: dict[str, Sequence[torch.Tensor]], picture: torch.Tensor) -> Figure:
    """Lay each head's map over a picture, in the colour of the rank that computed it.

    Args:
        maps: for each row of the figure, its title and what each rank has: the maps of its own heads (heads, rows,
            columns). The larger a number is, the stronger is the colour.
        picture: uint8 (height, width, 3).
    """
    count = sum(len(of_rank) for of_rank in next(iter(maps.values())))
    height, width = picture.shape[:2]
    pale = 0.35 * picture.float().mean(dim=-1) / 255 + 0.65
    each = 12.0 / count
    figure, axes = plt.subplots(
        len(maps), count, figsize=(12.4, (each * height / width + 0.05) * len(maps) + 0.6), squeeze=False
    )
    for i, (row, (title, of_ranks)) in enumerate(zip(axes, maps.items(), strict=True)):
        row[0].set_ylabel(title, fontsize=12)
        owners = [(rank, values) for rank, of_rank in enumerate(of_ranks) for values in of_rank]
        for head, (axis, (rank, values)) in enumerate(zip(row, owners, strict=True)):
            axis.imshow(pale.numpy(), cmap="gray", vmin=0.0, vmax=1.0)
            tint = ListedColormap([(*deep(rank), alpha / 255) for alpha in range(256)])
            extent = (-0.5, width - 0.5, height - 0.5, -0.5)
            axis.imshow(values.numpy(), cmap=tint, vmin=0.0, vmax=values.max().item(), extent=extent)
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set(color=rank_colour(rank), linewidth=4)
            if i == 0:
                axis.set_title(f"rank {rank}\nhead {head}", fontsize=11)
    figure.tight_layout(pad=0.4)
    plt.close(figure)
    return figure


def deep(rank: int) -> tuple[float, float, float]:
    """Return the rank's colour, darker, so that it shows on a pale picture."""
    red, green, blue = to_rgb(rank_colour(rank))
    return 0.75 * red, 0.75 * green, 0.75 * blue
