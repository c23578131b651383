"""Mini's models before training: tokenizers and text encoders from transformers, and a VAE from diffusers."""

import torch
from diffusers import AutoencoderKLHunyuanVideo
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, Qwen2_5_VLTextConfig, Qwen2_5_VLTextModel

from ..config import Config
from ..models.text_embedders import TextEmbedder
from ..models.vae import set_tiling
from ..world.tokenizer import new_tokenizer


def new_text_embedder(config: Config) -> TextEmbedder:
    """Return an untrained text embedder: a Qwen2.5-VL text path with 3 layers, and a CLIP text model with 2."""
    tokenizer = new_tokenizer(config.text.max_length)
    tokenizer2 = new_tokenizer(config.text.pooled_max_length)
    shared = {
        "vocab_size": len(tokenizer),
        "num_attention_heads": 4,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    qwen = Qwen2_5_VLTextConfig(
        hidden_size=config.dit.in_text_dim,
        intermediate_size=512,
        num_hidden_layers=3,
        num_key_value_heads=2,
        max_position_embeddings=config.text.max_length,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 10_000.0,
            "mrope_section": mrope_section(config.dit.in_text_dim // 4),
        },
        **shared,
    )
    clip = CLIPTextConfig(
        hidden_size=config.dit.in_text_dim2,
        intermediate_size=512,
        num_hidden_layers=2,
        max_position_embeddings=config.text.pooled_max_length,
        **shared,
    )
    return TextEmbedder(Qwen2_5_VLTextModel(qwen), tokenizer, CLIPTextModel(clip), tokenizer2, config.text)


def mrope_section(head_dim: int) -> list[int]:
    """Return how many pairs of a head's channels rotate with each of Qwen2.5-VL's three positions.

    Here the three share the pairs as 1 : 1.5 : 1.5. For text, all three positions are equal.
    """
    pairs = head_dim // 2
    return [pairs - 2 * (3 * pairs // 8), 3 * pairs // 8, 3 * pairs // 8]


def new_vae(latent_channels: int) -> AutoencoderKLHunyuanVideo:
    """Return HunyuanVideo's VAE with an eighth of its channels and one layer a block. It has 3 million parameters."""
    vae = AutoencoderKLHunyuanVideo(
        latent_channels=latent_channels,
        block_out_channels=(16, 32, 64, 64),
        layers_per_block=1,
        norm_num_groups=8,
        scaling_factor=1.0,
    )
    let_colours_through(vae)
    return set_tiling(vae, False)


@torch.no_grad()
def let_colours_through(vae: AutoencoderKLHunyuanVideo) -> None:
    """Initialise the VAE so that it keeps the mean colour of each patch and need not find out about colours first.

    Residual branches start at zero. In the convolutions outside them, six channels carry red, green, blue and
    their negatives. These pass SiLU unharmed, because silu(a) - silu(-a) = a. The other channels start at random, as
    usual.
    """
    for name, conv in vae.named_modules():
        if not isinstance(conv, nn.Conv3d):
            continue
        nn.init.zeros_(conv.bias)
        if name.endswith("conv2.conv"):
            nn.init.zeros_(conv.weight)
            continue
        nn.init.kaiming_normal_(conv.weight, nonlinearity="relu" if name.endswith("conv1.conv") else "linear")
        if name.endswith("conv1.conv"):
            continue
        if name.endswith("conv_in.conv"):
            rows = torch.cat([torch.eye(3), -torch.eye(3)])
        elif name.endswith("conv_out.conv"):
            rows = torch.cat([torch.eye(3), -torch.eye(3)], dim=1)
        else:
            rows = torch.eye(6)
        conv.weight[: len(rows)] = 0.0
        here = conv.weight[: len(rows), : rows.shape[1], -1]  # a causal convolution's last moment is the present
        if "downsamplers" in name:
            here[..., 1:, 1:] = rows[..., None, None] / 4.0  # takes the mean of the four pixels that become one
        else:
            here[..., here.shape[-2] // 2, here.shape[-1] // 2] = rows
    vae.decoder.conv_out.conv.weight *= 0.4  # a video's deviation is about 0.4, but the group norm before gives 1
    log_variance = slice(vae.config.latent_channels, None)
    vae.quant_conv.weight[log_variance] *= 0.1
    vae.quant_conv.bias[log_variance] = -4.0  # start with little noise, so that it does not drown the signal
