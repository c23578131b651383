"""Models at a configuration's sizes with random weights, to measure where no checkpoint is at hand."""

import dataclasses
import math
from functools import partial

import torch
from diffusers import AutoencoderKLHunyuanVideo
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLTextConfig,
)

from ..build import assemble, compute_dtype
from ..config import Config, TextConfig
from ..models.text_embedders import TextEmbedder, without_pictures
from ..models.vae import set_tiling
from ..models.vae_layers import quicken_decoder
from ..parallel.layout import ParallelLayout
from ..parallel.tensors import place
from ..pipeline import Kandinsky5T2VPipeline
from ..world.tokenizer import new_tokenizer


def draw_weights(model: nn.Module, device: torch.device, seed: int = 0) -> nn.Module:
    """Give a model random weights on the device. It may be on the meta device, and it may be sharded.

    On one kind of device, the same seed gives the same weights under every layout. The modulation gets random weights
    too. At zero, as in a fresh model, it would turn every block into the identity.
    """
    torch.manual_seed(seed)
    values = {}
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1 and name.endswith("weight"):  # a norm's
            whole = torch.ones(parameter.shape, dtype=torch.float32, device=device)
        else:
            fan_in = math.prod(parameter.shape[1:])
            std = 1.0 / math.sqrt(fan_in) if parameter.dim() > 1 else 0.02
            whole = std * torch.randn(parameter.shape, dtype=torch.float32, device=device)
        # A copy, because a mere view of the rank's part would keep the whole tensor in memory.
        values[name] = place(parameter, lambda part, whole=whole: whole[part].clone(), device)
    model.load_state_dict(values, strict=False, assign=True)  # not strict: buffers stay what they are
    return model.eval()


def random_pipeline(
    config: Config,
    devices: dict[str, torch.device],
    layout: ParallelLayout,
    attention: str = "auto",
    offload: bool = False,
) -> Kandinsky5T2VPipeline:
    """Build a pipeline of the real classes at the real sizes. Each rank holds what it would hold of a checkpoint."""

    def vae(device: torch.device) -> AutoencoderKLHunyuanVideo:
        return random_vae(config.vae.tiling, device, compute_dtype(device))

    fill = partial(draw_weights, device=devices["dit"])
    return assemble(config, devices, layout, attention, fill, partial(random_text_embedder, config), vae, offload)


def random_vae(tiling: bool, device: torch.device, dtype: torch.dtype) -> AutoencoderKLHunyuanVideo:
    """Build HunyuanVideo's VAE, to decode, at its full size, which is the default of its class."""
    with torch.device("meta"):
        vae = AutoencoderKLHunyuanVideo().to(dtype)
    return quicken_decoder(set_tiling(draw_weights(vae, device), tiling))


def random_text_embedder(config: Config, device: torch.device) -> TextEmbedder:
    """Build Qwen2.5-VL 7B without its part for pictures and CLIP ViT-L/14's text model, at their published sizes.

    Mini's tokenizer takes the place of theirs. It gives one token for each word, so the template has another length.

    Raises:
        ValueError: the text is too narrow for their numbers of heads, as mini's is.
    """
    if config.dit.in_text_dim % 28 or config.dit.in_text_dim2 % 12:
        raise ValueError(f"{config.name} has no random text encoders: take the configuration of a real size")
    tokenizer, dtype = new_tokenizer(1024), compute_dtype(device)

    def tokens_before_the_prompt(template: str) -> int:
        return len(tokenizer(template.split("{}")[0])["input_ids"]) - 1  # without the token that ends it

    text: TextConfig = dataclasses.replace(
        config.text,
        crop_start=tokens_before_the_prompt(config.text.prompt_template),
        image_crop_start=tokens_before_the_prompt(config.text.image_template),
    )
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    qwen = Qwen2_5_VLTextConfig(
        vocab_size=152_064,
        hidden_size=config.dit.in_text_dim,
        intermediate_size=18_944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
        **ids,
    )
    small = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2}  # it is left out
    all_of_qwen = Qwen2_5_VLConfig(text_config=qwen.to_dict(), vision_config=small, **ids)
    clip = CLIPTextConfig(
        vocab_size=49_408,
        hidden_size=config.dit.in_text_dim2,
        intermediate_size=3_072,
        num_hidden_layers=12,
        num_attention_heads=12,
        max_position_embeddings=text.pooled_max_length,
        **ids,
    )
    # Built on the device where they stay, because they compute some of their buffers while they are built.
    with torch.device(device):
        writer = without_pictures(Qwen2_5_VLForConditionalGeneration._from_config(all_of_qwen, dtype=dtype))
        encoder2 = CLIPTextModel._from_config(clip, dtype=torch.float32)
    tokenizer2 = new_tokenizer(text.pooled_max_length)
    return TextEmbedder(writer.model.language_model, tokenizer, encoder2, tokenizer2, text, writer).eval()
