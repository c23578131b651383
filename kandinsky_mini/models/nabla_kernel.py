"""The choice of NABLA's blocks on a GPU, in Triton. models/nabla.py says what it computes, and does it on a CPU."""

import torch
import triton
import triton.language as tl


def choose(scores: torch.Tensor, near: torch.Tensor, P: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Do what choose_blocks in models/nabla.py does, for contiguous tensors on a GPU."""
    count = scores.new_empty(scores.shape[:-1], dtype=torch.int32)
    order = scores.new_empty(scores.shape, dtype=torch.int32)
    rows, columns = near.shape
    size = triton.next_power_of_2(columns)
    _choose[(count.numel(),)](scores, near, count, order, rows, columns, 1.0 - P, size, num_warps=4)
    return count, order


@triton.jit
def _choose(scores, near, count, order, rows, columns, rest, SIZE: tl.constexpr):
    """Choose the blocks of one row of scores. rest is 1 - P, the share that may be left out.

    Positive numbers are ordered like their bits. So the limit, below which weights are left out, is built bit by bit,
    from the highest one down: a bit is set if all weights below the limit with that bit add up to less than the rest.
    """
    row = tl.program_id(0).to(tl.int64)
    block = tl.arange(0, SIZE)
    exists = block < columns
    score = tl.load(scores + row * columns + block, mask=exists, other=-float("inf"))
    weight = tl.exp(score - tl.max(score, 0))
    weight = weight / tl.sum(weight, 0)
    bits = weight.to(tl.int32, bitcast=True)
    limit = 0
    for i in range(30):  # numbers up to 1 have 30 bits
        candidate = limit + (1 << (29 - i))
        left_out = tl.sum(tl.where(bits < candidate, weight, 0.0), 0)
        limit = tl.where(left_out < rest, candidate, limit)
    limit = tl.minimum(limit, tl.max(bits, 0))  # the largest weight always stays
    is_near = tl.load(near + row % rows * columns + block, mask=exists, other=0) != 0
    kept = (((bits >= limit) | is_near) & exists).to(tl.int32)
    kept_before, kept_in_all = tl.cumsum(kept, 0) - kept, tl.sum(kept, 0)
    place = tl.where(kept != 0, kept_before, kept_in_all + block - kept_before)
    tl.store(count + row, kept_in_all)
    tl.store(order + row * columns + place, block, mask=exists)
