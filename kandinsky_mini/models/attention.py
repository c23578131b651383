"""Scaled dot-product attention: the order in which kernels are tried, and a module that plans can hook into."""

import contextlib

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

# In order of preference. PyTorch by itself would take its flash kernel first, but on an H100 cuDNN's is faster.
# A kernel that does not support the device or the shape is skipped.
KERNELS = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]


def preferred_kernels() -> contextlib.AbstractContextManager:
    """A context, or a decorator, in which attention takes the first of KERNELS that can compute it."""
    return sdpa_kernel(KERNELS, set_priority=True)


def kernel_name(device: torch.device) -> str:
    """Return the name that benchmark records use for the attention kernel preferred on this device."""
    return "cudnn" if device.type == "cuda" else "sdpa"


class Attention(nn.Module):
    """Scaled dot-product attention: q, k, v (..., S, heads, head_dim) -> (..., S, heads, head_dim).

    It is a module without parameters so that a plan can re-shard its inputs and its output.
    """

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        # The fast kernels want exactly one batch dimension, and heads before tokens.
        batched = [x.reshape(-1, *x.shape[-3:]).transpose(1, 2) for x in (q, k, v)]
        return F.scaled_dot_product_attention(*batched).transpose(1, 2).reshape(q.shape)
