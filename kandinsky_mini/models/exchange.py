"""Ulysses' exchange around self-attention: each rank trades its share of the tokens for its share of the heads."""

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import nn
from torch.distributed._functional_collectives import all_to_all_single
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor.parallel import ParallelStyle


class ExchangeTokensForHeads(ParallelStyle):
    """Give a module all tokens of this rank's heads, and take back all heads of this rank's tokens.

    The module's inputs and its output are (S, heads, head_dim). The numbers of tokens and of heads must be divisible by
    the number of ranks.

    DTensor's redistribution from Shard(0) to Shard(1) gives the same result, but a compiler cannot look into it. Here,
    the copy that sorts queries or keys becomes part of the kernel that rotates them.
    """

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        module.register_forward_pre_hook(lambda _, inputs: to_heads(inputs, device_mesh))
        module.register_forward_hook(lambda _, inputs, output: to_tokens(output, device_mesh))
        return module


def to_heads(tensors: Sequence[torch.Tensor], mesh: DeviceMesh) -> tuple[torch.Tensor, ...]:
    """All heads of this rank's tokens (S / P, heads, head_dim) -> all tokens of its heads (S, heads / P, head_dim).

    Queries, keys and values travel together, in one all-to-all.
    """
    # Block i goes to rank i. The blocks arrive in the order of the ranks, which is the order of the tokens.
    # Ranks and tokens stay two dimensions: if they were one, the compiler would not merge this copy with the norm.
    blocks = [rearrange(x, "s (ranks h) d -> ranks s h d", ranks=mesh.size()) for x in tensors]
    return all_to_all_single(torch.stack(blocks, dim=2), None, None, mesh).flatten(0, 1).unbind(1)


def to_tokens(x: torch.Tensor, mesh: DeviceMesh) -> torch.Tensor:
    """All tokens of this rank's heads (S, heads / P, head_dim) -> all heads of its tokens (S / P, heads, head_dim)."""
    blocks = all_to_all_single(x.contiguous(), None, None, mesh)
    return rearrange(blocks, "(ranks s) h d -> s (ranks h) d", ranks=mesh.size())
