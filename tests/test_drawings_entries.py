"""The drawing of an entry shows the tokens that ranks really hold, and the tensor that PyTorch makes of them."""

import pytest
import torch
from figure_checks import assert_text_is_readable
from matplotlib.colors import to_hex
from torch import nn
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import SequenceParallel, parallelize_module

from kandinsky_mini import lab
from kandinsky_mini.lab.drawings.canvas import MIXED, RANK_COLOURS
from kandinsky_mini.lab.drawings.entries import claimed

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
