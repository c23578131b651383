"""The drawings of lesson 8 show who holds what, and what a step is made of."""

import pytest
import torch
from matplotlib.colors import to_rgb

from kandinsky_mini.lab.drawings import layouts
from kandinsky_mini.lab.drawings.canvas import rank_colour

CELLS = torch.arange(8).view(4, 2)


def matrices(figure) -> list:
    return [axis.images[0].get_array() for axis in figure.axes]


def test_each_cell_has_the_colour_of_the_rank_that_holds_it():
    figure = layouts.held({"rows": CELLS.chunk(2), "columns": CELLS.chunk(2, dim=1)}, (4, 2), ("tokens", "heads"))
    rows, columns = matrices(figure)
    assert rows.tolist() == [[0, 0], [0, 0], [1, 1], [1, 1]]
    assert columns.tolist() == [[0, 1]] * 4
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["rank 0", "rank 1"]


def test_cells_that_nobody_holds_have_no_colour():
    (found,) = matrices(layouts.held({"": [CELLS[:1], CELLS[3:]]}, (4, 2), ("tokens", "heads")))
    assert found.mask.tolist() == [[False] * 2, [True] * 2, [True] * 2, [False] * 2]


def test_each_part_of_a_picture_has_the_tint_of_its_rank():
    owners = torch.tensor([[[0, 0], [1, 1]], [[1, 1], [2, 2]]])
    pictures = [torch.zeros(8, 8, 3, dtype=torch.uint8)] * 2
    figure = layouts.tinted(pictures, owners, ["a", "b"])
    for axis, owner, title in zip(figure.axes, owners, ["a", "b"], strict=True):
        tint = axis.images[1].get_array()
        for row in range(2):
            assert tint[row, 0, :3].tolist() == pytest.approx(to_rgb(rank_colour(int(owner[row, 0]))))
        assert 0 < tint[0, 0, 3] < 1  # the picture shines through
        assert axis.get_title() == title


@pytest.mark.parametrize(("count", "ranks", "used"), [(28, 8, "87.5%"), (28, 4, "100.0%"), (7, 4, "87.5%")])
def test_uneven_heads_show_where_a_rank_waits(count, ranks, used):
    figure = layouts.heads(count, ranks)
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert f"{used} of the time is used" in texts
    assert [text for text in texts if text.isdecimal()] == [str(head) for head in range(count)]
    waiting = [patch for patch in figure.axes[0].patches if patch.get_linestyle() == "--"]
    assert len(waiting) == -count % ranks


def test_a_bar_is_the_sum_of_its_parts_and_the_shortest_is_on_top():
    predicted = {"slow": {"attention": 1.0, "communication": 2.0}, "quick": {"attention": 1.0, "linear": 0.5}}
    figure = layouts.steps(predicted, {"quick": 1.75})
    (axis,) = figure.axes
    assert [label.get_text() for label in axis.get_yticklabels()] == ["slow", "quick"]
    ends = {round(patch.get_y() + 0.3): patch.get_x() + patch.get_width() for patch in axis.patches}
    assert ends == {0: pytest.approx(3.0), 1: pytest.approx(1.5)}
    assert list(axis.lines[0].get_xdata()) == [1.75, 1.75]
    assert {text.get_text() for text in axis.texts} == {"3.00", "1.50 predicted, 1.75 measured"}
    assert len(layouts.steps(predicted).axes[0].lines) == 0
