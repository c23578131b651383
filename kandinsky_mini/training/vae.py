"""The stage `vae`: train a VAE that packs 4 frames of 8 x 8 pixels into 16 numbers."""

import functools
from collections.abc import Iterator

import torch
from diffusers import AutoencoderKLHunyuanVideo

from ..models.vae import decode, encode
from ..parallel.groups import rank
from .budget import Budget, set_lr, step_generators
from .gradients import Gradients

# (frames, clips a step). Clips have several lengths, because the group norms see a whole clip.
CLIPS = ((1, 24), (9, 4), (25, 2))
KL_WEIGHT = 1e-4


def vae_loss(vae: AutoencoderKLHunyuanVideo, clips: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the loss of reconstructing uint8 clips (B, 3, frames, H, W), and its parts "mse" and "kl".

    It includes a little KL, which keeps the latents smooth.
    """
    x = clips.float() / 127.5 - 1.0
    posterior = vae.encode(x).latent_dist
    out = vae.decode(posterior.sample()).sample.float()
    error = out - x
    # Edges count once more. An outline that is a pixel off costs little on average, but it is what the eye sees.
    edges = sum(error.diff(dim=dim).abs().mean() for dim in (-1, -2))
    mse = error.square().mean()
    kl = 0.5 * (posterior.mean.square() + posterior.var - 1.0 - posterior.logvar).float().mean()
    loss = error.abs().mean() + 4.0 * mse + 0.5 * edges + KL_WEIGHT * kl
    return {"loss": loss, "mse": mse, "kl": kl}


def clip_weights(progress: float) -> torch.Tensor:
    """Return how often each of CLIPS is drawn.

    At first, most are single pictures. The frames of a clip look alike, so as many single pictures teach more.
    """
    pictures = max(0.1, 0.8 - 1.4 * progress)
    return torch.tensor([pictures, 0.6 * (1.0 - pictures), 0.4 * (1.0 - pictures)])


def train_vae(
    vae: AutoencoderKLHunyuanVideo,
    videos: torch.Tensor,
    budget: Budget,
    optimizer_state: dict | None = None,
    clips: tuple = CLIPS,
    lr: float = 4e-4,
    seed: int = 0,
    refine: bool = False,
) -> Iterator[tuple[int, torch.optim.Optimizer, dict[str, torch.Tensor]]]:
    """Train on uint8 videos (N, 3, frames, H, W), which stay on their device.

    After each step, yield its number, the optimizer and the parts of the loss. With `refine`, training does not begin
    with mostly single pictures.
    """
    vae.train()
    torch.manual_seed((seed + budget.step) * 64 + rank())
    gradients = Gradients(functools.partial(vae_loss, vae), vae.parameters())
    optimizer = torch.optim.AdamW(vae.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    if optimizer_state is not None:
        optimizer.load_state_dict(optimizer_state)
    while not budget.spent:
        common, own = step_generators(seed, budget.step)
        weights = clip_weights(1.0 if refine else budget.progress)
        frames, batch = clips[torch.multinomial(weights, 1, generator=common).item()]
        parts = gradients(draw_clips(videos, frames, batch, own))
        set_lr(optimizer, lr * budget.lr_factor)
        optimizer.step()
        budget.count_step()
        yield budget.step, optimizer, parts
    vae.eval()


def draw_clips(videos: torch.Tensor, frames: int, batch: int, generator: torch.Generator) -> torch.Tensor:
    """Draw a batch of uint8 clips (batch, 3, frames, H, W), each from a random place in a random video."""
    rows = torch.randint(len(videos), (batch,), generator=generator).tolist()
    last = videos.shape[2] - frames
    starts = torch.randint(last + 1, (batch,), generator=generator).tolist()
    clips = [videos[row, :, start : start + frames] for row, start in zip(rows, starts, strict=True)]
    return torch.stack(clips)


@torch.no_grad()
def normalise_latents(vae: AutoencoderKLHunyuanVideo, videos: torch.Tensor) -> None:
    """Give every latent channel exactly mean 0 and standard deviation 1 over the videos.

    The encoder ends with a 1 x 1 x 1 convolution, and the decoder begins with one. These two absorb the change.
    """
    latents = torch.cat([encode(vae, part) for part in videos.split(8)])
    mean, std = latents.mean((0, 1, 2, 3)), latents.std((0, 1, 2, 3))
    channels = len(mean)
    out, into = vae.quant_conv, vae.post_quant_conv
    out.weight[:channels] /= std[:, None, None, None, None]
    out.bias[:channels] = (out.bias[:channels] - mean) / std
    out.bias[channels:] -= 2.0 * std.log()  # the second half is the log variance
    into.bias += (into.weight[..., 0, 0, 0] * mean).sum(1)
    into.weight *= std[None, :, None, None, None]


@torch.no_grad()
def psnr(vae: AutoencoderKLHunyuanVideo, videos: torch.Tensor) -> float:
    """Return the peak signal-to-noise ratio in dB of encoded and decoded uint8 videos, averaged over the videos."""
    values = []
    for video in videos.split(8):
        error = (decode(vae, encode(vae, video)).float() - video.float()) / 255.0
        values.append(-10.0 * torch.log10(error.square().mean((1, 2, 3, 4))))
    return torch.cat(values).mean().item()
