"""Mini's models before training: tokenizers and encoders from transformers, a VAE from diffusers, our CrossDiT."""

import dataclasses

import torch
from diffusers import AutoencoderKLHunyuanVideo
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    PreTrainedTokenizerFast,
    Qwen2_5_VLTextConfig,
    Qwen2_5_VLTextModel,
)

from ..config import Config
from ..models.dit import DiffusionTransformer3D
from ..models.text_embedders import TextEmbedder
from ..models.vae import set_tiling
from .captions import vocabulary

SPECIAL = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}


def new_tokenizer(max_length: int) -> PreTrainedTokenizerFast:
    """One token a word. Capital letters and the dots of ё do not matter; a word never seen becomes <unk>."""
    ids = {token: i for i, token in enumerate([*SPECIAL.values(), *vocabulary()])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Lowercase(), normalizers.Replace("ё", "е")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", ids["<s>"]), ("</s>", ids["</s>"])]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=max_length, **SPECIAL)


def new_text_embedder(config: Config) -> TextEmbedder:
    """A Qwen2.5-VL text path of 3 layers and a CLIP text model of 2."""
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
    """Qwen2.5-VL shares the pairs of a head between three positions, here as 1 : 1.5 : 1.5; for text all are equal."""
    pairs = head_dim // 2
    return [pairs - 2 * (3 * pairs // 8), 3 * pairs // 8, 3 * pairs // 8]


def new_vae(latent_channels: int) -> AutoencoderKLHunyuanVideo:
    """HunyuanVideo's VAE with an eighth of its channels and one layer a block: 3 million parameters."""
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
    """Begin as a VAE that keeps the mean colour of each patch, not as one that has to find out about colours first.

    Residual branches start at zero, and six channels of every other convolution carry red, green, blue and their
    negatives, which pass SiLU unharmed: silu(a) - silu(-a) = a. The other channels start at random, as usual.
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
        here = conv.weight[: len(rows), : rows.shape[1], -1]  # the last moment of a causal convolution is now
        if "downsamplers" in name:
            here[..., 1:, 1:] = rows[..., None, None] / 4.0  # the mean of the four pixels that become one
        else:
            here[..., here.shape[-2] // 2, here.shape[-1] // 2] = rows
    vae.decoder.conv_out.conv.weight *= 0.4  # a video's deviation; the group norm before it gives 1
    log_variance = slice(vae.config.latent_channels, None)
    vae.quant_conv.weight[log_variance] *= 0.1
    vae.quant_conv.bias[log_variance] = -4.0  # little noise, so that the first lesson is not lost in it


def new_dit(config: Config) -> DiffusionTransformer3D:
    return DiffusionTransformer3D(**dataclasses.asdict(config.dit))
