"""The CrossDiT of Kandinsky 5: a diffusion transformer whose visual tokens attend to the text.

One class serves every size, from mini (10 million parameters, trained here) to the released lite (2 billion). Modules
have the talk's names. The model runs on one device and knows nothing of ranks; parallelize.py says how it is sharded.
"""

import os
import shutil
import sys

import torch
from torch import nn

from ..config import DiTConfig, NablaConfig
from .nabla import near_blocks
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
    """A block on text tokens, which attend to one another.

    x (..., L, D), time_embed (..., 1, time_dim), rope (L, 1, 2, head_dim) -> (..., L, D)
    """

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
    """A block on visual tokens, which attend to one another and to the text.

    x (..., S, D), text_embed (..., L, D), time_embed (..., 1, time_dim), rope (S, 1, 2, head_dim) -> (..., S, D)
    near is for NABLA, as in MultiheadSelfAttention.
    """

    def __init__(self, model_dim: int, time_dim: int, ff_dim: int, head_dim: int, nabla: NablaConfig | None = None):
        super().__init__()
        self.visual_modulation = Modulation(time_dim, model_dim, 9)
        self.self_attention_norm = nn.LayerNorm(model_dim, elementwise_affine=False)
        self.self_attention = MultiheadSelfAttention(model_dim, head_dim, nabla)
        self.out_layer_self = nn.Linear(model_dim, model_dim)
        self.cross_attention_norm = nn.LayerNorm(model_dim, elementwise_affine=False)
        self.cross_attention = MultiheadCrossAttention(model_dim, head_dim)
        self.out_layer_cross = nn.Linear(model_dim, model_dim)
        self.feed_forward_norm = nn.LayerNorm(model_dim, elementwise_affine=False)
        self.feed_forward = FeedForward(model_dim, ff_dim)

    def forward(
        self,
        x: torch.Tensor,
        text_embed: torch.Tensor,
        time_embed: torch.Tensor,
        rope: torch.Tensor,
        near: torch.Tensor | None = None,
    ) -> torch.Tensor:
        self_params, cross_params, ff_params = self.visual_modulation(time_embed).chunk(3, dim=-1)

        shift, scale, gate = self_params.chunk(3, dim=-1)
        out = self.self_attention(modulate(self.self_attention_norm, x, shift, scale), rope, near=near)
        x = gated_sum(x, self.out_layer_self(out), gate)

        shift, scale, gate = cross_params.chunk(3, dim=-1)
        out = self.cross_attention(modulate(self.cross_attention_norm, x, shift, scale), text_embed)
        x = gated_sum(x, self.out_layer_cross(out), gate)

        shift, scale, gate = ff_params.chunk(3, dim=-1)
        out = self.feed_forward(modulate(self.feed_forward_norm, x, shift, scale))
        return gated_sum(x, out, gate)


