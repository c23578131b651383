"""The CrossDiT of Kandinsky 5: a diffusion transformer whose visual tokens attend to the text.

One class for every size: "mini" (10 million parameters, trained here) and the released "lite" (2 billion).
Module names are those of the talk. It runs on one device and imports nothing of torch.distributed;
models/parallelize.py says how it is sharded.
"""

import torch
from torch import nn

from .nn import (
    FeedForward,
    Modulation,
    MultiheadCrossAttention,
    MultiheadSelfAttention,
    OutLayer,
    RoPE1D,
    RoPE3D,
    TextEmbeddings,
    TimeEmbeddings,
    VisualEmbeddings,
    gated_sum,
    modulate,
)


class TransformerEncoderBlock(nn.Module):
    """A block on text tokens: text_embed (..., L, D) -> (..., L, D)."""

    def __init__(self, model_dim: int, time_dim: int, ff_dim: int, head_dim: int):
        super().__init__()
        self.text_modulation = Modulation(time_dim, model_dim, 6)
        self.self_attention_norm = nn.LayerNorm(model_dim, elementwise_affine=False)
        self.self_attention = MultiheadSelfAttention(model_dim, head_dim)
        self.out_layer_self = nn.Linear(model_dim, model_dim)
        self.feed_forward_norm = nn.LayerNorm(model_dim, elementwise_affine=False)
        self.feed_forward = FeedForward(model_dim, ff_dim)

    def forward(self, x: torch.Tensor, time_embed: torch.Tensor, rope: torch.Tensor) -> torch.Tensor:
        shift, scale, gate, ff_shift, ff_scale, ff_gate = self.text_modulation(time_embed).chunk(6, dim=-1)

        out = self.self_attention(modulate(self.self_attention_norm, x, shift, scale), rope)
        x = gated_sum(x, self.out_layer_self(out), gate)

        out = self.feed_forward(modulate(self.feed_forward_norm, x, ff_shift, ff_scale))
        return gated_sum(x, out, ff_gate)


class TransformerDecoderBlock(nn.Module):
    """A block on visual tokens, which attend to each other and to the text: x (..., S, D) -> (..., S, D)."""

    def __init__(self, model_dim: int, time_dim: int, ff_dim: int, head_dim: int):
        super().__init__()
        self.visual_modulation = Modulation(time_dim, model_dim, 9)
        self.self_attention_norm = nn.LayerNorm(model_dim, elementwise_affine=False)
        self.self_attention = MultiheadSelfAttention(model_dim, head_dim)
        self.out_layer_self = nn.Linear(model_dim, model_dim)
        self.cross_attention_norm = nn.LayerNorm(model_dim, elementwise_affine=False)
        self.cross_attention = MultiheadCrossAttention(model_dim, head_dim)
        self.out_layer_cross = nn.Linear(model_dim, model_dim)
        self.feed_forward_norm = nn.LayerNorm(model_dim, elementwise_affine=False)
        self.feed_forward = FeedForward(model_dim, ff_dim)

    def forward(
        self, x: torch.Tensor, text_embed: torch.Tensor, time_embed: torch.Tensor, rope: torch.Tensor
    ) -> torch.Tensor:
        self_params, cross_params, ff_params = self.visual_modulation(time_embed).chunk(3, dim=-1)

        shift, scale, gate = self_params.chunk(3, dim=-1)
        out = self.self_attention(modulate(self.self_attention_norm, x, shift, scale), rope)
        x = gated_sum(x, self.out_layer_self(out), gate)

        shift, scale, gate = cross_params.chunk(3, dim=-1)
        out = self.cross_attention(modulate(self.cross_attention_norm, x, shift, scale), text_embed)
        x = gated_sum(x, self.out_layer_cross(out), gate)

        shift, scale, gate = ff_params.chunk(3, dim=-1)
        out = self.feed_forward(modulate(self.feed_forward_norm, x, shift, scale))
        return gated_sum(x, out, gate)


