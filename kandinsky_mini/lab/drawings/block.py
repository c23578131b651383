"""Draw the whole CrossDiT, or one of its blocks, with the shapes that the live model gives."""

from collections.abc import Callable

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import nn

from ...models.dit import DiffusionTransformer3D, TransformerDecoderBlock
from .canvas import MIXED, arrow, box, canvas

# WEIGHTS marks modules that have weights. NUMBERS marks the shifts, scales and gates. No rank has these colours.
WEIGHTS, NUMBERS = "#d9cff2", "#e3efbf"
BLOCKS = "#bfa8e6"  # marks the lists of blocks, which have most of the weights


def forward_shapes(model: nn.Module, *inputs) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    """Run the model once, and return the shapes of each module's first input and of its output, by the module's name.

    The name of the model itself is empty.
    """
    shapes, names = {}, {module: name for name, module in model.named_modules()}

    def note(module: nn.Module, args: tuple, output: torch.Tensor) -> None:
        given = tuple(args[0].shape) if isinstance(args[0], torch.Tensor) else ()
        shapes[names[module]] = given, tuple(output.shape)

    hooks = [module.register_forward_hook(note) for module in names]
    with torch.no_grad():
        model(*inputs)
    for hook in hooks:
        hook.remove()
    return shapes


# The name of each part of the CrossDiT, and the column and row in which the drawing shows it.
PLACES = (
    ("time_embeddings", 0, 2),
    ("pooled_text_embeddings", 0, 1),
    ("text_embeddings", 1, 1),
    ("text_transformer_blocks", 2, 1),
    ("visual_embeddings", 1, 0),
    ("visual_transformer_blocks", 2, 0),
    ("out_layer", 3, 0),
)
# Each arrow leads from the first part to the second. The time embedding goes to all blocks and to the output layer, so
# draw_time_embedding draws its arrows.
ARROWS = (
    ("text_embeddings", "text_transformer_blocks"),
    ("text_transformer_blocks", "visual_transformer_blocks"),
    ("visual_embeddings", "visual_transformer_blocks"),
    ("visual_transformer_blocks", "out_layer"),
)


def crossdit(dit: DiffusionTransformer3D, *inputs) -> Figure:
    """Draw the parts of the model, each with its number of parameters and with the shapes of its input and its output.

    The shapes are those of a forward with these inputs.
    """
    shapes = forward_shapes(dit, *inputs)
    figure, axis = canvas(12.9, 4.5)
    centres = {name: (1.5 + 3.3 * column, 0.65 + 1.6 * row) for name, column, row in PLACES}
    for name, (x, y) in centres.items():
        module = dit.get_submodule(name)
        millions = sum(parameter.numel() for parameter in module.parameters()) / 1e6
        several = isinstance(module, nn.ModuleList)
        title = f"{name} × {len(module)}" if several else name
        given, gives = shapes[f"{name}.{len(module) - 1}" if several else name]
        text = f"{title}\n{millions:.2f} M parameters\n{given} → {gives}"
        box(axis, x, y, 2.7, 1, text, BLOCKS if several else WEIGHTS)
    for start, end in ARROWS:
        (x0, y0), (x1, y1) = centres[start], centres[end]
        arrow(axis, *(((x0 + 1.35, y0), (x1 - 1.35, y1)) if y0 == y1 else ((x0, y0 - 0.5), (x1, y1 + 0.5))))
    draw_time_embedding(axis, centres)
    return figure


def draw_time_embedding(axis: Axes, centres: dict[str, tuple[float, float]]) -> None:
    """Draw how the embeddings of time and pooled text are added, and go to all blocks and to the output layer."""
    (x, top), (_, middle) = centres["time_embeddings"], centres["pooled_text_embeddings"]
    (blocks, low), (last, _) = centres["visual_transformer_blocks"], centres["out_layer"]
    plus, branch = x + 1.65, (blocks + last) / 2
    arrow(axis, (x + 1.35, top), (plus, top), (last, top), (last, low + 0.5))
    arrow(axis, (x + 1.35, middle), (plus, middle), (plus, top - 0.12))
    arrow(axis, (blocks, top), (blocks, middle + 0.5))
    arrow(axis, (branch, top), (branch, low + 0.3), (blocks + 1.35, low + 0.3))
    draw_sign(axis, plus, top, "+")
    axis.text(plus + 0.3, top + 0.12, "time and pooled text, to all blocks and out_layer", fontsize=10)


