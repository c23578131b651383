"""The module of the course's final task: a double-stream block, as other video transformers have it.

In the CrossDiT the text is only looked at. Here text and video are two streams with weights of their own. Both are
updated, and in attention all tokens of both look at one another. Nothing here knows of ranks.
"""

import torch
from torch import nn
from torch.nn.functional import silu

from ..models.attention import Attention


class GatedFeedForward(nn.Module):
    """(S, dim) -> (S, dim) through ff_dim channels, of which one projection opens or closes those of another."""

    def __init__(self, dim: int, ff_dim: int):
        super().__init__()
        self.gate_layer = nn.Linear(dim, ff_dim, bias=False)
        self.in_layer = nn.Linear(dim, ff_dim, bias=False)
        self.out_layer = nn.Linear(ff_dim, dim, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out_layer(silu(self.gate_layer(x)) * self.in_layer(x))


class Stream(nn.Module):
    """What one kind of tokens has for itself: everything but attention."""

    def __init__(self, dim: int, num_heads: int, ff_dim: int):
        super().__init__()
        self.attention_norm = nn.LayerNorm(dim)
        self.to_qkv = nn.Linear(dim, 3 * dim)
        self.query_norm = nn.RMSNorm(dim // num_heads)
        self.key_norm = nn.RMSNorm(dim // num_heads)
        self.out_layer = nn.Linear(dim, dim)
        self.feed_forward_norm = nn.LayerNorm(dim)
        self.feed_forward = GatedFeedForward(dim, ff_dim)

    def project(self, x: torch.Tensor, num_heads: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Tokens (S, dim) -> queries, keys and values, each (S, num_heads, head_dim)."""
        q, k, v = self.to_qkv(self.attention_norm(x)).chunk(3, dim=-1)
        q, k, v = (y.unflatten(-1, (num_heads, -1)) for y in (q, k, v))
        return self.query_norm(q), self.key_norm(k), v

    def finish(self, x: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        """Add to the tokens (S, dim) what attention has found for them, (S, num_heads, head_dim). Then feed forward."""
        x = x + self.out_layer(attended.flatten(-2))
        return x + self.feed_forward(self.feed_forward_norm(x))


class DoubleStreamBlock(nn.Module):
    """text (L, dim), video (S, dim) -> text (L, dim), video (S, dim)."""

    def __init__(self, dim: int, num_heads: int, ff_dim: int):
        super().__init__()
        self.num_heads = num_heads
        self.text = Stream(dim, num_heads, ff_dim)
        self.video = Stream(dim, num_heads, ff_dim)
        self.attention = Attention()

    def forward(self, text: torch.Tensor, video: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        of_text, of_video = self.text.project(text, self.num_heads), self.video.project(video, self.num_heads)
        q, k, v = (torch.cat(pair) for pair in zip(of_text, of_video, strict=True))  # along the tokens
        attended_text, attended_video = self.attention(q, k, v).split([len(text), len(video)])
        return self.text.finish(text, attended_text), self.video.finish(video, attended_video)
