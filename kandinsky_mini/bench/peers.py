"""The same model in other libraries, which launch/benchmark.py times beside ours: diffusers, split by cache-dit."""

import contextlib
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import version
from types import SimpleNamespace

import torch
from diffusers import Kandinsky5T2VPipeline, Kandinsky5Transformer3DModel
from diffusers.models import attention_dispatch
from diffusers.models.transformers import transformer_kandinsky
from torch import nn
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from ..config import DiTConfig
from ..models.attention import flash4
from ..models.dit import check_compiler
from ..parallel.groups import join_group, world_size


class DiffusersDiT(nn.Module):
    """diffusers' Kandinsky5Transformer3DModel, called like our model without a batch. It adds the batch dimension."""

    def __init__(self, config: DiTConfig):
        super().__init__()
        self.config = config
        self.model = Kandinsky5Transformer3DModel(**diffusers_settings(config))
        self.gathers = self.on_flash4 = False
        self.sparse = None
        if config.nabla:  # its other kernels do not take NABLA's blocks
            backend = attention_dispatch.AttentionBackendName.FLEX
            attention_dispatch._AttentionBackendRegistry._backends[backend] = _flex
            for block in self.model.visual_transformer_blocks:
                block.self_attention.processor._attention_backend = backend

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
        if self.sparse is None:  # its pipeline makes this once for all steps, from the size of the latent
            pipeline = SimpleNamespace(transformer=self.model, fast_sta_nabla=Kandinsky5T2VPipeline.fast_sta_nabla)
            self.sparse = (Kandinsky5T2VPipeline.get_sparse_params(pipeline, x[None], x.device),)
        places = visual_rope_pos, text_rope_pos, scale_factor, *self.sparse
        return self.model(x[None], text_embed[None], time, pooled_text_embed, *places, return_dict=False)[0]

    def set_share(self, P: float) -> None:
        """Change the share P of NABLA."""
        self.model.register_to_config(attention_P=P)
        self.sparse = None

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
        uneven = kind == "ulysses" and self.config.num_heads % world_size() > 0
        split = {f"{kind}_size": world_size()} | ({"ulysses_anything": True} if uneven else {})
        # Without a cache_config nothing is cached.
        cache_dit.enable_cache(self.model, parallelism_config=cache_dit.ParallelismConfig(**split))


@contextlib.contextmanager
def densities_of_diffusers() -> Iterator[list[float]]:
    """Return a list that gets, for each of diffusers' sparse attentions in this context, the share of the blocks kept.

    The attention itself is left out, because without compiling it would compute and hold all of the blocks.
    """
    dispatch, densities = transformer_kandinsky.dispatch_attention_fn, []

    def note(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attn_mask: object = None, **other: object):
        if attn_mask is None:
            return dispatch(query, key, value, **other)
        densities.append(attn_mask.full_kv_num_blocks.float().mean().item() / attn_mask.full_kv_indices.shape[-1])
        return value

    transformer_kandinsky.dispatch_attention_fn = note
    try:
        yield densities
    finally:
        transformer_kandinsky.dispatch_attention_fn = dispatch


def diffusers_settings(config: DiTConfig) -> dict[str, object]:
    """Return what diffusers' class is called with for a model of these sizes."""
    settings = asdict(config)
    del settings["nabla"]
    if config.nabla:
        names = ("attention_wT", "attention_wH", "attention_wW")
        settings |= dict(zip(names, config.nabla.window, strict=True))
        settings |= {"attention_type": "nabla", "attention_P": config.nabla.P}
    return settings


def _flash4(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, softmax_scale: None, causal: bool) -> torch.Tensor:
    """What diffusers calls. Here it always wants the usual scale and no causal mask."""
    return flash4(q, k, v)


def _flex(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attn_mask: BlockMask, **_) -> torch.Tensor:
    """What diffusers does with flex_attention, with tiles of the mask's size.

    It gives PyTorch one side of the tiles only. The other one, which PyTorch 2.11 chooses on an H100, does not fit.
    """
    tiles = dict(zip(("BLOCK_M", "BLOCK_N"), attn_mask.BLOCK_SIZE, strict=True))
    heads_first = (x.transpose(1, 2) for x in (query, key, value))
    return flex_attention(*heads_first, block_mask=attn_mask, kernel_options=tiles).transpose(1, 2)


def peer_versions() -> dict[str, str]:
    """Return the versions of the libraries that this run uses."""
    names = ["diffusers"] + ["cache-dit"] * (world_size() > 1)
    return {name: version(name) for name in names}
