"""From videos to latents and back: diffusers' HunyuanVideo VAE packs 8 x 8 pixels of 4 frames into one position."""

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from diffusers import AutoencoderKLHunyuanVideo

from ..limits import check_finite
from .checkpoint import load_pretrained

# Calls a function on every piece. None stands for another rank, which gets the results.
RunPieces = Callable[[Callable[[torch.Tensor], torch.Tensor], list[torch.Tensor]], Iterable[torch.Tensor] | None]


def load_vae(folder: Path, tiling: bool, dtype: torch.dtype) -> AutoencoderKLHunyuanVideo:
    """Load a VAE from a folder that save_pretrained wrote."""
    vae = load_pretrained(AutoencoderKLHunyuanVideo, folder, torch_dtype=dtype, low_cpu_mem_usage=False)
    return set_tiling(vae, tiling).eval()


def set_tiling(vae: AutoencoderKLHunyuanVideo, tiling: bool) -> AutoencoderKLHunyuanVideo:
    """Switch tiling on or off, and return the VAE.

    With tiling, long videos are encoded and decoded in overlapping pieces along time. diffusers switches it on.
    """
    vae.tile_sample_stride_num_frames = 8  # as in the released code; in diffusers a piece starts every 12 frames
    vae.use_framewise_encoding = vae.use_framewise_decoding = tiling
    return vae


def encode(vae: AutoencoderKLHunyuanVideo, video: torch.Tensor) -> torch.Tensor:
    """Encode a uint8 video (B, 3, frames, height, width) into latents (B, T, H, W, C) with T = (frames - 1) / 4 + 1."""
    x = video.to(vae.dtype) / 127.5 - 1.0
    latents = vae.encode(x).latent_dist.mean * vae.config.scaling_factor
    return latents.movedim(1, -1)


def decode(vae: AutoencoderKLHunyuanVideo, latents: torch.Tensor, run_pieces: RunPieces = map) -> torch.Tensor | None:
    """Decode latents (B, T, H, W, C) into a uint8 video (B, 3, 4 (T - 1) + 1, 8 H, 8 W).

    With tiling, run_pieces says how the pieces are decoded; `map` decodes one after the other. If it returns None, so
    does this function.

    Raises:
        FloatingPointError: the VAE returns values that are not finite.
    """
    x = latents.movedim(-1, 1).to(vae.dtype) / vae.config.scaling_factor
    decoded = run_pieces(lambda piece: vae.decoder(vae.post_quant_conv(piece)), split(vae, x))
    if decoded is None:
        return None
    video = check_finite(blend(vae, list(decoded)).float(), "the decoded video")
    return ((video.clamp(-1.0, 1.0) + 1.0) * 127.5).round().to(torch.uint8)


def split(vae: AutoencoderKLHunyuanVideo, x: torch.Tensor) -> list[torch.Tensor]:
    """Return the overlapping pieces of x (B, C, T, H, W) along time that diffusers decodes one by one."""
    ratio = vae.temporal_compression_ratio
    length, stride = vae.tile_sample_min_num_frames // ratio, vae.tile_sample_stride_num_frames // ratio
    frames = x.shape[2]
    if not vae.use_framewise_decoding or frames <= length:
        return [x]
    return [x[:, :, start : start + length + 1] for start in range(0, frames - 1, stride)]


def blend(vae: AutoencoderKLHunyuanVideo, decoded: list[torch.Tensor]) -> torch.Tensor:
    """Join decoded pieces (B, 3, frames, height, width), as diffusers does. Each fades into the next one.

    A VAE makes one frame of the first latent of a piece, and four of every other. This one frame counts in the first
    piece only.
    """
    before, *others = decoded
    if not others:
        return before
    stride = vae.tile_sample_stride_num_frames
    overlap = vae.tile_sample_min_num_frames - stride
    parts = [before[:, :, : stride + 1]]
    for piece in others:
        before = vae.blend_t(before, piece[:, :, 1:], overlap)
        parts.append(before[:, :, :stride])
    return torch.cat(parts, dim=2)
