"""Figures of owners show what the ranks hold, and which of them computed a head."""

import copy
import dataclasses
from math import prod

import pytest
import torch
from matplotlib.colors import to_hex, to_rgb
from torch import nn

from kandinsky_mini import lab
from kandinsky_mini.config import load_config
from kandinsky_mini.lab.drawings import owners
from kandinsky_mini.lab.drawings.canvas import MIXED, RANK_COLOURS
from kandinsky_mini.models.dit import DiffusionTransformer3D
from kandinsky_mini.models.parallelize import parallelize_dit
from kandinsky_mini.parallel.ledger import size
from kandinsky_mini.parallel.tensors import local_value
from kandinsky_mini.sampling import rope_positions

RANKS = 4
CORE = "visual_transformer_blocks.0.cross_attention.attention"


@pytest.fixture(scope="module")
def dit() -> DiffusionTransformer3D:
    torch.manual_seed(0)
    small = dataclasses.replace(load_config(None).dit, num_text_blocks=1, num_visual_blocks=1)
    return DiffusionTransformer3D(small).eval()


@pytest.fixture(scope="module")
def inputs(dit) -> tuple:
    torch.manual_seed(1)
    latent, text, pooled = torch.randn(2, 4, 6, 16), torch.randn(5, 128), torch.randn(1, 128)
    return latent, text, pooled, torch.tensor([500.0]), rope_positions(dit, latent), torch.arange(5)


def on_ranks(function, ranks=RANKS) -> list:
    return lab.ranks(ranks).run(function)


def texts(figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts if text.get_text()]


@pytest.mark.parametrize("ranks", [2, 4])
def test_bars_show_what_each_rank_holds(dit, ranks):
    figure = on_ranks(lambda mesh: owners.weights(parallelize_dit(copy.deepcopy(dit), mesh)), ranks)[0]

    def held(mesh):
        model = parallelize_dit(copy.deepcopy(dit), mesh)
        parts = dict(model.named_children()).items()
        return {name: sum(prod(local_value(p).shape) * 4 for p in part.parameters()) for name, part in parts}

    for name, of_rank in on_ranks(held, ranks)[0].items():
        whole = sum(p.numel() * 4 for p in dit.get_submodule(name).parameters())
        if whole:
            assert f"{size(of_rank)} of {size(whole)}" in texts(figure)
            assert name in texts(figure)


def test_bars_are_as_long_as_the_weights_and_grey_where_they_are_whole(dit):
    figure = on_ranks(lambda mesh: owners.weights(parallelize_dit(copy.deepcopy(dit), mesh)))[0]
    bars = [patch for patch in figure.axes[0].patches if patch.get_height() == pytest.approx(0.28)]
    lengths: dict[str, dict[str, float]] = {}
    names = [name for name, part in dit.named_children() if list(part.parameters())]
    rows = sorted({round(bar.get_y(), 3) for bar in bars}, reverse=True)
    for bar in bars:
        row = lengths.setdefault(names[rows.index(round(bar.get_y(), 3))], {})
        row[to_hex(bar.get_facecolor())] = bar.get_width()
    assert list(lengths) == names
    totals = {name: sum(p.numel() for p in dit.get_submodule(name).parameters()) for name in names}
    for name, of_colour in lengths.items():
        assert sum(of_colour.values()) == pytest.approx(owners.LENGTH * totals[name] / max(totals.values()))
    assert set(lengths["text_transformer_blocks"]) == {MIXED}
    of_ranks = [lengths["visual_transformer_blocks"][colour] for colour in RANK_COLOURS[:RANKS]]
    assert of_ranks == pytest.approx(of_ranks[:1] * RANKS)
    assert 0 < lengths["visual_transformer_blocks"][MIXED] < of_ranks[0] / 100  # norms and row-wise biases


def test_each_rank_has_the_attention_weights_of_its_own_heads(dit, inputs):
    with torch.no_grad():
        whole = owners.attention_weights(dit, CORE, *inputs)
    assert whole.shape == (8, 12, 5)
    assert torch.allclose(whole.sum(-1), torch.ones(8, 12))
    seen = on_ranks(lambda mesh: owners.attention_weights(parallelize_dit(copy.deepcopy(dit), mesh), CORE, *inputs))
    assert [part.shape[0] for part in seen] == [2] * RANKS
    assert torch.allclose(torch.cat(seen), whole, atol=1e-5)
    assert not dit.get_submodule(CORE)._forward_pre_hooks


def test_the_weights_are_those_that_attention_uses(dit, inputs):
    seen = {}
    core = dit.get_submodule(CORE)
    hook = core.register_forward_hook(lambda _, args, output: seen.update(v=args[2], output=output))
    with torch.no_grad():
        weights = owners.attention_weights(dit, CORE, *inputs)
    hook.remove()
    assert torch.allclose(torch.einsum("hqk,khd->qhd", weights, seen["v"]), seen["output"], atol=1e-5)


def test_only_an_attention_core_has_attention_weights(dit, inputs):
    with pytest.raises(TypeError, match="feed_forward is no attention core, but FeedForward"):
        owners.attention_weights(dit, "visual_transformer_blocks.0.feed_forward", *inputs)


def test_heads_are_tinted_by_the_rank_that_computed_them():
    maps = [torch.rand(2, 3, 4) for _ in range(RANKS)]
    figure = owners.heads({"cat": maps, "hat": [2 * each for each in maps]}, torch.zeros(24, 32, 3, dtype=torch.uint8))
    assert len(figure.axes) == 16
    for i, axis in enumerate(figure.axes):
        head = i % 8
        rank = head // 2
        assert axis.get_title() == (f"rank {rank}\nhead {head}" if i < 8 else "")
        assert axis.get_ylabel() == {0: "cat", 8: "hat"}.get(i, "")
        assert to_hex(axis.spines["top"].get_edgecolor()) == RANK_COLOURS[rank]
        picture, tint = axis.images
        assert torch.allclose(torch.tensor(tint.get_array()), maps[rank][head % 2] * (1 if i < 8 else 2))
        strongest, weakest = tint.cmap(1.0), tint.cmap(0.0)
        assert strongest[:3] == pytest.approx([0.75 * part for part in to_rgb(RANK_COLOURS[rank])])
        assert (weakest[3], strongest[3]) == (0.0, 1.0)
        assert tint.get_extent() == picture.get_extent()  # each map covers the whole picture


def test_a_part_without_weights_has_no_bar():
    model = nn.ModuleDict({"linear": nn.Linear(4, 4), "act": nn.GELU()})
    assert "act" not in texts(owners.weights(model))
