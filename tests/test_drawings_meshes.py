"""The drawings of lesson 1 show the ranks of a live mesh, the numbers that ranks hold, and whose terms a sum has."""

import pytest
import torch
from figure_checks import assert_text_is_readable
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

from kandinsky_mini import lab
from kandinsky_mini.lab.drawings.canvas import MIXED, RANK_COLOURS
from kandinsky_mini.lab.drawings.meshes import mesh_grid, placements, ring

RANKS = 4
NAMES = ("cfg_parallel", "tensor_parallel")
LINES = {0: ([0, 2], [0, 1]), 1: ([1, 3], [0, 1]), 2: ([0, 2], [2, 3]), 3: ([1, 3], [2, 3])}
TERMS = torch.arange(RANKS * 8 * 4).view(RANKS, 8, 4)
WHOLE = TERMS.sum(0)
PLACEMENTS = (Shard(0), Shard(1), Replicate(), Partial())


def grid_of_rank(rank: int) -> Figure:
    """Draw the live mesh as one rank sees it. Only rank 0's lines can be read on simulated ranks."""

    def parts(mesh):
        grid = init_device_mesh("cpu", (2, 2), mesh_dim_names=NAMES)
        return grid.mesh, {name: grid[name].mesh for name in NAMES}

    grid, lines = lab.ranks(RANKS).run(parts)[0]
    assert [lines[name].tolist() for name in NAMES] == list(LINES[0])
    return mesh_grid(grid, NAMES, dict(zip(NAMES, map(torch.tensor, LINES[rank]), strict=True)), rank)


def place(mesh, placement):
    if placement == Partial():
        return DTensor.from_local(lab.own_tensor(lambda rank: TERMS[rank].clone()), mesh, [placement])
    return distribute_tensor(WHOLE, mesh, [placement])


def all_placements() -> Figure:
    return placements({each: lab.ranks(RANKS).run(place, each) for each in PLACEMENTS}, WHOLE)


def two_rounds() -> Figure:
    return ring({"at first": torch.tensor([[1, 0], [10, 10]]), "round 1": torch.tensor([[1, 0], [0, 1010]])})


def centre(patch) -> tuple[float, float]:
    return patch.get_x() + patch.get_width() / 2, patch.get_y() + patch.get_height() / 2


def inside(text, patch) -> bool:
    (x, y), (left, bottom) = text.get_position(), patch.get_xy()
    return left < x < left + patch.get_width() and bottom < y < bottom + patch.get_height()


def numbers(axis) -> list:
    return [text for text in axis.texts if text.get_text().isdigit()]


@pytest.mark.parametrize("rank", range(RANKS))
def test_the_row_and_the_column_of_a_rank_are_marked(rank):
    (axis,) = grid_of_rank(rank).axes
    outlines = {patch.get_gid(): patch for patch in axis.patches if patch.get_gid()}
    names = [text for text in axis.texts if text.get_text().startswith("rank ")]
    assert [text.get_text() for text in names if text.get_fontweight() == "bold"] == [f"rank {rank}"]
    for name, line in zip(NAMES, LINES[rank], strict=True):
        assert [text.get_text() for text in names if inside(text, outlines[name])] == [f"rank {r}" for r in line]
        assert any(f"on rank {rank}: {line}" in text.get_text() and name in text.get_text() for text in axis.texts)


def test_a_dimension_is_named_along_the_side_on_which_its_position_changes():
    (axis,) = grid_of_rank(3).axes
    at = {name: [text.get_position() for text in axis.texts if text.get_text() == name] for name in "01"}
    (x0, y0), (x1, y1) = (sorted(at[name], key=lambda place: -place[1])[0] for name in "01")  # the columns
    (rows,) = [text.get_position() for text in axis.texts if text.get_text() == f"{NAMES[0]} ↓"]
    (columns,) = [text.get_position() for text in axis.texts if text.get_text() == f"{NAMES[1]} →"]
    assert y0 == y1 < columns[1] and x0 < columns[0] < x1
    (left, upper), (_, lower) = (sorted(at[name], key=lambda place: place[0])[0] for name in "01")  # the rows
    assert left == rows[0] < x0 and rows[1] > upper > lower


def test_the_lines_of_another_rank_are_refused():
    with pytest.raises(ValueError, match="does not contain rank 3"):
        mesh_grid(torch.arange(4).view(2, 2), NAMES, {"tensor_parallel": torch.tensor([0, 1])}, 3)


def test_a_sum_has_the_colours_of_its_terms():
    axis = two_rounds().axes[0]
    stripes = [patch for patch in axis.patches if patch.get_fill() and patch.get_height() > 0.3]  # not the ring's ranks
    drawn = [to_hex(patch.get_facecolor()) for patch in stripes]
    one, two, _, four = RANK_COLOURS[:4]
    assert drawn == [one, two, two, one, two, four]
    in_parts = [text.get_text() for text in numbers(axis) if text.get_text() not in ("0", "1")]
    assert in_parts == ["10", "10", "1010"]


def test_an_arrow_leads_to_what_has_arrived():
    axis = two_rounds().axes[0]
    arrows = [text for text in axis.texts if getattr(text, "arrow_patch", None) and text.get_zorder() == 6]
    (value,) = [text for text in axis.texts if text.get_text() == "1010"]
    assert [abs(arrow.xy[1] - value.get_position()[1]) < 0.01 for arrow in arrows] == [True]


def test_every_rank_is_drawn_with_the_numbers_that_it_holds():
    (axis,) = all_placements().axes
    places = {tuple(round(c, 3) for c in centre(patch)): patch for patch in axis.patches}
    drawn = [
        (int(text.get_text()), to_hex(places[tuple(round(c, 3) for c in text.get_position())].get_facecolor()))
        for text in numbers(axis)
    ]
    expected = []
    for placement in PLACEMENTS:
        for rank, tensor in enumerate(lab.ranks(RANKS).run(place, placement)):
            colour = MIXED if placement == Replicate() else RANK_COLOURS[rank]
            expected += [(value, colour) for value in tensor.flatten().tolist()]
        expected += [(value, MIXED) for value in WHOLE.flatten().tolist()]
    assert drawn == expected


@pytest.mark.parametrize("dim", [0, 1])
def test_a_shard_is_drawn_at_its_place_in_the_matrix(dim):
    (axis,) = placements({Shard(dim): lab.ranks(RANKS).run(place, Shard(dim))}, WHOLE).axes
    corner = {text.get_text(): text.get_position() for text in reversed(numbers(axis))}  # the first of each number
    wide = 0.3 * WHOLE.shape[1] + 0.3
    rank = RANKS - 1
    row, column = ((6, 0), (0, 3))[dim]
    x, y = corner[str(WHOLE[row, column].item())]
    x0, y0 = corner[str(WHOLE[0, 0].item())]
    assert (x - x0, y0 - y) == pytest.approx((wide * rank + 0.3 * column, 0.3 * row))


def test_text_is_large_enough_for_a_slide_and_inside_the_figure():
    for figure in (grid_of_rank(3), two_rounds(), all_placements()):
        assert_text_is_readable(figure)
