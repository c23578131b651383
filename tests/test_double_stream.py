"""The block of the final task can be sharded by the course's recipe, and each mistake on the way is found."""

import pytest
import torch
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from kandinsky_mini import lab
from kandinsky_mini.lab.double_stream import DoubleStreamBlock, GatedFeedForward
from kandinsky_mini.parallel.ledger import size

DIM, HEADS, TEXT, VIDEO = 64, 8, 5, 24
PLAN = {
    "to_qkv": ColwiseParallel(),
    "out_layer": RowwiseParallel(),
    "feed_forward.gate_layer": ColwiseParallel(),
    "feed_forward.in_layer": ColwiseParallel(),
    "feed_forward.out_layer": RowwiseParallel(),
}
GATHERED = {
    "to_qkv": ColwiseParallel(output_layouts=Replicate()),
    "out_layer": RowwiseParallel(input_layouts=Replicate()),
}


@pytest.fixture
def block() -> DoubleStreamBlock:
    torch.manual_seed(0)
    return DoubleStreamBlock(DIM, HEADS, 96).eval()


@pytest.fixture
def tokens() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randn(TEXT, DIM), torch.randn(VIDEO, DIM)


def least(ranks: int) -> float:
    """The bytes that each rank sends if two all-reduces of all tokens in float32 are everything."""
    return 2 * 2 * (ranks - 1) / ranks * (TEXT + VIDEO) * DIM * 4


def split(block, mesh, permuted=True, reduced=True, plan=PLAN):
    for stream in (block.text, block.video):
        if permuted:
            for rows in stream.to_qkv.parameters():
                rows.data = rows.data.unflatten(0, (3, mesh.size(), -1)).transpose(0, 1).flatten(0, 2)
        parallelize_module(stream, mesh, plan)
    if reduced:
        block.num_heads //= mesh.size()
    return block


def graded(block, tokens, capsys, ranks=4, **how) -> str:
    lab.grade_bytes(lambda b, mesh: split(b, mesh, **how), block, *tokens, ranks=ranks, most=least(ranks))
    return capsys.readouterr().out


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_the_recipe_shards_it_on_every_rank_with_the_least_bytes(block, tokens, capsys, ranks):
    assert graded(block, tokens, capsys, ranks) == f"right: each rank sends {size(least(ranks))}\n"


def test_fused_rows_that_are_cut_as_they_lie_give_wrong_numbers(block, tokens, capsys):
    assert graded(block, tokens, capsys, permuted=False).startswith("not yet: rank 0 is up to ")


def test_a_forgotten_head_count_is_an_error(block, tokens, capsys):
    assert "num_heads" in graded(block, tokens, capsys, reduced=False)


def test_gathering_the_fused_layers_is_right_but_costs_more(block, tokens, capsys):
    printed = graded(block, tokens, capsys, permuted=False, reduced=False, plan=PLAN | GATHERED)
    assert printed.startswith("right values, but each rank sends ") and "It can be done with less" in printed


def test_a_stream_that_stays_whole_is_refused(block, tokens, capsys):
    def only_video(block, mesh):
        parallelize_module(block.video, mesh, PLAN | GATHERED)
        return block

    lab.grade_bytes(only_video, block, *tokens, ranks=4, most=least(4))
    assert "the linear layer text.to_qkv is not split" in capsys.readouterr().out


def test_both_streams_look_at_each_other_and_keep_their_own_weights(block, tokens):
    text, video = tokens
    for other_text, other_video in ((text + 1e-1 * torch.randn_like(text), video), (text, video.flip(0) * 1.5)):
        for before, after in zip(block(text, video), block(other_text, other_video), strict=True):
            assert not torch.allclose(before, after)
    swapped = DoubleStreamBlock(DIM, HEADS, 96).eval()
    swapped.text, swapped.video = block.video, block.text
    for output, expected in zip(reversed(swapped(video, text)), block(text, video), strict=True):
        assert torch.allclose(output, expected, atol=1e-5)


def test_the_gated_feed_forward_is_a_product_of_two_projections():
    """The lesson's recipe asks what mixes columns. Here column 7 of one projection meets column 7 of the other."""
    layer, x = GatedFeedForward(8, 16), torch.randn(3, 8)
    gate, inner = x @ layer.gate_layer.weight.T, x @ layer.in_layer.weight.T
    torch.testing.assert_close(layer(x), (gate * gate.sigmoid() * inner) @ layer.out_layer.weight.T)
