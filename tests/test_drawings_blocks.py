"""The drawings of NABLA show the order of the patches, the maps, and the work of the ranks as they are given."""

import pytest
import torch
from helpers import SMALL, random_model

from kandinsky_mini.config import NablaConfig
from kandinsky_mini.lab.drawings import blocks
from kandinsky_mini.lab.drawings.canvas import rank_colour


def numbers(axis) -> torch.Tensor:
    """Return the numbers that are written on a grid, in their places."""
    places = {tuple(reversed(text.get_position())): int(text.get_text()) for text in axis.texts}
    height, width = (max(place[i] for place in places) + 1 for i in range(2))
    return torch.tensor([[places[row, column] for column in range(width)] for row in range(height)])


def test_the_order_of_the_patches_is_the_model_s():
    """The model is asked: each patch of a latent has its own value, and nothing but the order may change."""
    grid, block = (4, 6), (2, 3)
    by_rows, by_blocks = map(numbers, blocks.order_of_patches(grid, block).axes)
    assert by_rows.flatten().tolist() == list(range(24))
    model = random_model(nabla=NablaConfig(0.9, (1, 1, 1), block), out_visual_dim=4, patch_size=(1, 1, 1))
    layer = model.visual_embeddings.in_layer
    with torch.no_grad():
        layer.weight.fill_(1.0 / SMALL.in_visual_dim)
        layer.bias.zero_()
        patches = torch.arange(24.0).view(1, *grid, 1).expand(-1, -1, -1, SMALL.in_visual_dim)
        order = model.visual_embeddings(patches)[:, 0].round().int().tolist()
    assert [by_blocks.flatten().tolist().index(i) for i in range(24)] == order


def test_neighbouring_blocks_differ_in_colour():
    figure = blocks.order_of_patches((4, 6), (2, 2))
    for axis in figure.axes:
        picture = torch.as_tensor(axis.images[0].get_array())[::2, ::2]
        assert (picture[1:] != picture[:-1]).all() and (picture[:, 1:] != picture[:, :-1]).all()


def test_every_map_is_drawn_under_its_title():
    pictures = {f"head {i}": torch.rand(5, 5) for i in range(6)}
    axes = blocks.maps(pictures, columns=4).axes
    assert [axis.get_title() for axis in axes] == [*pictures, "", ""]
    for axis, picture in zip(axes, pictures.values(), strict=False):
        assert torch.equal(torch.as_tensor(axis.images[0].get_array()), picture)


def test_bars_are_the_work_of_the_ranks_and_lines_that_of_the_busiest():
    work = {"before": [[0.5, 1.5], [1.25, 0.75]], "after": [[1.0, 1.0], [0.9, 1.1]]}
    for axis, (title, layers) in zip(blocks.work_of_ranks(work).axes, work.items(), strict=True):
        assert axis.get_title() == title
        bars = sorted(axis.patches, key=lambda bar: bar.get_x())
        assert [bar.get_height() for bar in bars] == pytest.approx([each for layer in layers for each in layer])
        colours = {tuple(bar.get_facecolor()) for bar in bars[::2]}
        assert len(colours) == 1 and rank_colour(0) != rank_colour(1)
        assert [line.get_ydata()[0] for line in axis.lines] == [max(layer) for layer in layers]
