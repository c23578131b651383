"""Heads in another order give the same result, and ranks that take them in turn have about the same work."""

import pytest
import torch
from helpers import MODULE_BAR, random_inputs, random_model, relative_difference, sparse_model_and_inputs

from kandinsky_mini.models.nabla import densities_of
from kandinsky_mini.parallel.balance import balanced_order, reorder_heads


def shares(order: list[int], ranks: int) -> list[list[int]]:
    return [share.tolist() for share in torch.tensor(order).chunk(ranks)]


def slowest(work: list[float], order: list[int], ranks: int) -> float:
    return max(sum(work[head] for head in share) for share in shares(order, ranks))


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_every_head_is_there_once_and_no_rank_has_much_more_than_another(ranks):
    work = torch.rand(16).tolist()
    order = balanced_order(work, ranks)
    assert sorted(order) == list(range(16))
    assert slowest(work, order, ranks) <= slowest(work, sorted(range(16), key=work.__getitem__), ranks)
    assert slowest(work, order, ranks) < sum(work) / ranks + max(work)


def test_two_large_heads_go_to_two_ranks():
    assert [len({0, 1} & set(share)) for share in shares(balanced_order([9, 8, 1, 1], 2), 2)] == [1, 1]
    assert slowest([5, 4, 3, 3, 2, 1], balanced_order([5, 4, 3, 3, 2, 1], 2), 2) == 9


def test_heads_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="7 heads are not divisible by 2 ranks"):
        balanced_order([1.0] * 7, 2)


@torch.no_grad()
@pytest.mark.parametrize("sparse", [False, True])
def test_another_order_of_the_heads_changes_nothing_else(sparse):
    model, inputs = sparse_model_and_inputs() if sparse else (random_model(), None)
    inputs = inputs or random_inputs(model)
    with densities_of(model) as before:
        expected = model(*inputs)
    orders = [torch.randperm(model.config.num_heads).tolist() for _ in model.visual_transformer_blocks]
    for block, order in zip(model.visual_transformer_blocks, orders, strict=True):
        reorder_heads(block.self_attention, block.out_layer_self, order)
    with densities_of(model) as after:
        assert relative_difference(model(*inputs), expected) < MODULE_BAR
    assert len(after) == (len(orders) if sparse else 0)
    for old, new, order in zip(before, after, orders, strict=False):
        assert torch.equal(old[:, order] if old.dim() > 1 else old[order], new)
