"""Figures show the tokens that ranks hold, what PyTorch takes them for, and which columns the ranks multiply."""

import pytest
import torch
from figure_checks import assert_text_is_readable
from matplotlib.colors import to_hex
from torch import nn
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, SequenceParallel, parallelize_module

from kandinsky_mini import lab
from kandinsky_mini.lab.double_stream import GatedFeedForward
from kandinsky_mini.lab.drawings.canvas import MIXED, RANK_COLOURS
from kandinsky_mini.lab.drawings.entries import claimed, product
from kandinsky_mini.lab.drawings.fused import WRONG
from kandinsky_mini.models.nn import FeedForward

RANKS = 4
TOKENS = torch.arange(8.0)[:, None].expand(8, 3)


def inside_the_norm(mesh, own: bool):
    """Draw what a norm under SequenceParallel is given, if ranks have their own tokens or all of them."""
    norm = parallelize_module(nn.LayerNorm(3), mesh, SequenceParallel(sequence_dim=0))
    figures = []
    norm.register_forward_pre_hook(lambda module, args: figures.append(claimed(args[0])))
    norm(lab.own_tensor(lambda rank: TOKENS.chunk(RANKS)[rank].clone() if own else TOKENS.clone()))
    return figures[0]


def cells(figure) -> list[tuple[str, str]]:
    """Return the token and the colour of each cell, row by row."""
    axis = figure.axes[0]
    numbers = [text for text in axis.texts if text.get_text().isdigit()]
    placed = {(round(x, 3), round(y, 3)): text.get_text() for text in numbers for x, y in [text.get_position()]}
    found = []
    for patch in axis.patches:
        x, y = patch.get_x() + patch.get_width() / 2, patch.get_y() + patch.get_height() / 2
        found.append((-y, x, placed[round(x, 3), round(y, 3)], to_hex(patch.get_facecolor())))
    return [(token, colour) for _, _, token, colour in sorted(found)]


def labels(figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts if not text.get_text().isdigit()]


