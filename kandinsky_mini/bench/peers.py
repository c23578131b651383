"""The same model in other libraries, which launch/benchmark.py times beside ours: diffusers, sharded by cache-dit."""

from dataclasses import asdict
from importlib.metadata import version

import torch
from diffusers import Kandinsky5Transformer3DModel
from torch import nn

from ..config import DiTConfig
from ..models.dit import check_compiler
from ..parallel.groups import join_group, world_size


class DiffusersDiT(nn.Module):
    """diffusers' Kandinsky5Transformer3DModel, called like our model without a batch. It adds the batch dimension."""

    def __init__(self, config: DiTConfig):
        super().__init__()
        self.config = config
        self.model = Kandinsky5Transformer3DModel(**asdict(config))

    @property
    def dtype(self) -> torch.dtype:
        return self.model.visual_embeddings.in_layer.weight.dtype

    def forward(self, x, text_embed, pooled_text_embed, time, visual_rope_pos, text_rope_pos, scale_factor):
        places = visual_rope_pos, text_rope_pos, scale_factor
        return self.model(x[None], text_embed[None], time, pooled_text_embed, *places, return_dict=False)[0]

    def cast(self, dtype: torch.dtype) -> None:
        """Cast as diffusers does when it loads a checkpoint: some modules stay in float32."""
        self.model.to(dtype)
        for name, module in self.model.named_modules():
            if name.rpartition(".")[2] in self.model._keep_in_fp32_modules:
                module.float()

    def compile_blocks(self) -> None:
        check_compiler(self.model.visual_embeddings.in_layer.weight.device)
        self.model.compile_repeated_blocks(fullgraph=True)

    def shard(self, device_type: str) -> None:
        """Shard over all ranks by cache-dit's tensor-parallel plan. This needs GPUs.

        Raises:
            ModuleNotFoundError: cache-dit is not installed. It is not a dependency of this repository.
        """
        import cache_dit

        join_group(device_type)
        # Without a cache_config nothing is cached.
        cache_dit.enable_cache(self.model, parallelism_config=cache_dit.ParallelismConfig(tp_size=world_size()))


def peer_versions() -> dict[str, str]:
    """Return the versions of the libraries that this run uses."""
    names = ["diffusers"] + ["cache-dit"] * (world_size() > 1)
    return {name: version(name) for name in names}
