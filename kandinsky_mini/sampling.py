"""Flow matching: from noise to a latent along the velocity that the model predicts.

A noisy latent is x_t = (1 - t) * x_0 + t * noise, and its velocity is noise - x_0. Sampling starts at t = 1, which is
pure noise, and takes Euler steps down to t = 0.
"""

from collections.abc import Callable, Iterable

import torch
from torch import nn
from tqdm.auto import tqdm

from .config import SamplingConfig
from .limits import check_finite
from .models.attention import kernel_of, preferred_kernels
from .models.dit import DiffusionTransformer3D
from .models.text_embeds import TextEmbeds

# The velocity that the model predicts for a text, and a way to get it for several texts, in their order: `map`, or
# parallel/guidance.py's SideBySide.
Velocity = Callable[[TextEmbeds], torch.Tensor]
Branches = Callable[[Velocity, list[TextEmbeds]], Iterable[torch.Tensor]]


def time_steps(num_steps: int, scheduler_scale: float) -> torch.Tensor:
    """Return the times (num_steps + 1,) between which the steps run, from 1 (noise) down to 0 (clean).

    A scale above 1 spends more of the steps near the noise.
    """
    t = torch.linspace(1.0, 0.0, num_steps + 1, dtype=torch.float32, device="cpu")
    return scheduler_scale * t / (1.0 + (scheduler_scale - 1.0) * t)


def draw_noise(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Draw float32 noise on the CPU, so that one seed gives the same on every device and any number of ranks."""
    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed), dtype=torch.float32, device="cpu")


def rope_positions(dit: DiffusionTransformer3D, x: torch.Tensor) -> list[torch.Tensor]:
    """Return the positions of the patches of a latent (..., T, H, W, C) along time, height and width."""
    sizes = zip(x.shape[-4:-1], dit.config.patch_size, strict=True)
    return [torch.arange(size // patch, device=x.device) for size, patch in sizes]


def predict_velocity(
    dit: DiffusionTransformer3D,
    x: torch.Tensor,
    time: torch.Tensor,
    text: TextEmbeds,
    scale_factor: tuple[float, float, float] = (1.0, 1.0, 1.0),
) -> torch.Tensor:
    """Run one forward: return the velocity of a latent x (..., T, H, W, C), with the shape of x.

    time (..., 1) runs from 0 (clean) to 1 (noise). The model itself counts from 0 to 1000.
    """
    if dit.config.visual_cond:  # there is nothing to continue from: an empty latent and a mask of zeros
        x = torch.cat([x, torch.zeros_like(x), torch.zeros_like(x[..., :1])], dim=-1)
    text_rope_pos = torch.arange(text.text.shape[-2], device=x.device)
    positions = rope_positions(dit, x)
    embeds = text.text.to(dit.dtype), text.pooled.to(dit.dtype)  # CLIP's is in float32
    return dit(x, *embeds, time * 1000.0, positions, text_rope_pos, scale_factor)


def guided_velocity(
    dit: DiffusionTransformer3D,
    x: torch.Tensor,
    time: torch.Tensor,
    text: TextEmbeds,
    null_text: TextEmbeds | None,
    sampling: SamplingConfig,
    branches: Branches = map,
) -> torch.Tensor:
    """Return the guided velocity of a latent x (..., T, H, W, C), in float32 and with the shape of x.

    v = v_null + guidance_weight * (v_text - v_null). Without a null text the result is v_text, from one forward.
    branches says how the two forwards are run; `map` runs one after the other.
    """
    x = x.to(dit.dtype)

    def velocity_of(each: TextEmbeds) -> torch.Tensor:
        return predict_velocity(dit, x, time, each, sampling.scale_factor)

    if null_text is None:
        return velocity_of(text).float()
    velocity, null_velocity = (each.float() for each in branches(velocity_of, [text, null_text]))
    return null_velocity + sampling.guidance_weight * (velocity - null_velocity)


@torch.no_grad()  # inference_mode would change the collectives of a sharded model
def generate(
    dit: DiffusionTransformer3D,
    noise: torch.Tensor,
    text: TextEmbeds,
    null_text: TextEmbeds | None,
    sampling: SamplingConfig,
    progress: bool = False,
    callback: Callable[[int, torch.Tensor], None] | None = None,
    branches: Branches = map,
) -> torch.Tensor:
    """Turn float32 noise (..., T, H, W, C) on the model's device into a latent of the same shape.

    Args:
        null_text: what the guidance moves away from; None where the guidance weight is 1.
        callback: called as callback(step, latent) after each step. The first step is step 1.
        branches: how the two forwards of a guided step are run.

    Raises:
        FloatingPointError: a velocity is not finite. The message names the step.
    """
    x, kernel = noise, kernel_of(dit)
    times = time_steps(sampling.num_steps, sampling.scheduler_scale).to(x.device)
    for step in tqdm(range(sampling.num_steps), disable=not progress, desc="sampling"):
        time = times[step].expand(*x.shape[:-4], 1)
        try:
            with preferred_kernels(kernel):
                velocity = guided_velocity(dit, x, time, text, null_text, sampling, branches)
        except RuntimeError as error:  # for example, this rank has waited in vain for another one
            place = _innermost_module(error, dit) or "the exchange of the branches"
            error.add_note(f"in step {step + 1} of {sampling.num_steps}, in {place}")
            raise
        check_finite(velocity, f"the velocity in step {step + 1} of {sampling.num_steps}")
        x = x + (times[step + 1] - times[step]) * velocity
        if callback is not None:
            callback(step + 1, x)
    return x


def _innermost_module(error: BaseException, model: nn.Module) -> str:
    """Return the name of the model's module that an error came from, found in the error's traceback."""
    names = {id(module): name for name, module in model.named_modules()}
    found = ""
    traceback = error.__traceback__
    while traceback is not None:
        found = names.get(id(traceback.tb_frame.f_locals.get("self")), found)
        traceback = traceback.tb_next
    return found
