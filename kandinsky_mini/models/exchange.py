"""Ulysses' exchange around self-attention: each rank trades its share of the tokens for its share of the heads."""

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
        module.register_forward_pre_hook(lambda _, inputs: tuple(to_heads(x, device_mesh) for x in inputs))
        module.register_forward_hook(lambda _, inputs, output: to_tokens(output, device_mesh))
        return module


def to_heads(x: torch.Tensor, mesh: DeviceMesh) -> torch.Tensor:
    """All heads of this rank's tokens (S / P, heads, head_dim) -> all tokens of its heads (S, heads / P, head_dim)."""
    # Block i goes to rank i. The blocks arrive in the order of the ranks, which is the order of the tokens.
    blocks = rearrange(x, "s (ranks h) d -> (ranks s) h d", ranks=mesh.size())
    return all_to_all_single(blocks.contiguous(), None, None, mesh)


def to_tokens(x: torch.Tensor, mesh: DeviceMesh) -> torch.Tensor:
    """All tokens of this rank's heads (S, heads / P, head_dim) -> all heads of its tokens (S / P, heads, head_dim)."""
    blocks = all_to_all_single(x.contiguous(), None, None, mesh)
    return rearrange(blocks, "(ranks s) h d -> s (ranks h) d", ranks=mesh.size())
