"""Figures show what is there: the parts that ranks hold, all modules of a block, all collectives of the ledger."""

import copy
import dataclasses

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from figure_checks import assert_text_is_readable
from matplotlib.colors import to_hex
from torch import nn
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from kandinsky_mini import lab
from kandinsky_mini.config import load_config
from kandinsky_mini.lab.drawings import block as block_drawing
from kandinsky_mini.lab.drawings import canvas
from kandinsky_mini.lab.drawings.block import WEIGHTS, block, crossdit
from kandinsky_mini.lab.drawings.canvas import MEETING, MIXED, RANK_COLOURS
from kandinsky_mini.lab.drawings.lanes import megatron
from kandinsky_mini.lab.drawings.shards import ALL, linear_split, placement_maps
from kandinsky_mini.lab.drawings.timeline import REPEATED, timeline
from kandinsky_mini.lab.drawings.videos import frames_of, side_by_side
from kandinsky_mini.models.dit import DiffusionTransformer3D
from kandinsky_mini.models.parallelize import parallelize_dit
from kandinsky_mini.parallel.ledger import Ledger, size
from kandinsky_mini.parallel.tensors import slices_of_ranks

RANKS = 4


@pytest.fixture(scope="module")
def dit() -> DiffusionTransformer3D:
    torch.manual_seed(0)
    small = dataclasses.replace(load_config(None).dit, num_text_blocks=1, num_visual_blocks=1)
    dit = DiffusionTransformer3D(small).eval()
    for module in dit.modules():  # a fresh modulation is zero, which would make all ranks' shifts alike
        if hasattr(module, "activation") and hasattr(module, "out_layer"):
            nn.init.normal_(module.out_layer.weight, std=0.1)
    return dit


@pytest.fixture(scope="module")
def inputs(dit) -> tuple[torch.Tensor, ...]:
    """Return random arguments of a block: x with 2 x 3 x 4 tokens, a text of 5 words, the time, and the RoPE."""
    torch.manual_seed(0)
    rope = dit.visual_rope_embeddings([torch.arange(2), torch.arange(3), torch.arange(4)], (1.0, 1.0, 1.0))
    return torch.randn(24, 256), torch.randn(5, 256), torch.randn(1, 128), rope


def first_block(mesh, dit):
    return parallelize_dit(copy.deepcopy(dit), mesh).visual_transformer_blocks[0]


def draw(function, *inputs, ranks=RANKS):
    """Make a figure on simulated ranks, where its sharded module lives."""
    return lab.ranks(ranks).run(function, *inputs)[0]


def texts(figure) -> list[str]:
    return [text.get_text() for axis in figure.axes for text in axis.texts if text.get_text()]


def colours(figure) -> list[str]:
    return [to_hex(patch.get_facecolor()) for patch in figure.axes[0].patches]


@pytest.mark.parametrize("shape", [(12, 8), (18, 8), (5, 18), (3, 5)])
@pytest.mark.parametrize("placement", [Shard(0), Shard(1), Replicate()])
def test_ranks_are_drawn_to_hold_what_pytorch_gives_them(shape, placement):
    whole = torch.arange(shape[0] * shape[1]).view(shape)

    def place(mesh):
        return distribute_tensor(whole, mesh, [placement])

    slices = lab.ranks(RANKS).run(lambda mesh: slices_of_ranks(place(mesh)))[0]
    for part, here in zip(lab.ranks(RANKS).run(place), slices, strict=True):
        assert torch.equal(part, whole[here])
        assert [each.stop - each.start for each in here] == list(part.shape)  # indexing alone forgives a late end


# Each map shows 8 x 8 numbers. Its parts have these sides, in inches, and these colours. The last rank's part is drawn
# first.
OF_RANKS = list(reversed(RANK_COLOURS[:RANKS]))
MAPS = [
    (Shard(0), (1.1, 0.275), OF_RANKS),
    (Shard(1), (0.275, 1.1), OF_RANKS),
    (Partial(), (1.1, 1.1), OF_RANKS),
    (Replicate(), (1.1, 1.1), [MIXED]),
]


@pytest.mark.parametrize(("placement", "sides", "expected"), MAPS)
def test_a_map_has_a_part_for_each_rank(placement, sides, expected):
    def maps(mesh):
        return placement_maps(
            {"x": DTensor.from_local(torch.ones(8, 8), mesh, [placement], shape=(8, 8), stride=(8, 1))}
        )

    figure = draw(maps)
    parts = figure.axes[0].patches[: len(expected)]
    assert colours(figure) == [*expected, *RANK_COLOURS[:RANKS], MIXED]  # the legend comes last
    assert [(part.get_width(), part.get_height()) for part in parts] == [pytest.approx(sides)] * len(parts)


def test_a_block_is_mapped_with_every_weight(dit):
    figure = draw(lambda mesh: placement_maps(dict(first_block(mesh, dit).named_parameters())))
    titles = {f"{name}\n{tuple(p.shape)}" for name, p in dit.visual_transformer_blocks[0].named_parameters()}
    assert {title.replace(".", "\n", 1) for title in titles} <= set(texts(figure))