def draw_sign(axis: Axes, x: float, y: float, sign: str) -> None:
    axis.text(x, y, sign, ha="center", va="center", fontsize=13, bbox={"boxstyle": "circle,pad=0.1", "fc": "white"})


# Positions in the block's drawing, in inches. Each of the three parts has a row, and each kind of step has a column.
ROWS = {"self_attention": 4.75, "cross_attention": 2.6, "feed_forward": 0.75}
NORM, SCALE, PROJECT, HEAD_NORM, ROPE, ATTENTION, OUT, GATE, SUM = 1.4, 3.05, 4.6, 6.1, 7.4, 8.7, 10.25, 11.45, 12.15
# START and END are the left and the right end of a row. LEVEL is the distance from query to key, and from key to value.
START, END, LEVEL = 0.3, 12.45, 0.55
# Called with a module's name, x and y, it draws a box there with the shape of the module's output, and returns the box.
Place = Callable[..., Rectangle]


def block(
    block: TransformerDecoderBlock,
    x: torch.Tensor,
    text_embed: torch.Tensor,
    time_embed: torch.Tensor,
    rope: torch.Tensor,
) -> Figure:
    """Draw a visual block: self-attention, cross-attention and feed-forward, with the shape of each module's output.

    The inputs are x (S, D), text_embed (L, D), time_embed (1, time_dim) and rope (S, 1, 2, head_dim).
    """
    shapes = {name: gives for name, (_, gives) in forward_shapes(block, x, text_embed, time_embed, rope).items()}
    figure, axis = canvas(12.75, 7.1)

    def place(name: str, x: float, y: float, width: float = 1.2, height: float = 0.44) -> Rectangle:
        colour = WEIGHTS if any(True for _ in block.get_submodule(name).parameters()) else MIXED
        patch = box(axis, x, y, width, height, f"{name.rpartition('.')[2]}\n{shapes[name]}", colour)
        patch.set_gid(name)
        return patch

    draw_modulation(axis, place, time_embed.shape, x.shape[-1], shapes["visual_modulation"][-1])
    for part, out in zip(ROWS, ("out_layer_self", "out_layer_cross", "feed_forward.out_layer"), strict=True):
        draw_residual(axis, place, part, out)
    draw_attention(axis, place, "self_attention")
    draw_rope(axis)
    draw_attention(axis, place, "cross_attention")
    draw_text(axis, tuple(text_embed.shape))
    draw_feed_forward(axis, place)
    axis.text(START - 0.1, ROWS["self_attention"] + 1.25, f"x {tuple(x.shape)}", va="center", fontsize=12)
    colours = "violet: has weights; grey: has none; green: what visual_modulation gives"
    axis.text(START - 0.1, 0.25, colours, va="center", fontsize=11)
    axis.text(END + 0.1, 0.25, f"x {shapes['']}", ha="right", va="center", fontsize=12)
    return figure