class DiffusionTransformer3D(nn.Module):
    """Predict the velocity of a noisy latent.

    Raises:
        ValueError: model_dim is not a multiple of head_dim.
    """

    def __init__(self, config: DiTConfig):
        super().__init__()
        if config.model_dim % config.head_dim:
            raise ValueError(f"model_dim {config.model_dim} is not a multiple of the head dimension {config.head_dim}")
        self.config = config
        model_dim, time_dim = config.model_dim, config.time_dim

        # With visual_cond the model also sees a latent to continue from and a mask that says where it counts.
        visual_dim = 2 * config.in_visual_dim + 1 if config.visual_cond else config.in_visual_dim
        self.time_embeddings = TimeEmbeddings(model_dim, time_dim)
        self.text_embeddings = TextEmbeddings(config.in_text_dim, model_dim)
        self.pooled_text_embeddings = TextEmbeddings(config.in_text_dim2, time_dim)
        # NABLA needs the patches of a block side by side.
        block = config.nabla.block if config.nabla else (1, 1)
        self.visual_embeddings = VisualEmbeddings(visual_dim, model_dim, config.patch_size, block)
        self.text_rope_embeddings = RoPE1D(config.head_dim)
        self.visual_rope_embeddings = RoPE3D(config.axes_dims, block)

        sizes = (model_dim, time_dim, config.ff_dim, config.head_dim)
        self.text_transformer_blocks = nn.ModuleList(
            TransformerEncoderBlock(*sizes) for _ in range(config.num_text_blocks)
        )
        self.visual_transformer_blocks = nn.ModuleList(
            TransformerDecoderBlock(*sizes, config.nabla) for _ in range(config.num_visual_blocks)
        )
        self.out_layer = OutLayer(model_dim, time_dim, config.out_visual_dim, config.patch_size, block)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that tokens are computed in."""
        return self.visual_embeddings.in_layer.weight.dtype

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
        """Return the velocity (..., T, H, W, out_visual_dim) of a latent.

        Args:
            x: the latent (..., T, H, W, C). C is in_visual_dim, or 2 * in_visual_dim + 1 with visual_cond.
            text_embed: (..., L, in_text_dim).
            pooled_text_embed: (..., 1, in_text_dim2).
            time: (..., 1), from 0 for a clean latent to 1000 for noise.
            visual_rope_pos: the positions of the patches along time, height and width, one vector each.
            text_rope_pos: the positions of the text tokens, (L,).
            scale_factor: divides the RoPE angles of time, height and width.
        """
        time_embed = self.time_embeddings(time) + self.pooled_text_embeddings(pooled_text_embed)

        text_embed = self.text_embeddings(text_embed)
        text_rope = self.text_rope_embeddings(text_rope_pos)
        for block in self.text_transformer_blocks:
            text_embed = block(text_embed, time_embed, text_rope)

        visual_embed = self.visual_embeddings(x)
        visual_rope = self.visual_rope_embeddings(visual_rope_pos, scale_factor)
        grid = tuple(len(pos) for pos in visual_rope_pos)
        near = near_blocks(grid, self.config.nabla, x.device) if self.config.nabla else None
        for block in self.visual_transformer_blocks:
            visual_embed = block(visual_embed, text_embed, time_embed, visual_rope, near=near)

        return self.out_layer(visual_embed, time_embed, grid)


# The released model computes these modules in float32 whatever dtype the rest has.
FLOAT32_MODULES = ("time_embeddings", "modulation", "query_norm", "key_norm")


def float32_parameters(dit: nn.Module) -> set[str]:
    """Return the names of the parameters that belong to FLOAT32_MODULES."""
    return {
        f"{name}.{parameter}"
        for name, module in dit.named_modules()
        if name.endswith(FLOAT32_MODULES)
        for parameter, _ in module.named_parameters()
    }


def set_dtype(dit: nn.Module, dtype: torch.dtype) -> None:
    """Cast the weights to dtype in place, but those of FLOAT32_MODULES to float32.

    Casting these as well and back again would round them: the model would no longer be exactly the released one.
    """
    kept = float32_parameters(dit)
    for name, parameter in dit.named_parameters():
        parameter.data = parameter.data.to(torch.float32 if name in kept else dtype)


def compile_blocks(dit: DiffusionTransformer3D, device: torch.device | None = None) -> None:
    """Compile the visual blocks in place, before or after sharding. All of them share one full graph.

    The next forward takes longer than usual, from a few seconds to a minute. The device is the one on which the blocks
    will run. By default it is that of their weights, which wait elsewhere with offload.

    Raises:
        ValueError: there is no compiler. PyTorch needs one for C++ on a CPU, and one for C on a GPU.
    """
    check_compiler(device or dit.visual_embeddings.in_layer.weight.device)
    for block in dit.visual_transformer_blocks:
        # On a GPU the kernels between the matrix products try several block sizes, which takes some seconds more.
        block.compile(fullgraph=True, options={"max_autotune_pointwise": True})


def check_compiler(device: torch.device) -> None:
    """Raise a ValueError if torch.compile would not find the compiler that it needs for this device."""
    if device.type == "cpu":  # as torch._inductor looks for it
        language, package, variable, names = "C++", "g++", "CXX", ["clang++" if sys.platform == "darwin" else "g++"]
    elif device.type == "cuda":  # as Triton does
        language, package, variable, names = "C", "gcc", "CC", ["gcc", "clang"]
    else:
        return
    if own := os.environ.get(variable):
        names = [own]
    if not any(map(shutil.which, names)):
        missing = f"{' or '.join(map(repr, names))} was not found"
        cure = f"install one (apt install {package}), name yours in {variable}, or do not compile"
        raise ValueError(f"compiling needs a {language} compiler, and {missing}: {cure}")