@pytest.mark.parametrize(("style", "owners"), [(ColwiseParallel(), (12, 1)), (RowwiseParallel(), (1, 8))])
def test_a_linear_layer_is_drawn_as_a_product_and_as_it_is_stored(style, owners):
    drawn = [torch.tensor(mesh.get_array()) for mesh in linear_split(style, RANKS).axes[0].collections]
    by_rank = torch.arange(max(owners)).div(max(owners) / RANKS, rounding_mode="floor").view(owners).expand(12, 8)
    everywhere = torch.tensor(ALL)
    x, y = (by_rank[:1], everywhere) if owners[0] == 1 else (everywhere, by_rank[:, :1].T)
    for matrix, right in zip(drawn, (x.expand(4, 8), by_rank.T, y.expand(4, 12), by_rank), strict=True):
        assert torch.equal(matrix, right.to(matrix.dtype))
    assert [text for text in texts(linear_split(style, RANKS)) if text in "×="] == ["×", "="]


@pytest.mark.parametrize(
    ("style", "shares"),
    [
        (ColwiseParallel(), ["3 columns", "3 columns", "3 columns", "3 columns", "nothing"]),
        (RowwiseParallel(), ["3 rows", "3 rows", "2 rows"]),
    ],
)
def test_a_rank_without_a_part_of_the_layer_is_drawn_too(style, shares):
    figure = linear_split(style, len(shares))
    expected = [f"rank {rank}: {share}" for rank, share in enumerate(shares)]
    assert [text for text in texts(figure) if text.startswith("rank ")] == expected
    filled = ["white" if share == "nothing" else RANK_COLOURS[rank] for rank, share in enumerate(shares)]
    boxes = [patch for patch in figure.axes[0].patches if patch.get_fill()]
    assert [to_hex(patch.get_facecolor()) for patch in boxes] == [*map(to_hex, filled), MIXED]


def test_the_block_is_drawn_with_every_module_that_has_weights(dit, inputs):
    drawn = dit.visual_transformer_blocks[0]
    figure = block(drawn, *inputs)
    boxes = {patch.get_gid(): to_hex(patch.get_facecolor()) for patch in figure.axes[0].patches if patch.get_gid()}
    with_weights = {name for name, module in drawn.named_modules() if list(module.parameters(recurse=False))}
    assert with_weights == {name for name, colour in boxes.items() if colour == WEIGHTS}
    leaves = {name for name, module in drawn.named_modules() if not list(module.children())}
    assert leaves == set(boxes)
    assert {"to_query\n(24, 256)", "to_key\n(5, 256)", "attention\n(24, 8, 32)"} <= set(texts(figure))


MLP = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8))


def draw_mlp(mesh, plan):
    return megatron(parallelize_module(copy.deepcopy(MLP), mesh, plan), torch.ones(3, 8))


def test_megatron_s_pair_meets_once():
    figure = draw(draw_mlp, {"0": ColwiseParallel(), "2": RowwiseParallel()})
    assert [text for text in texts(figure) if text.startswith("all_")] == ["all_reduce, 96 B"]
    headers = {
        "layer 0\nW (8, 32)\nby columns",
        "columns",
        "module 1",
        "result",
        "layer 2\nW (32, 8)\nby rows",
        "terms of\na sum",
        "output",
    }
    assert headers <= set(texts(figure))
    assert colours(figure)[-RANKS:] == [MIXED] * RANKS  # all ranks have the same output


def test_rows_first_meet_twice():
    rows_first = {
        "0": RowwiseParallel(input_layouts=Replicate()),
        "2": ColwiseParallel(output_layouts=Replicate()),
    }
    meetings = [text for text in texts(draw(draw_mlp, rows_first)) if text.startswith("all_")]
    assert meetings == ["all_reduce, 384 B", "all_gather, 96 B"]


def test_a_layer_that_is_not_split_is_drawn_whole():
    assert "layer 2\nW (32, 8)\nwhole" in texts(draw(draw_mlp, {"0": ColwiseParallel(output_layouts=Replicate())}))


def test_each_rank_attends_with_its_own_heads(dit, inputs):
    names = [f"self_attention.{name}" for name in ("to_query", "to_key", "to_value", "attention")]
    figure = draw(lambda mesh: megatron(first_block(mesh, dit), *inputs, only=[*names, "out_layer_self"]))
    assert texts(figure).count("3 × (24, 64)") == texts(figure).count("(24, 2, 32)") == RANKS
    assert [text for text in texts(figure) if text.startswith("all_")] == ["all_reduce, 24 KiB"]


@pytest.mark.parametrize("drawing", [megatron, timeline])
def test_what_is_not_sharded_is_refused(drawing):
    with pytest.raises(ValueError, match="no weight of this module is sharded"):
        drawing(MLP, torch.ones(3, 8))


