"""The parts of the CrossDiT. Nothing here knows about parallelism: plans shard these modules from the outside.

Tokens are unbatched, (S, D); for training every module also takes leading dimensions, (..., S, D). The embeddings of
time and pooled text keep a token dimension of one, (..., 1, D), so that they broadcast over tokens.

As in the released model, the time embedding, the modulation, RoPE, residual sums and the norms of the blocks are
computed in float32. Everything else is in x's dtype, the norms of the text embeddings included.
"""

import math

import torch
from einops import rearrange
from torch import nn

from ..config import NablaConfig
from .attention import Attention
from .nabla import NablaAttention


def frequencies(n: int, device: torch.device, max_period: float = 10_000.0) -> torch.Tensor:
    """Return n frequencies (n,) that fall from 1 towards 1 / max_period, as in "Attention is all you need"."""
    return torch.exp(-math.log(max_period) * torch.arange(n, dtype=torch.float32, device=device) / n)


def modulate(norm: nn.LayerNorm, x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Normalise each token of x (..., S, D), then scale and shift it. shift and scale are (..., 1, D)."""
    return (norm(x.float()) * (scale.float() + 1.0) + shift.float()).type_as(x)


def gated_sum(x: torch.Tensor, out: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """Return the residual connection x + gate * out. gate is (..., 1, D)."""
    return (x.float() + gate.float() * out.float()).type_as(x)


def rotate(x: torch.Tensor, rope: torch.Tensor) -> torch.Tensor:
    """Apply RoPE: rotate each pair of channels of x (..., S, heads, head_dim) by its angle.

    rope is (S, 1, 2, head_dim), as rotation returns it.
    """
    cos, sin = rope.unbind(-2)
    x32 = x.float()
    swapped = rearrange(x32, "... (pair two) -> ... pair two", two=2).flip(-1).flatten(-2)
    return (cos * x32 + sin * swapped).type_as(x)


def rotation(angles: torch.Tensor) -> torch.Tensor:
    """Angles (S, head_dim / 2), one for each pair of channels -> rope (S, 1, 2, head_dim).

    It holds the cosine and the sine for every channel. The sine is negative for the first channel of a pair, because
    (a, b) becomes (cos a - sin b, cos b + sin a). So a compiler can do it all in one pass over the channels.
    """
    cos, sin = torch.cos(angles), torch.sin(angles)
    signed = torch.stack([-sin, sin], dim=-1).flatten(-2)
    return torch.stack([cos.repeat_interleave(2, dim=-1), signed], dim=-2)[:, None]


class TimeEmbeddings(nn.Module):
    """time (..., 1), from 0 for a clean latent to 1000 for noise -> (..., 1, time_dim)."""

    def __init__(self, model_dim: int, time_dim: int):
        super().__init__()
        self.model_dim = model_dim
        self.in_layer = nn.Linear(model_dim, time_dim)
        self.activation = nn.SiLU()
        self.out_layer = nn.Linear(time_dim, time_dim)

    def forward(self, time: torch.Tensor) -> torch.Tensor:
        angles = time.float()[..., None] * frequencies(self.model_dim // 2, time.device)
        sinusoid = torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1)
        return self.out_layer(self.activation(self.in_layer(sinusoid.to(self.in_layer.weight.dtype))))


class TextEmbeddings(nn.Module):
    """(..., S, text_dim) -> (..., S, model_dim)."""

    def __init__(self, text_dim: int, model_dim: int):
        super().__init__()
        self.in_layer = nn.Linear(text_dim, model_dim)
        self.norm = nn.LayerNorm(model_dim)

    def forward(self, text_embed: torch.Tensor) -> torch.Tensor:
        return self.norm(self.in_layer(text_embed))


class VisualEmbeddings(nn.Module):
    """Latent (..., T, H, W, C) -> tokens (..., S, model_dim), one for each patch, ordered by t, then h, then w.

    With blocks of more than one patch, the patches of a block follow one another.
    """

    def __init__(
        self, visual_dim: int, model_dim: int, patch_size: tuple[int, int, int], block: tuple[int, int] = (1, 1)
    ):
        super().__init__()
        self.patch_size, self.block = patch_size, block
        self.in_layer = nn.Linear(math.prod(patch_size) * visual_dim, model_dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        (pt, ph, pw), (bh, bw) = self.patch_size, self.block
        patches = "... (t pt) (h bh ph) (w bw pw) c -> ... (t h w bh bw) (pt ph pw c)"
        return self.in_layer(rearrange(x, patches, pt=pt, ph=ph, pw=pw, bh=bh, bw=bw))


class RoPE1D(nn.Module):
    """Positions (S,) -> rope (S, 1, 2, head_dim)."""

    def __init__(self, head_dim: int):
        super().__init__()
        self.head_dim = head_dim

    def forward(self, pos: torch.Tensor) -> torch.Tensor:
        return rotation(torch.outer(pos.float(), frequencies(self.head_dim // 2, pos.device)))


class RoPE3D(nn.Module):
    """Positions of frames (T,), rows (H,) and columns (W,) -> rope (T * H * W, 1, 2, head_dim).

    axes_dims says how many channels of a head encode the frame, the row and the column. scale_factor divides the
    angles of these three positions, so that a larger picture can use the range of angles of a smaller one. The order
    is that of VisualEmbeddings.
    """

    def __init__(self, axes_dims: tuple[int, int, int], block: tuple[int, int] = (1, 1)):
        super().__init__()
        self.axes_dims, self.block = axes_dims, block

    def forward(self, pos: list[torch.Tensor], scale_factor: tuple[float, float, float]) -> torch.Tensor:
        t, h, w = (
            torch.outer(axis.float(), frequencies(dim // 2, axis.device)) / scale
            for axis, dim, scale in zip(pos, self.axes_dims, scale_factor, strict=True)
        )
        grid = (len(t), len(h), len(w), -1)
        angles = torch.cat(
            [t[:, None, None].expand(grid), h[None, :, None].expand(grid), w[None, None].expand(grid)], dim=-1
        )
        bh, bw = self.block
        return rotation(rearrange(angles, "t (h bh) (w bw) d -> (t h w bh bw) d", bh=bh, bw=bw))


class Modulation(nn.Module):
    """Time embedding (..., 1, time_dim) -> shifts, scales and gates (..., 1, num_params * model_dim).

    It starts at zero, which makes a fresh block the identity.
    """

    def __init__(self, time_dim: int, model_dim: int, num_params: int):
        super().__init__()
        self.activation = nn.SiLU()
        self.out_layer = nn.Linear(time_dim, num_params * model_dim)
        nn.init.zeros_(self.out_layer.weight)
        nn.init.zeros_(self.out_layer.bias)

    def forward(self, time_embed: torch.Tensor) -> torch.Tensor:
        return self.out_layer(self.activation(time_embed))


class MultiheadSelfAttention(nn.Module):
    """x (..., S, D), rope (S, 1, 2, head_dim) -> all heads side by side (..., S, D), not yet projected.

    With NABLA only some blocks of tokens attend to one another. near (blocks, blocks) marks those that always do.
    """

    def __init__(self, num_channels: int, head_dim: int, nabla: NablaConfig | None = None):
        super().__init__()
        self.num_heads = num_channels // head_dim
        self.to_query = nn.Linear(num_channels, num_channels)
        self.to_key = nn.Linear(num_channels, num_channels)
        self.to_value = nn.Linear(num_channels, num_channels)
        self.query_norm = nn.RMSNorm(head_dim)
        self.key_norm = nn.RMSNorm(head_dim)
        self.attention = NablaAttention(nabla) if nabla else Attention()

    def split_heads(self, x: torch.Tensor) -> torch.Tensor:
        return rearrange(x, "... s (heads d) -> ... s heads d", heads=self.num_heads)

    def forward(self, x: torch.Tensor, rope: torch.Tensor, near: torch.Tensor | None = None) -> torch.Tensor:
        q, k, v = (self.split_heads(project(x)) for project in (self.to_query, self.to_key, self.to_value))
        q = rotate(self.query_norm(q.float()).type_as(q), rope)
        k = rotate(self.key_norm(k.float()).type_as(k), rope)
        return self.attention(q, k, v, near=near).flatten(-2)


class MultiheadCrossAttention(MultiheadSelfAttention):
    """Queries from x (..., S, D), keys and values from cond (..., L, D) -> (..., S, D). There is no RoPE."""

    def forward(self, x: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
        q, k, v = (self.split_heads(y) for y in (self.to_query(x), self.to_key(cond), self.to_value(cond)))
        q = self.query_norm(q.float()).type_as(q)
        k = self.key_norm(k.float()).type_as(k)
        return self.attention(q, k, v).flatten(-2)


class FeedForward(nn.Module):
    """(..., S, D) -> (..., S, D) through ff_dim channels."""

    def __init__(self, dim: int, ff_dim: int):
        super().__init__()
        self.in_layer = nn.Linear(dim, ff_dim, bias=False)
        self.activation = nn.GELU()
        self.out_layer = nn.Linear(ff_dim, dim, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out_layer(self.activation(self.in_layer(x)))


class OutLayer(nn.Module):
    """Tokens (..., S, D) and time embedding (..., 1, time_dim) -> latent (..., T, H, W, visual_dim)."""

    def __init__(
        self,
        model_dim: int,
        time_dim: int,
        visual_dim: int,
        patch_size: tuple[int, int, int],
        block: tuple[int, int] = (1, 1),
    ):
        super().__init__()
        self.patch_size, self.block = patch_size, block
        self.modulation = Modulation(time_dim, model_dim, 2)
        self.norm = nn.LayerNorm(model_dim, elementwise_affine=False)
        self.out_layer = nn.Linear(model_dim, math.prod(patch_size) * visual_dim)

    def forward(self, x: torch.Tensor, time_embed: torch.Tensor, grid: tuple[int, int, int]) -> torch.Tensor:
        """Unpatchify into a grid of so many patches along time, height and width."""
        shift, scale = self.modulation(time_embed).chunk(2, dim=-1)
        x = self.out_layer(modulate(self.norm, x, shift, scale))
        (t, h, w), (pt, ph, pw), (bh, bw) = grid, self.patch_size, self.block
        unpatch = "... (t h w bh bw) (c pt ph pw) -> ... (t pt) (h bh ph) (w bw pw) c"
        return rearrange(x, unpatch, t=t, h=h // bh, w=w // bw, pt=pt, ph=ph, pw=pw, bh=bh, bw=bw)
