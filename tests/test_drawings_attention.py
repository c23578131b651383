"""Figures of attention show what is there: the heads, the columns and the terms that the ranks really have."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from figure_checks import assert_text_is_readable
from matplotlib.colors import to_hex
from torch import nn
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

from kandinsky_mini import lab
from kandinsky_mini.config import load_config
from kandinsky_mini.lab.drawings.attention import (
    cut_heads,
    one_map,
    what_is_summed,
    whose_columns,
    whose_heads,
)
from kandinsky_mini.lab.drawings.canvas import MIXED, RANK_COLOURS
from kandinsky_mini.lab.drawings.fused import WRONG, fused_columns
from kandinsky_mini.models.dit import DiffusionTransformer3D
from kandinsky_mini.models.parallelize import block_plan

GRID, TOKEN, RANKS = (2, 3, 4), 19, 4  # token 19 is at time 1, in row 1 and column 3


class SelfAttention(nn.Module):
    """The self-attention of a block and its output projection, without the rest."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        small = dataclasses.replace(load_config(None).dit, num_text_blocks=0, num_visual_blocks=1)
        dit = DiffusionTransformer3D(small)
        block = dit.visual_transformer_blocks[0]
        self.self_attention, self.out_layer_self = block.self_attention, block.out_layer_self
        self.rope = dit.visual_rope_embeddings([torch.arange(size) for size in GRID], (1.0, 1.0, 1.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out_layer_self(self.self_attention(x, self.rope))


@pytest.fixture(scope="module")
def attention() -> SelfAttention:
    return SelfAttention().eval()


@pytest.fixture(scope="module")
def x() -> torch.Tensor:
    return torch.randn(24, 256, generator=torch.Generator().manual_seed(0))


def split(mesh, attention):
    attention = copy.deepcopy(attention)
    attention.self_attention.num_heads //= mesh.size()
    plan = {name: style for name, style in block_plan().items() if "self" in name}
    return parallelize_module(attention, mesh, plan)


def draw(attention, drawing, ranks=RANKS):
    """Make a figure on simulated ranks, where the sharded module lives."""
    return lab.ranks(ranks).run(lambda mesh: drawing(split(mesh, attention)))[0]


def draw_heads(attention, x, ranks=RANKS):
    return draw(
        attention, lambda a: whose_heads(a.self_attention, x, attention.rope, token=TOKEN, grid=GRID), ranks=ranks
    )


def draw_columns(attention, ranks=RANKS):
    def drawing(a):
        return whose_columns({"to_key": a.self_attention.to_key, "out_layer_self": a.out_layer_self}, head_dim=32)

    return draw(attention, drawing, ranks)


def draw_terms(attention, x, ranks=RANKS):
    return draw(attention, lambda a: what_is_summed(a, x, layer="out_layer_self", tokens=3, columns=5), ranks)


def shown(axis) -> torch.Tensor:
    return torch.tensor(np.asarray(axis.images[0].get_array()))


def frame(axis) -> str:
    return to_hex(axis.spines["left"].get_edgecolor())


def marked(axis) -> list[tuple[float, float]]:
    assert not any(patch.get_fill() for patch in axis.patches)  # what is marked is still seen
    return [patch.get_xy() for patch in axis.patches]


def weights_of(attention, x) -> torch.Tensor:
    """Return the attention weights of the unsharded module (heads, tokens, tokens)."""
    seen = []
    hook = attention.self_attention.attention.register_forward_pre_hook(lambda _, args: seen.extend(args))
    with torch.no_grad():
        attention(x)
    hook.remove()
    q, k = (y.transpose(0, 1) for y in seen[:2])
    return (q @ k.transpose(1, 2) / 32**0.5).softmax(dim=-1)


def test_a_map_shows_where_the_token_looks(attention, x):
    video = torch.randint(0, 255, (1, 3, 5, 24, 32), dtype=torch.uint8)
    weights = weights_of(attention, x)[2]
    figure = one_map(weights, video, TOKEN, GRID)
    first, second, below_first, below_second = figure.axes
    assert torch.equal(shown(first), video[0, :, 0].permute(1, 2, 0))
    assert torch.equal(shown(second), video[0, :, 4].permute(1, 2, 0))
    looks = weights[TOKEN].view(GRID)
    assert torch.equal(shown(below_first), looks[0]) and torch.equal(shown(below_second), looks[1])
    assert [axis.get_title() for axis in (below_first, below_second)] == [f"{each.sum():.0%}" for each in looks]
    assert marked(first) == marked(below_first) == []
    assert marked(second) == [(3 * 8 - 0.5, 1 * 8 - 0.5)] and marked(below_second) == [(2.5, 0.5)]


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_each_head_has_its_own_map_and_the_colour_of_its_rank(attention, x, ranks):
    figure = draw_heads(attention, x, ranks)
    maps = weights_of(attention, x)[:, TOKEN].unflatten(1, GRID).sum(1)
    owners = [head * ranks // 8 for head in range(8)]
    for head, (axis, owner) in enumerate(zip(figure.axes, owners, strict=True)):
        torch.testing.assert_close(shown(axis), maps[head])
        assert axis.get_title() == f"rank {owner}\nhead {head}"
        assert frame(axis) == RANK_COLOURS[owner]
        assert marked(axis) == [(2.5, 0.5)]


@pytest.mark.parametrize("ranks", [2, 4])
def test_columns_have_the_colour_of_the_rank_that_holds_them(attention, ranks):
    axis = draw_columns(attention, ranks).axes[0]
    legend, parts = axis.patches[:ranks], axis.patches[ranks:]
    assert [to_hex(patch.get_facecolor()) for patch in legend] == list(RANK_COLOURS[:ranks])
    assert [to_hex(part.get_facecolor()) for part in parts] == 2 * list(RANK_COLOURS[:ranks])
    columns, rows = parts[:ranks], parts[ranks:]
    assert all((part.get_width(), part.get_height()) == pytest.approx((2.5 / ranks, 2.5)) for part in columns)
    assert all((part.get_width(), part.get_height()) == pytest.approx((2.5, 2.5 / ranks)) for part in rows)
    assert sorted(columns, key=lambda part: part.get_x()) == list(columns)
    assert sorted(rows, key=lambda part: -part.get_y()) == list(rows)
    titles = {text.get_text() for text in axis.texts}
    assert {"to_key: W (256, 256), by columns", "out_layer_self: W (256, 256), by rows"} <= titles


def test_the_number_of_a_head_stands_in_the_part_of_its_rank(attention):
    axis = draw_columns(attention).axes[0]
    parts = axis.patches[RANKS:]
    numbers = [text for text in axis.texts if text.get_text().isdigit()]
    assert [text.get_text() for text in numbers] == 2 * [str(head) for head in range(8)]
    for i, text in enumerate(numbers):
        owner = parts[i // 2]  # two heads for each rank, in both layers
        assert owner.contains_point(axis.transData.transform(text.get_position()))


@pytest.mark.parametrize("ranks", [2, 4])
def test_the_terms_add_up_to_the_sum_that_is_shown(attention, x, ranks):
    *terms, whole = draw_terms(attention, x, ranks).axes
    with torch.no_grad():
        expected = attention(x)[:3, :5]
    torch.testing.assert_close(shown(whole), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(sum(shown(axis) for axis in terms), expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(shown(terms[0]), expected, atol=1e-2)
    assert [frame(axis) for axis in (*terms, whole)] == [*RANK_COLOURS[:ranks], MIXED]


class Fused(nn.Module):
    """All that the drawing needs of a fused attention of 4 heads of 2."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(8, 24)


def reordered(attention, mesh):
    for rows in attention.qkv.parameters():
        rows.data = rows.data.unflatten(0, (3, mesh.size(), -1)).transpose(0, 1).flatten(0, 2)
    return parallelize_module(attention, mesh, {"qkv": ColwiseParallel()})


def cells(figure) -> tuple[list[str], list[str], list[bool]]:
    """Return the names of the upper row, those of the ranks one after the other, and which of these are wrong."""
    axis = figure.axes[0]
    names = [text.get_text() for text in axis.texts if len(text.get_text()) == 2]
    wrong = [to_hex(patch.get_edgecolor()) == WRONG for patch in axis.patches]
    assert not any(wrong[:12])
    return names[:12], names[12:], wrong[12:]


STORED = [f"{letter}{head}" for letter in "qkv" for head in range(4)]


def test_a_contiguous_cut_of_a_fused_layer_is_drawn_wrong():
    figure = fused_columns(Fused(), {"qkv": ColwiseParallel()}, heads=4, ranks=2)
    upper, of_ranks, wrong = cells(figure)
    assert upper == of_ranks == STORED
    # Rank 0 has q0 to q3, k0 and k1, and takes q2 and q3 for keys. Only its queries are right, and rank 1's values.
    assert wrong == [False, False, True, True, True, True, True, True, True, True, False, False]


def test_a_reordered_fused_layer_is_drawn_right():
    upper, of_ranks, wrong = cells(fused_columns(Fused(), reordered, heads=4, ranks=2))
    assert upper == of_ranks == ["q0", "q1", "k0", "k1", "v0", "v1", "q2", "q3", "k2", "k3", "v2", "v3"]
    assert not any(wrong)


def test_cells_of_a_fused_layer_have_the_colour_of_the_rank_that_gets_them():
    patches = fused_columns(Fused(), reordered, heads=4, ranks=2).axes[0].patches
    colours = [to_hex(patch.get_facecolor()) for patch in patches]
    assert colours[:12] == colours[12:] == 6 * [RANK_COLOURS[0]] + 6 * [RANK_COLOURS[1]]


def test_a_value_of_another_head_than_the_query_is_wrong():
    """Whole queries, keys and values on each rank, but the values of the heads change places."""

    def confused(attention, mesh):
        weight = attention.qkv.weight  # of its 24 rows, the last 8 are v0 to v3
        weight.data = torch.cat([weight[:16], weight[18:20], weight[16:18], weight[22:], weight[20:22]]).detach()
        return reordered(attention, mesh)

    assert cells(fused_columns(Fused(), confused, heads=4, ranks=2))[2] == 2 * [False, False, False, False, True, True]


@pytest.mark.parametrize(("ranks", "cut"), [(7, []), (8, [3, 10, 17, 24]), (4, [])])
def test_a_head_with_columns_on_two_ranks_has_a_red_edge(ranks, cut):
    axis = cut_heads(nn.Linear(1, 28 * 4), head_dim=4, ranks=[ranks]).axes[0]
    parts, heads = axis.patches[:ranks], axis.patches[ranks:]
    assert [to_hex(part.get_facecolor()) for part in parts] == list(RANK_COLOURS[:ranks])
    assert all(part.get_width() == pytest.approx(0.4 * 28 / ranks) for part in parts)
    assert [head for head, cell in enumerate(heads) if to_hex(cell.get_edgecolor()) == WRONG] == cut
    assert [text.get_text() for text in axis.texts] == [f"{ranks} ranks", *map(str, range(28))]


def figures(attention, x):
    yield one_map(torch.rand(24, 24), torch.zeros(1, 3, 5, 24, 32, dtype=torch.uint8), TOKEN, GRID)
    yield draw_heads(attention, x)
    yield draw_columns(attention)
    yield draw_columns(attention, ranks=8)
    yield draw_terms(attention, x)
    yield fused_columns(Fused(), reordered, heads=4, ranks=4)
    yield fused_columns(Fused(), reordered, heads=4, ranks=2)
    yield cut_heads(nn.Linear(1, 28 * 4), head_dim=4, ranks=[7, 8])


def test_text_is_large_enough_for_a_slide_and_inside_the_figure(attention, x):
    for figure in figures(attention, x):
        assert_text_is_readable(figure)
