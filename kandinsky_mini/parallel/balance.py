"""Order heads so that each rank has about the same work. With sparse attention, some heads keep more than others."""

from collections.abc import Sequence

import torch
from torch import nn

from ..models.nn import MultiheadSelfAttention


def balanced_order(work: Sequence[float], ranks: int) -> list[int]:
    """Return an order of the heads in which equal parts of it, one for each rank, have about the same work.

    The heads are dealt from the largest to the smallest, each to the rank that has the least work so far (Graham 1969),
    until a rank has its number of heads.

    Raises:
        ValueError: the number of heads is not divisible by the number of ranks.
    """
    if len(work) % ranks:
        raise ValueError(f"{len(work)} heads are not divisible by {ranks} ranks")
    shares: list[list[int]] = [[] for _ in range(ranks)]
    for head in sorted(range(len(work)), key=lambda head: -work[head]):
        open_shares = [share for share in shares if len(share) < len(work) // ranks]
        min(open_shares, key=lambda share: sum(work[each] for each in share)).append(head)
    return [head for share in shares for head in share]


@torch.no_grad()
def reorder_heads(attention: MultiheadSelfAttention, out: nn.Linear, order: Sequence[int]) -> None:
    """Put the heads of an unsharded attention into another order, in place. What `out` returns stays the same.

    A head is a group of rows in the weights of queries, keys and values, which are (D, D), and a group of columns in
    the weight of the output projection `out`.
    """
    for layer in (attention.to_query, attention.to_key, attention.to_value):
        for parameter in (layer.weight, layer.bias):
            parameter.copy_(parameter.unflatten(0, (len(order), -1))[list(order)].flatten(0, 1))
    out.weight.copy_(out.weight.unflatten(1, (len(order), -1))[:, list(order)].flatten(1, 2))
