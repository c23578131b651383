"""From videos to latents and back: diffusers' HunyuanVideo VAE packs 8 x 8 pixels of 4 frames into one position."""

from pathlib import Path

import torch
from diffusers import AutoencoderKLHunyuanVideo

from ..limits import check_finite
from .checkpoint import load_pretrained


def load_vae(folder: Path, tiling: bool, dtype: torch.dtype) -> AutoencoderKLHunyuanVideo:
    """Load a VAE from a folder that save_pretrained wrote."""
    vae = load_pretrained(AutoencoderKLHunyuanVideo, folder, torch_dtype=dtype, low_cpu_mem_usage=False)
    return set_tiling(vae, tiling).eval()


def set_tiling(vae: AutoencoderKLHunyuanVideo, tiling: bool) -> AutoencoderKLHunyuanVideo:
    """Switch tiling on or off, and return the VAE.

    With tiling, long videos are encoded and decoded in overlapping pieces along time. diffusers switches it on.
    """
    vae.use_framewise_encoding = vae.use_framewise_decoding = tiling
    return vae


def encode(vae: AutoencoderKLHunyuanVideo, video: torch.Tensor) -> torch.Tensor:
    """Encode a uint8 video (B, 3, frames, height, width) into latents (B, T, H, W, C) with T = (frames - 1) / 4 + 1."""
    x = video.to(vae.dtype) / 127.5 - 1.0
    latents = vae.encode(x).latent_dist.mean * vae.config.scaling_factor
    return latents.movedim(1, -1)


def decode(vae: AutoencoderKLHunyuanVideo, latents: torch.Tensor) -> torch.Tensor:
    """Decode latents (B, T, H, W, C) into a uint8 video (B, 3, 4 (T - 1) + 1, 8 H, 8 W).

    Raises:
        FloatingPointError: the VAE returns values that are not finite.
    """
    x = latents.movedim(-1, 1).to(vae.dtype) / vae.config.scaling_factor
    video = check_finite(vae.decode(x).sample.float(), "the decoded video")
    return ((video.clamp(-1.0, 1.0) + 1.0) * 127.5).round().to(torch.uint8)
