"""Flow matching: from noise to a latent along the velocity that the model predicts.

A noisy latent is x_t = (1 - t) * x_0 + t * noise, and its velocity noise - x_0. Sampling starts at t = 1 (noise)
and takes Euler steps down to t = 0.
"""

from collections.abc import Callable

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm.auto import tqdm

from .distributed import innermost_module
from .models.dit import DiffusionTransformer3D
from .models.text_embedders import TextEmbeds

# cuDNN's before the flash kernel, which PyTorch takes by itself: on an H100 it is the quicker one. What a device or a
# shape does not allow is passed over.
KERNELS = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]


def time_steps(num_steps: int, scheduler_scale: float) -> torch.Tensor:
    """num_steps + 1 times from 1 to 0; a scale above 1 spends more of the steps near the noise."""
    t = torch.linspace(1.0, 0.0, num_steps + 1)
    return scheduler_scale * t / (1.0 + (scheduler_scale - 1.0) * t)


def draw_noise(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Always drawn on the CPU: one seed gives the same noise on every device and any number of ranks."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def rope_positions(dit: DiffusionTransformer3D, x: torch.Tensor) -> list[torch.Tensor]:
    """Positions of the patches of a latent (..., T, H, W, C) along time, height and width."""
    sizes = zip(x.shape[-4:-1], dit.patch_size, strict=True)
    return [torch.arange(size // patch, device=x.device) for size, patch in sizes]


def predict_velocity(
    dit: DiffusionTransformer3D,
    x: torch.Tensor,
    time: torch.Tensor,
    text: TextEmbeds,
    scale_factor: tuple[float, float, float] = (1.0, 1.0, 1.0),
) -> torch.Tensor:
    """One forward of the model: latent x (..., T, H, W, C) at time (..., 1) in 0 to 1 -> velocity like x."""
    if dit.visual_cond:  # nothing to continue from: an empty latent and a mask of zeros
        x = torch.cat([x, torch.zeros_like(x), torch.zeros_like(x[..., :1])], dim=-1)
    text_rope_pos = torch.arange(text.text.shape[-2], device=x.device)
    positions = rope_positions(dit, x)
    return dit(x, text.text, text.pooled, time * 1000.0, positions, text_rope_pos, scale_factor)


@sdpa_kernel(KERNELS, set_priority=True)
@torch.no_grad()  # not inference_mode: that changes the collectives of a sharded model
def generate(
    dit: DiffusionTransformer3D,
    noise: torch.Tensor,
    text: TextEmbeds,
    null_text: TextEmbeds | None,
    num_steps: int,
    guidance_weight: float,
    scheduler_scale: float,
    scale_factor: tuple[float, float, float] = (1.0, 1.0, 1.0),
    dtype: torch.dtype = torch.float32,
    progress: bool = False,
    callback: Callable[[int, torch.Tensor], None] | None = None,
) -> torch.Tensor:
    """Noise (..., T, H, W, C), float32, on the model's device -> latent like it.

    With null_text each step is two forwards, and the guidance moves away from what an empty prompt gives:
    v = v_null + guidance_weight * (v_text - v_null). Without it, one forward.
    callback(step, latent) is called after each step, with step counted from 1.
    """
    x = noise
    times = time_steps(num_steps, scheduler_scale).to(x.device)
    for step in tqdm(range(num_steps), disable=not progress, desc="sampling"):
        time = times[step].expand(*x.shape[:-4], 1)
        try:
            velocity = predict_velocity(dit, x.to(dtype), time, text, scale_factor).float()
            if null_text is not None:
                null_velocity = predict_velocity(dit, x.to(dtype), time, null_text, scale_factor).float()
                velocity = null_velocity + guidance_weight * (velocity - null_velocity)
        except RuntimeError as error:  # such as a rank that waited in vain for another one
            error.add_note(f"in step {step + 1} of {num_steps}, in {innermost_module(error, dit)}")
            raise
        x = x + (times[step + 1] - times[step]) * velocity
        if callback is not None:
            callback(step + 1, x)
    return x