def draw_modulation(axis: Axes, place: Place, time_embed: torch.Size, width: int, numbers: int) -> None:
    """Draw how the time embedding becomes a shift, a scale and a gate for each part of the block.

    Each of them is as wide as a token.
    """
    y = 6.6
    box(axis, 1.0, y, 1.2, 0.44, f"time + text\n{tuple(time_embed)}", "white")
    place("visual_modulation.activation", 2.5, y)
    place("visual_modulation.out_layer", 4.0, y)
    axis.text(3.25, y + 0.36, "visual_modulation", ha="center", va="center", fontsize=12, fontweight="bold")
    for x in (1.0, 2.5):
        arrow(axis, (x + 0.6, y), (x + 0.9, y))
    arrow(axis, (4.6, y), (5.1, y))
    for i in range(numbers // width):
        x = 5.5 + 0.8 * i + 0.1 * (i // 3)
        box(axis, x, y, 0.8, 0.44, f"{('shift', 'scale', 'gate')[i % 3]}\n(1, {width})", NUMBERS)
        if i % 3 == 1:
            axis.text(x, y + 0.36, f"for {list(ROWS)[i // 3]}", ha="center", va="center", fontsize=11)


def draw_residual(axis: Axes, place: Place, part: str, out: str) -> None:
    """Draw the two ends of a row, which are alike in all three parts.

    A row begins with the norm, which is then scaled and shifted. It ends with the output layer, the gate, and the sum
    with x.
    """
    y = ROWS[part]
    over = y + (0.7 if part == "feed_forward" else 0.95)
    axis.text(START + 0.15, over - 0.2, part, va="center", fontsize=12, fontweight="bold")
    place(f"{part}_norm", NORM, y, width=1.75)
    box(axis, SCALE, y, 1.2, 0.44, "× (1 + scale)\n+ shift", NUMBERS)
    place(out, OUT, y, width=1.3)
    box(axis, GATE, y, 0.7, 0.44, "× gate", NUMBERS)
    above = [row for row in ROWS.values() if row > y]
    into = [(START, over + 0.15)]
    if above:  # x comes from the end of the row above, as a text goes on from line to line
        turn = above[-1] - 0.95
        into = [(SUM + 0.13, above[-1]), (END, above[-1]), (END, turn), (START, turn)]
    arrow(axis, *into, (START, y), (NORM - 0.875, y))
    arrow(axis, (NORM + 0.875, y), (SCALE - 0.6, y))
    arrow(axis, (OUT + 0.65, y), (GATE - 0.35, y))
    arrow(axis, (GATE + 0.35, y), (SUM - 0.13, y))
    arrow(axis, (START, over), (SUM, over), (SUM, y + 0.13))
    draw_sign(axis, SUM, y, "+")
    if part == "feed_forward":
        arrow(axis, (SUM + 0.13, y), (END, y), (END, y - 0.35))


def draw_attention(axis: Axes, place: Place, name: str) -> None:
    y = ROWS[name]
    for part, level in (("query", LEVEL), ("key", 0.0), ("value", -LEVEL)):
        place(f"{name}.to_{part}", PROJECT, y + level)
        if part == "value":
            arrow(axis, (PROJECT + 0.6, y + level), (ATTENTION - 0.6, y + level))
        else:
            place(f"{name}.{part}_norm", HEAD_NORM, y + level)
            arrow(axis, (PROJECT + 0.6, y + level), (HEAD_NORM - 0.6, y + level))
            arrow(axis, (HEAD_NORM + 0.6, y + level), (ATTENTION - 0.6, y + level))
        if part == "query" or name == "self_attention":
            arrow(axis, (SCALE + 0.6, y), (PROJECT - 0.6, y + level))
    place(f"{name}.attention", ATTENTION, y, height=2 * LEVEL + 0.44)
    arrow(axis, (ATTENTION + 0.6, y), (OUT - 0.65, y))


def draw_rope(axis: Axes) -> None:
    """Draw RoPE on top of the arrows that lead from the norms of query and key to self-attention."""
    y = ROWS["self_attention"] + LEVEL / 2
    for level in (-LEVEL / 2, LEVEL / 2):
        arrow(axis, (HEAD_NORM + 0.6, y + level), (ROPE - 0.45, y + level))
    box(axis, ROPE, y, 0.9, LEVEL + 0.44, "RoPE", MIXED)


def draw_text(axis: Axes, shape: tuple[int, ...]) -> None:
    """Draw the text, which gives cross-attention its keys and values."""
    y = ROWS["cross_attention"]
    box(axis, SCALE, y - LEVEL, 1.2, 0.44, f"text_embed\n{shape}", "white")
    for level in (0.0, -LEVEL):
        arrow(axis, (SCALE + 0.6, y - LEVEL), (PROJECT - 0.6, y + level))


def draw_feed_forward(axis: Axes, place: Place) -> None:
    y = ROWS["feed_forward"]
    place("feed_forward.in_layer", PROJECT, y)
    place("feed_forward.activation", HEAD_NORM, y)
    arrow(axis, (SCALE + 0.6, y), (PROJECT - 0.6, y))
    arrow(axis, (PROJECT + 0.6, y), (HEAD_NORM - 0.6, y))
    arrow(axis, (HEAD_NORM + 0.6, y), (OUT - 0.65, y))
