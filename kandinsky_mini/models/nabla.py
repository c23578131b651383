"""NABLA, the sparse attention of the model for 10 seconds (arXiv 2507.13546): most blocks of tokens are left out.

The tokens are ordered so that each block holds the patches of one rectangle of a frame. Every head looks at a coarse
map, which has one mean query and one mean key for each block, and keeps for each row the few blocks that make up most
of the row. Blocks that are near in time and place are always kept.
"""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from ..config import NablaConfig
from .attention import Attention


class NablaAttention(Attention):
    """Attention between those blocks of tokens that NABLA keeps. Each head chooses its own."""

    def __init__(self, config: NablaConfig):
        super().__init__()
        self.config = config

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, near: torch.Tensor) -> torch.Tensor:
        """Attend to the chosen blocks: q (..., S, heads, head_dim) -> (..., S, heads, head_dim).

        k and v are (..., K, heads, head_dim). K is S, unless a rank has a part of the queries alone. near is (blocks of
        queries, blocks of keys).
        """
        heads_first = [x.reshape(-1, *x.shape[-3:]).transpose(1, 2) for x in (q, k, v)]
        count, order = self.choose(*heads_first[:2], near)
        attend = attend_by_flex if q.is_cuda else attend_by_mask
        return attend(*heads_first, count, order, self.config.block_tokens).reshape(q.shape)

    def choose(self, q: torch.Tensor, k: torch.Tensor, near: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return choose_blocks' count and order for q (..., heads, S, head_dim) and k (..., heads, K, head_dim)."""
        return choose_blocks(coarse_scores(q, k, self.config.block_tokens), near, self.config.P)


def near_blocks(grid: tuple[int, int, int], config: NablaConfig, device: torch.device) -> torch.Tensor:
    """Mark the blocks that are always kept, (blocks, blocks) bool: those within a window around each block.

    grid is the number of patches along time, height and width.

    Raises:
        ValueError: the patches of a frame do not fill whole blocks.
    """
    block = (1, *config.block)
    if any(size % part for size, part in zip(grid, block, strict=True)):
        raise ValueError(f"NABLA needs whole blocks of {config.block} patches, and a frame has {grid[1:]}")
    blocks = [size // part for size, part in zip(grid, block, strict=True)]
    places = torch.cartesian_prod(*(torch.arange(size, device=device) for size in blocks))  # (blocks, 3)
    reach = torch.tensor([size // 2 for size in config.window], device=device)
    return ((places[:, None] - places).abs() <= reach).all(-1)


def coarse_scores(q: torch.Tensor, k: torch.Tensor, block_tokens: int) -> torch.Tensor:
    """Return how well the mean query of each block fits the mean key of each block, in float32.

    q (..., heads, S, head_dim), k (..., heads, K, head_dim) -> (..., heads, blocks of queries, blocks of keys). The
    softmax over the last dimension is the coarse map.
    """
    q_mean, k_mean = (x.unflatten(-2, (-1, block_tokens)).mean(-2, dtype=torch.float32) for x in (q, k))
    return (q_mean / math.sqrt(q.shape[-1])) @ k_mean.transpose(-1, -2)


@torch.library.custom_op("kandinsky_mini::choose_blocks", mutates_args=())
def choose_blocks(scores: torch.Tensor, near: torch.Tensor, P: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose for each row the fewest blocks that make up the share P of the coarse map, and those nearby.

    Blocks with equal weights stay or go together. This is the way for a CPU. On a GPU sorting is slow, so a kernel of
    our own finds the same blocks without it.

    Args:
        scores: (..., blocks of queries, blocks of keys), in float32.
        near: (blocks of queries, blocks of keys), bool.

    Returns:
        count: how many blocks each row keeps, (..., blocks of queries), int32.
        order: for each row the numbers of all blocks, (..., blocks of queries, blocks of keys), int32. Those that are
            kept come first.
    """
    weights = scores.softmax(-1)
    values = weights.sort(-1).values
    # A block is left out if it and all blocks below it make up less than the rest, 1 - P.
    left_out = (values.cumsum(-1) < 1.0 - P).sum(-1, keepdim=True).clamp(max=values.shape[-1] - 1)
    kept = (weights >= values.gather(-1, left_out)) | near
    return kept.sum(-1, dtype=torch.int32), kept.byte().argsort(dim=-1, descending=True, stable=True).int()


@choose_blocks.register_kernel("cuda")
def _(scores: torch.Tensor, near: torch.Tensor, P: float) -> tuple[torch.Tensor, torch.Tensor]:
    from .nabla_kernel import choose  # Triton is there only where PyTorch was built for GPUs

    return choose(scores.contiguous(), near.contiguous(), P)


@choose_blocks.register_fake
def _(scores: torch.Tensor, near: torch.Tensor, P: float) -> tuple[torch.Tensor, torch.Tensor]:
    return scores.new_empty(scores.shape[:-1], dtype=torch.int32), scores.new_empty(scores.shape, dtype=torch.int32)


def as_mask(count: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """Turn choose_blocks' count and order into a mask (..., blocks of queries, blocks of keys), bool."""
    chosen = torch.arange(order.shape[-1], device=order.device) < count[..., None]
    return torch.zeros_like(chosen).scatter(-1, order.long(), chosen)


def attend_by_mask(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, count: torch.Tensor, order: torch.Tensor, block_tokens: int
) -> torch.Tensor:
    """Compute attention on the kept blocks with a mask of S x S. On a CPU this saves no time.

    q (batch, heads, S, head_dim), k, v (batch, heads, K, head_dim), count and order from choose_blocks ->
    (batch, S, heads, head_dim).
    """
    mask = as_mask(count, order).repeat_interleave(block_tokens, -2).repeat_interleave(block_tokens, -1)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)


@torch.library.custom_op("kandinsky_mini::attend_by_flex", mutates_args=())
def attend_by_flex(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, count: torch.Tensor, order: torch.Tensor, block_tokens: int
) -> torch.Tensor:
    """Compute what attend_by_mask does, with the same arguments, by PyTorch's flex_attention.

    Blocks that are left out take no time. It is an operator of its own, so that it is compiled wherever it is called
    from. Uncompiled, flex_attention would compute all blocks, because it ignores lists of blocks.
    """
    # No block is kept in part. The compiler for CPUs fails if it gets the same tensor twice, so there is a view of it.
    in_part = torch.zeros_like(count), order.view_as(order)
    blocks = BlockMask.from_kv_blocks(*in_part, count, order, BLOCK_SIZE=block_tokens, compute_q_blocks=False)
    tiles = {"BLOCK_M": block_tokens, "BLOCK_N": block_tokens}
    return compiled_flex()(q, k, v, block_mask=blocks, kernel_options=tiles).transpose(1, 2).contiguous()


@attend_by_flex.register_fake
def _(q: torch.Tensor, *_: torch.Tensor | int) -> torch.Tensor:
    return q.new_empty(q.transpose(1, 2).shape)


@functools.cache
def compiled_flex() -> Callable[..., torch.Tensor]:
    return torch.compile(flex_attention, fullgraph=True)


@contextlib.contextmanager
def densities_of(model: nn.Module) -> Iterator[list[torch.Tensor]]:
    """Yield a list. Each call of a sparse attention in this context adds the share that each head keeps, (..., heads).

    The model's blocks must not be compiled, because compiled ones do not run hooks that were added later.
    """
    densities = []

    def note(module: NablaAttention, inputs: tuple, other: dict) -> None:
        count, order = module.choose(*(x.transpose(-3, -2) for x in inputs[:2]), other["near"])
        densities.append(count.float().mean(-1) / order.shape[-1])

    hooks = [module.register_forward_pre_hook(note, with_kwargs=True) for module in sparse_attentions(model)]
    try:
        yield densities
    finally:
        for hook in hooks:
            hook.remove()


def set_share(model: nn.Module, P: float) -> None:
    """Change the share P in every sparse attention of the model."""
    for module in sparse_attentions(model):
        module.config = dataclasses.replace(module.config, P=P)


def sparse_attentions(model: nn.Module) -> list[NablaAttention]:
    return [module for module in model.modules() if isinstance(module, NablaAttention)]