class DiffusionTransformer3D(nn.Module):
    """Predicts the velocity of a noisy latent. The arguments are those of `dit` in configs/*.yaml."""

    def __init__(
        self,
        in_visual_dim: int,
        in_text_dim: int,
        in_text_dim2: int,
        time_dim: int,
        out_visual_dim: int,
        patch_size: tuple[int, int, int],
        model_dim: int,
        ff_dim: int,
        num_text_blocks: int,
        num_visual_blocks: int,
        axes_dims: tuple[int, int, int],
        visual_cond: bool,
    ):
        super().__init__()
        head_dim = sum(axes_dims)
        if model_dim % head_dim:
            raise ValueError(f"model_dim {model_dim} is not a multiple of the head dimension {head_dim}")
        self.in_visual_dim = in_visual_dim
        self.patch_size = patch_size
        self.visual_cond = visual_cond

        # With visual_cond the model also sees a latent to continue from and a mask that says where it counts.
        visual_dim = 2 * in_visual_dim + 1 if visual_cond else in_visual_dim
        self.time_embeddings = TimeEmbeddings(model_dim, time_dim)
        self.text_embeddings = TextEmbeddings(in_text_dim, model_dim)
        self.pooled_text_embeddings = TextEmbeddings(in_text_dim2, time_dim)
        self.visual_embeddings = VisualEmbeddings(visual_dim, model_dim, patch_size)
        self.text_rope_embeddings = RoPE1D(head_dim)
        self.visual_rope_embeddings = RoPE3D(axes_dims)

        sizes = (model_dim, time_dim, ff_dim, head_dim)
        self.text_transformer_blocks = nn.ModuleList(TransformerEncoderBlock(*sizes) for _ in range(num_text_blocks))
        self.visual_transformer_blocks = nn.ModuleList(
            TransformerDecoderBlock(*sizes) for _ in range(num_visual_blocks)
        )
        self.out_layer = OutLayer(model_dim, time_dim, out_visual_dim, patch_size)

    def forward(
        self,
        x: torch.Tensor,
        text_embed: torch.Tensor,
        pooled_text_embed: torch.Tensor,
        time: torch.Tensor,
        visual_rope_pos: list[torch.Tensor],
        text_rope_pos: torch.Tensor,
        scale_factor: tuple[float, float, float] = (1.0, 1.0, 1.0),
    ) -> torch.Tensor:
        """Velocity (..., T, H, W, out_visual_dim) of the latent x.

        x (..., T, H, W, C), C = in_visual_dim, or 2 * in_visual_dim + 1 with visual_cond;
        text_embed (..., L, in_text_dim); pooled_text_embed (..., 1, in_text_dim2); time (..., 1) in 0 to 1000;
        visual_rope_pos: positions of the patches along time, height and width; text_rope_pos (L,).
        """
        time_embed = self.time_embeddings(time) + self.pooled_text_embeddings(pooled_text_embed)

        text_embed = self.text_embeddings(text_embed)
        text_rope = self.text_rope_embeddings(text_rope_pos)
        for block in self.text_transformer_blocks:
            text_embed = block(text_embed, time_embed, text_rope)

        visual_embed = self.visual_embeddings(x)
        visual_rope = self.visual_rope_embeddings(visual_rope_pos, scale_factor)
        for block in self.visual_transformer_blocks:
            visual_embed = block(visual_embed, text_embed, time_embed, visual_rope)

        return self.out_layer(visual_embed, time_embed, tuple(len(pos) for pos in visual_rope_pos))


def compile_blocks(dit: DiffusionTransformer3D) -> DiffusionTransformer3D:
    """Compile the visual block, as one full graph that all blocks share; in place, before or after sharding.

    The first forward then takes longer: seconds to a minute.
    """
    for block in dit.visual_transformer_blocks:
        block.compile(fullgraph=True)
    return dit