def test_a_name_that_the_module_does_not_have_is_refused(dit, inputs):
    with pytest.raises(AttributeError, match="to_qeury"):
        draw(lambda mesh: megatron(first_block(mesh, dit), *inputs, only=["self_attention.to_qeury"]))


def test_the_timeline_has_the_ledger_s_collectives_in_their_order(dit, inputs):
    def both(mesh):
        module = first_block(mesh, dit)
        figure = timeline(module, *inputs)
        with Ledger(module) as ledger:
            module(*inputs)
        return figure, ledger.entries

    figure, entries = draw(both)
    labels = [text.replace(".\n", ".") for text in texts(figure) if text.startswith(("all_", "reduce_"))]
    assert labels == [f"{entry.collective}, {size(entry.payload)}\nin {entry.module}" for entry in entries]
    assert len(entries) == 4
    sent = sum(entry.wire for entry in entries)
    assert size(sent) in texts(figure)
    bars = [patch.get_width() for patch in figure.axes[0].patches if to_hex(patch.get_facecolor()) == MEETING]
    assert bars == pytest.approx([entry.wire / sent * sum(bars) for entry in entries])


def test_what_all_ranks_repeat_is_grey_in_the_timeline(dit, inputs):
    figure = draw(lambda mesh: timeline(first_block(mesh, dit), *inputs), ranks=2)
    grey = {text.get_text() for text in figure.axes[0].texts if text.get_color() == REPEATED}
    norms = {"self_attention_norm", "cross_attention_norm", "feed_forward_norm"}
    assert grey == {"modulation.activation", *norms}


def test_videos_stand_side_by_side_frame_by_frame():
    clip = np.random.default_rng(0).integers(0, 255, (9, 4, 6, 3), dtype=np.uint8)
    video = torch.from_numpy(clip).permute(3, 0, 1, 2)[None]  # as the pipeline returns it
    figure = side_by_side({"1 rank": video, "2 ranks": clip})
    shown = [np.asarray(axis.images[0].get_array()) for axis in figure.axes]
    assert all(np.array_equal(picture, clip[i]) for picture, i in zip(shown, [0, 4, 8, 0, 4, 8], strict=True))
    assert [axis.get_title() for axis in figure.axes] == ["frame 0", "frame 4", "frame 8", "", "", ""]
    assert [axis.get_ylabel() for axis in figure.axes] == ["1 rank", "", "", "2 ranks", "", ""]
    assert [axis.get_title() for axis in frames_of(clip, 2).axes] == ["frame 0", "frame 8"]


def test_videos_of_other_lengths_are_not_compared():
    with pytest.raises(ValueError, match=r"\(4, 2, 2, 3\), \(5, 2, 2, 3\)"):
        side_by_side({"1 rank": np.zeros((4, 2, 2, 3)), "2 ranks": np.zeros((5, 2, 2, 3))})


def figures(dit, inputs):
    latent = torch.randn(2, 6, 8, 16)
    positions = [torch.arange(2), torch.arange(3), torch.arange(4)], torch.arange(5)
    yield crossdit(dit, latent, torch.randn(5, 128), torch.randn(1, 128), torch.tensor([500.0]), *positions)
    yield block(dit.visual_transformer_blocks[0], *inputs)
    yield draw(draw_mlp, {"0": ColwiseParallel(), "2": RowwiseParallel()}, ranks=8)
    yield draw(lambda mesh: timeline(first_block(mesh, dit), *inputs), ranks=2)
    yield draw(lambda mesh: placement_maps(dict(first_block(mesh, dit).named_parameters())), ranks=8)


def test_text_is_large_enough_for_a_slide_and_inside_the_figure(dit, inputs):
    for figure in figures(dit, inputs):
        assert_text_is_readable(figure)


def test_an_arrow_goes_through_its_points_and_ends_at_the_last():
    axis = plt.figure().subplots()
    canvas.arrow(axis, (0, 0), (0, 1), (2, 1))
    (line,), (head,) = axis.lines, axis.texts
    assert list(zip(*line.get_data(), strict=True)) == [(0, 0), (0, 1)]
    assert (head.xyann, head.xy) == ((0, 1), (2, 1))
    plt.close(axis.figure)


def test_the_grid_of_a_matrix_runs_between_its_cells():
    axis = plt.figure().subplots()
    canvas.rule(axis, 2, 3, "white")
    assert list(axis.get_xticks()) == [-0.5, 0.5, 1.5, 2.5] and list(axis.get_yticks()) == [-0.5, 0.5, 1.5]
    plt.close(axis.figure)


@pytest.mark.parametrize(("name", "entered"), [("self_attention", 3), ("cross_attention", 1)])
def test_tokens_go_into_every_projection_that_reads_them(name, entered, monkeypatch):
    """In cross-attention, keys and values are of the text."""
    starts = []
    monkeypatch.setattr(block_drawing, "arrow", lambda axis, *points: starts.append(points[0][0]))
    block_drawing.draw_attention(None, lambda *args, **options: None, name)
    assert starts.count(block_drawing.SCALE + 0.6) == entered
