"""The drawing of a row-wise product shows the real terms, and the timeline gives a length to bytes only."""

import copy

import pytest
import torch
from figure_checks import assert_text_is_readable
from matplotlib.colors import to_hex
from torch import nn
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from kandinsky_mini import lab
from kandinsky_mini.lab.drawings.canvas import MEETING, RANK_COLOURS
from kandinsky_mini.lab.drawings.terms import SUM, row_terms
from kandinsky_mini.lab.drawings.timeline import COMPUTING, timeline

torch.manual_seed(0)
X, W = torch.randn(4, 8), torch.randn(8, 12)
MLP = nn.Sequential(nn.Linear(8, 48), nn.GELU(), nn.Linear(48, 8))
PAIR = {"0": ColwiseParallel(), "2": RowwiseParallel()}


def texts(figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts if text.get_text()]


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_each_rank_s_term_is_drawn_and_then_their_sum(ranks):
    *of_ranks, y = row_terms(X, W, ranks).axes[0].collections
    drawn = [torch.from_numpy(mesh.get_array().data) for mesh in of_ranks]
    parts, rows = X.chunk(ranks, dim=1), W.chunk(ranks, dim=0)
    expected = [tensor for part, row in zip(parts, rows, strict=True) for tensor in (part, row, part @ row)]
    for numbers, right in zip(drawn, expected, strict=True):
        torch.testing.assert_close(numbers, right.abs())
    torch.testing.assert_close(torch.from_numpy(y.get_array().data), (X @ W).abs())
    assert [to_hex(mesh.get_cmap()(0.5)) for mesh in of_ranks] == [c for c in RANK_COLOURS[:ranks] for _ in range(3)]
    assert to_hex(y.get_cmap()(0.5)) == SUM  # all ranks have the sum


def test_terms_and_sum_have_one_scale():
    meshes = row_terms(X, W, 4).axes[0].collections
    scales = {mesh.get_clim() for mesh in [*meshes[2::3], meshes[-1]]}
    assert scales == {(0.0, (X @ W).abs().max().item())}


def test_the_collective_of_a_sum_is_the_ledger_s():
    assert "1 all_reduce of 192 B" in texts(row_terms(X, W, 4))


def test_rows_that_cannot_be_shared_are_refused():
    with pytest.raises(ValueError, match="8 rows cannot be shared equally by 3 ranks"):
        row_terms(X, W, 3)


def pair_on_a_line(ranks: int):
    def draw(mesh):
        return timeline(parallelize_module(copy.deepcopy(MLP), mesh, PAIR), X)

    return lab.ranks(ranks).run(draw)[0]


def test_only_bytes_have_a_length_in_the_timeline():
    figure = pair_on_a_line(4)
    assert texts(figure)[0].startswith("Bytes, not time")
    assert {to_hex(patch.get_facecolor()) for patch in figure.axes[0].patches} == {MEETING}
    lanes = [line for line in figure.axes[0].lines if to_hex(line.get_color()) in RANK_COLOURS]
    assert len(lanes) == 2 * 4  # each lane is broken, so that its length does not look like a duration
    assert all(line.get_xdata()[1] - line.get_xdata()[0] < COMPUTING / 2 for line in lanes)


@pytest.mark.parametrize("figure", [lambda: row_terms(X, W, 8), lambda: row_terms(X, W, 2), lambda: pair_on_a_line(2)])
def test_text_is_large_enough_for_a_slide_and_inside_the_figure(figure):
    assert_text_is_readable(figure())
