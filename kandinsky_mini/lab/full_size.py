"""Models at a configuration's sizes with random weights: for measuring, where no checkpoint is at hand."""

import dataclasses
import math

import torch
from diffusers import AutoencoderKLHunyuanVideo
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, Qwen2_5_VLTextConfig, Qwen2_5_VLTextModel

from ..config import DiTConfig, TextConfig
from ..models.dit import DiffusionTransformer3D
from ..models.parallelize import check_divisible
from ..models.text_embedders import TextEmbedder
from ..models.vae import set_tiling
from ..world.scratch import new_tokenizer


def check_ranks(config: DiTConfig, ranks: int) -> None:
    """Refuse a number of ranks over which the model does not divide, without building it.

    Raises:
        ValueError: names what does not divide, and the numbers that would do.
    """
    with torch.device("meta"):
        check_divisible(DiffusionTransformer3D(**dataclasses.asdict(config)), ranks)


@torch.no_grad()
def draw_weights(model: nn.Module, device: torch.device, seed: int = 0) -> nn.Module:
    """Give a model random weights, and memory if it is on the meta device.

    One seed gives the same weights on every rank of one kind of device.

    Modulation is drawn like the rest: left at zero, as in a fresh model, it would make every block the identity.
    """
    if next(model.parameters()).is_meta:
        model.to_empty(device=device)
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1 and name.endswith("weight"):  # of a norm
            parameter.fill_(1.0)
        else:
            fan_in = math.prod(parameter.shape[1:])
            parameter.normal_(std=1.0 / math.sqrt(fan_in) if parameter.dim() > 1 else 0.02)
    return model.eval()


def random_dit(config: DiTConfig, device: torch.device) -> DiffusionTransformer3D:
    """The CrossDiT, in float32."""
    with torch.device("meta"):
        dit = DiffusionTransformer3D(**dataclasses.asdict(config))
    return draw_weights(dit, device)


def random_vae(tiling: bool, device: torch.device, dtype: torch.dtype) -> AutoencoderKLHunyuanVideo:
    """HunyuanVideo's VAE at its full size, which is the class's default."""
    with torch.device("meta"):
        vae = AutoencoderKLHunyuanVideo().to(dtype)
    return set_tiling(draw_weights(vae, device), tiling)


def random_text_embedder(
    config: TextConfig, text_dim: int, pooled_dim: int, device: torch.device, dtype: torch.dtype
) -> TextEmbedder:
    """The text path of Qwen2.5-VL 7B and the text model of CLIP ViT-L/14, at their published sizes.

    Their tokenizers are not at hand. Mini's gives a token for each word, so the template has another length here.
    """
    tokenizer = new_tokenizer(1024)
    before = tokenizer(config.prompt_template.split("{}")[0])["input_ids"]
    config = dataclasses.replace(config, crop_start=len(before) - 1)  # but for the token that ends it
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    qwen = Qwen2_5_VLTextConfig(
        vocab_size=152_064,
        hidden_size=text_dim,
        intermediate_size=18_944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
        **ids,
    )
    clip = CLIPTextConfig(
        vocab_size=49_408,
        hidden_size=pooled_dim,
        intermediate_size=3_072,
        num_hidden_layers=12,
        num_attention_heads=12,
        max_position_embeddings=config.pooled_max_length,
        **ids,
    )
    # Built where they stay: they compute some of their buffers when they are made.
    with torch.device(device):
        encoders = [Qwen2_5_VLTextModel._from_config(qwen, dtype=dtype), CLIPTextModel._from_config(clip, dtype=dtype)]
    tokenizer2 = new_tokenizer(config.pooled_max_length)
    return TextEmbedder(encoders[0], tokenizer, encoders[1], tokenizer2, config).eval()
