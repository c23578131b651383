"""The same model in other libraries, which launch/benchmark.py times beside ours: diffusers, split by cache-dit."""

from dataclasses import asdict
from importlib.metadata import version

import torch
from diffusers import Kandinsky5Transformer3DModel
from diffusers.models import attention_dispatch
from torch import nn

from ..config import DiTConfig
from ..models.attention import flash4
from ..models.dit import check_compiler
from ..parallel.groups import join_group, world_size


class DiffusersDiT(nn.Module):
    """diffusers' Kandinsky5Transformer3DModel, called like our model without a batch. It adds the batch dimension."""

    def __init__(self, config: DiTConfig):
        super().__init__()
        self.config = config
        self.model = Kandinsky5Transformer3DModel(**asdict(config))
        self.gathers = self.on_flash4 = False

    @property
    def kernel(self) -> str:
        """The kernel of its attention, as models/attention.py names it."""
        if self.on_flash4:
            return "flash4"
        return "cudnn" if self.visual_weight.is_cuda else "sdpa"

    @property
    def visual_weight(self) -> torch.Tensor:
        return self.model.visual_embeddings.in_layer.weight

    @property
    def dtype(self) -> torch.dtype:
        return self.visual_weight.dtype

    def forward(self, x, text_embed, pooled_text_embed, time, visual_rope_pos, text_rope_pos, scale_factor):
        places = visual_rope_pos, text_rope_pos, scale_factor
        return self.model(x[None], text_embed[None], time, pooled_text_embed, *places, return_dict=False)[0]

    def cast(self, dtype: torch.dtype) -> None:
        """Cast as diffusers does when it loads a checkpoint: some modules stay in float32."""
        self.model.to(dtype)
        for name, module in self.model.named_modules():
            if name.rpartition(".")[2] in self.model._keep_in_fp32_modules:
                module.float()

    def use_flash4(self) -> None:
        """Let attention run on flash-attn-4. diffusers would fetch it from a hub; it gets the installed one."""
        backend = attention_dispatch.AttentionBackendName.FLASH_4_HUB
        attention_dispatch._HUB_KERNELS_REGISTRY[backend].kernel_fn = _flash4
        for module in self.model.modules():
            if hasattr(module, "processor"):
                module.processor._attention_backend = backend
        self.on_flash4 = True

    def compile_blocks(self) -> None:
        check_compiler(self.visual_weight.device)
        # In torch 2.11 a graph cannot hold the all-gather with which cache-dit's Ulysses ends.
        self.model.compile_repeated_blocks(fullgraph=not self.gathers)

    def shard(self, device_type: str, kind: str) -> None:
        """Split over all ranks by cache-dit: tensor parallelism ("tp") or Ulysses ("ulysses"). This needs GPUs.

        Raises:
            ModuleNotFoundError: cache-dit is not installed. It is not a dependency of this repository.
        """
        import cache_dit

        join_group(device_type)
        self.gathers = kind == "ulysses"
        size = {f"{kind}_size": world_size()}
        # Without a cache_config nothing is cached.
        cache_dit.enable_cache(self.model, parallelism_config=cache_dit.ParallelismConfig(**size))


def _flash4(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, softmax_scale: None, causal: bool) -> torch.Tensor:
    """What diffusers calls. Here it always wants the usual scale and no causal mask."""
    return flash4(q, k, v)


def peer_versions() -> dict[str, str]:
    """Return the versions of the libraries that this run uses."""
    names = ["diffusers"] + ["cache-dit"] * (world_size() > 1)
    return {name: version(name) for name in names}
