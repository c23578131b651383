"""The same model in other libraries, for launch/benchmark.py to time beside ours: diffusers, sharded by cache-dit."""

from dataclasses import asdict
from importlib.metadata import version

import torch
from diffusers import Kandinsky5Transformer3DModel
from torch import nn

from ..config import DiTConfig
from ..distributed import join_group, world_size


class DiffusersDiT(nn.Module):
    """diffusers' Kandinsky5Transformer3DModel behind our model's call: it wants a batch, ours wants none."""

    def __init__(self, config: DiTConfig):
        super().__init__()
        self.model = Kandinsky5Transformer3DModel(**asdict(config))
        self.visual_cond, self.patch_size = config.visual_cond, config.patch_size

    def forward(self, x, text_embed, pooled_text_embed, time, visual_rope_pos, text_rope_pos, scale_factor):
        places = visual_rope_pos, text_rope_pos, scale_factor
        return self.model(x[None], text_embed[None], time, pooled_text_embed, *places, return_dict=False)[0]

    def cast(self, dtype: torch.dtype) -> "DiffusersDiT":
        """As diffusers does when it loads a checkpoint."""
        self.model.to(dtype)
        for name, module in self.model.named_modules():
            if name.rpartition(".")[2] in self.model._keep_in_fp32_modules:
                module.float()
        return self

    def compile_blocks(self) -> None:
        self.model.compile_repeated_blocks(fullgraph=True)

    def shard(self, device_type: str) -> None:
        """Over all ranks, by cache-dit's tensor-parallel plan; GPUs only.

        Raises:
            ModuleNotFoundError: cache-dit is not installed; it is no dependency of this repository.
        """
        import cache_dit

        join_group(device_type)
        # Nothing is cached: that would need a cache_config.
        cache_dit.enable_cache(self.model, parallelism_config=cache_dit.ParallelismConfig(tp_size=world_size()))


def engine_versions() -> dict[str, str]:
    names = ["diffusers"] + ["cache-dit"] * (world_size() > 1)
    return {name: version(name) for name in names}