def test_own_tokens_are_taken_for_what_they_are():
    figure = lab.ranks(RANKS).run(inside_the_norm, True)[0]
    expected = [(str(token), RANK_COLOURS[token // 2]) for token in range(8)]
    assert cells(figure) == expected + expected
    assert {"each rank holds\n(2, 3)", "PyTorch takes it for\n(8, 3), Shard(0)"} <= set(labels(figure))
    assert not any("Grey" in text for text in labels(figure))


def test_whole_tensors_are_taken_for_parts_of_a_longer_one():
    figure = lab.ranks(RANKS).run(inside_the_norm, False)[0]
    tokens = [str(token) for _ in range(RANKS) for token in range(8)]
    relabelled = [(token, RANK_COLOURS[i // 8]) for i, token in enumerate(tokens)]
    assert cells(figure) == [(token, MIXED) for token in tokens] + relabelled
    assert {"each rank holds\n(8, 3)", "PyTorch takes it for\n(32, 3), Shard(0)"} <= set(labels(figure))
    assert any("Grey: all ranks hold the same." in text for text in labels(figure))


def test_a_rank_that_holds_other_tokens_is_seen():
    def spoilt(mesh):
        mine = lab.own_tensor(lambda rank: TOKENS + 1.0 * (rank == 2))
        return claimed(DTensor.from_local(mine, mesh, [Shard(0)]))

    first, last = torch.tensor([int(token) for token, _ in cells(lab.ranks(RANKS).run(spoilt)[0])]).view(2, RANKS, 8)
    expected = torch.stack([torch.arange(8) + (rank == 2) for rank in range(RANKS)])
    assert torch.equal(first, expected) and torch.equal(last, expected)


@pytest.mark.parametrize(("placement", "shape"), [(Replicate(), (8, 3)), (Shard(1), (8, 3)), (Shard(0), (8, 3, 1))])
def test_what_cannot_be_drawn_is_refused(placement, shape):
    def draw(mesh):
        return claimed(DTensor.from_local(torch.ones(shape), mesh, [placement]))

    with pytest.raises(ValueError, match="can draw a matrix that is Shard"):
        lab.ranks(RANKS).run(draw)


@pytest.mark.parametrize("own", [True, False])
def test_text_is_large_enough_and_inside_the_figure(own):
    assert_text_is_readable(lab.ranks(RANKS).run(inside_the_norm, own)[0])


PAIR = {"in_layer": ColwiseParallel(), "out_layer": RowwiseParallel()}
GATED = PAIR | {"gate_layer": ColwiseParallel()}


def fused() -> FeedForward:
    feed_forward = FeedForward(4, 16)
    feed_forward.in_layer, feed_forward.activation = nn.Linear(4, 32), nn.GLU()
    return feed_forward


def reordered(feed_forward, mesh, parts=None):
    for rows in feed_forward.in_layer.parameters():
        rows.data = rows.data.unflatten(0, (2, parts or mesh.size(), -1)).transpose(0, 1).flatten(0, 2)
    return parallelize_module(feed_forward, mesh, PAIR)


def named(figure) -> list[tuple[str, str, bool]]:
    """Return the name of each cell, its colour, and whether it has a red edge, in the order in which they are drawn."""
    axis = figure.axes[0]
    shown = [text.get_text() for text in axis.texts]
    names = [text for text in shown if len(text) in (1, 2) and text != "×"]
    looks = [(to_hex(patch.get_facecolor()), to_hex(patch.get_edgecolor()) == WRONG) for patch in axis.patches]
    return [(name, *look) for name, look in zip(names, looks, strict=True)]


def right_lanes(ranks: int) -> list[tuple[str, str, bool]]:
    """Return the cells of ranks that all multiply what belongs together."""
    expected = []
    for rank in range(ranks):
        names = [f"{letter}{2 * rank + i}" for letter in ("a", "b", "") for i in (0, 1)]
        expected += [(name, RANK_COLOURS[rank], False) for name in names]
    return expected


@pytest.mark.parametrize("ranks", [2, 4])
def test_two_layers_are_cut_at_the_same_places(ranks):
    cells = named(product(GatedFeedForward(4, 16), GATED, ["gate_layer", "in_layer"], ranks))
    above = [(f"{letter}{i}", RANK_COLOURS[i // 2], False) for letter in "ab" for i in range(2 * ranks)]
    assert cells == above + right_lanes(ranks)


def test_a_contiguous_cut_of_a_fused_layer_multiplies_what_does_not_belong_together():
    cells = named(product(fused(), PAIR, ["in_layer"], ranks=2))
    whole = ["a0", "a1", "a2", "a3", "b0", "b1", "b2", "b3"]
    assert [name for name, *_ in cells[:8]] == whole
    assert [name for name, *_ in cells[8:]] == [*whole[:4], "0", "1", *whole[4:], "2", "3"]
    # Rank 0 takes a2 and a3 for its b, and rank 1 takes b0 and b1 for its a.
    wrong = [name for name, _, red in cells if red]
    assert wrong == ["a2", "a3", "b0", "b1"]


@pytest.mark.parametrize("ranks", [2, 4])
def test_a_reordered_fused_layer_multiplies_what_belongs_together(ranks):
    cells = named(product(fused(), reordered, ["in_layer"], ranks))
    lanes = right_lanes(ranks)
    assert cells == [cell for cell in lanes if cell[0][0] in "ab"] + lanes


def test_rows_of_the_next_layer_that_do_not_fit_are_seen():
    def turned(feed_forward, mesh):
        feed_forward.out_layer.weight.data = feed_forward.out_layer.weight.data.flip(1)
        return reordered(feed_forward, mesh)

    lanes = named(product(fused(), turned, ["in_layer"], ranks=2))[8:]
    assert [(name, red) for name, _, red in lanes[:6]] == [
        *((name, True) for name in ("a0", "a1", "b0", "b1")),
        *(("?", False),) * 2,  # these rows are in the opposite order
    ]


def test_columns_that_were_apart_have_no_name():
    def finer(feed_forward, mesh):
        return reordered(feed_forward, mesh, parts=16)  # a column of a, a column of b, and so on

    assert {name for name, *_ in named(product(fused(), finer, ["in_layer"], ranks=2))[:8]} == {"?"}


@pytest.mark.parametrize("how", [{}, {"in_layer": ColwiseParallel()}])
def test_what_ranks_do_not_share_equally_is_refused(how):
    with pytest.raises(ValueError, match="2 ranks do not share the columns of in_layer and the rows equally"):
        product(fused(), how, ["in_layer"], ranks=2)


@pytest.mark.parametrize("ranks", [2, 4])
def test_text_of_a_product_is_large_enough_and_inside_the_figure(ranks):
    assert_text_is_readable(product(GatedFeedForward(4, 16), GATED, ["gate_layer", "in_layer"], ranks))
    assert_text_is_readable(product(fused(), reordered, ["in_layer"], ranks))
