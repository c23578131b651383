"""Third stage: the CrossDiT and both text encoders, jointly, by the flow-matching loss."""

from collections.abc import Iterator

import torch
from diffusers import AutoencoderKLHunyuanVideo
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..config import SamplingConfig
from ..models.dit import DiffusionTransformer3D
from ..models.text_embedders import TextEmbedder, TextEmbeds
from ..models.vae import decode
from ..sampling import generate, predict_velocity
from .budget import Budget, set_lr
from .captions import LANGUAGES, plain_caption
from .dataset import CaptionBuckets
from .scenes import Scene

# (latent frames, batch) of 0, 1 and 2 seconds: about the same number of tokens a step for each.
LENGTHS = ((1, 512), (7, 96), (13, 48))
EMPTY_CAPTIONS = 0.1
TIME_SHIFT = 4.0  # as in sampling, more weight near the noise, where the scene is decided


class TextToLatent(nn.Module):
    """What is trained together: the CrossDiT and the text encoders."""

    def __init__(self, dit: DiffusionTransformer3D, embedder: TextEmbedder):
        super().__init__()
        self.dit, self.embedder = dit, embedder

    def forward(self, x: torch.Tensor, time: torch.Tensor, ids: torch.Tensor, ids2: torch.Tensor) -> torch.Tensor:
        return predict_velocity(self.dit, x, time, self.embedder(ids, ids2))


def flow_loss(model: nn.Module, latents: torch.Tensor, ids: torch.Tensor, ids2: torch.Tensor) -> torch.Tensor:
    """Mean squared error of the velocity at a random time of each sample; latents (B, T, H, W, C)."""
    batch = len(latents)
    u = (torch.arange(batch, device=latents.device) + torch.rand(batch, device=latents.device)) / batch
    time = TIME_SHIFT * u / (1.0 + (TIME_SHIFT - 1.0) * u)
    noise = torch.randn_like(latents)
    t = time[:, None, None, None, None]
    velocity = model((1.0 - t) * latents + t * noise, time[:, None], ids, ids2)
    return (velocity.float() - (noise - latents)).square().mean()


def length_weights(progress: float) -> torch.Tensor:
    """How often each of LENGTHS is drawn: images first, which teach words and looks cheaply, then videos."""
    images = max(0.1, 0.9 - 2.0 * progress)
    return torch.tensor([images, 0.3 * (1.0 - images), 0.7 * (1.0 - images)])


def train_dit(
    model: TextToLatent,
    average: AveragedModel,
    latents: dict[int, torch.Tensor],
    captions: CaptionBuckets,
    budget: Budget,
    optimizer_state: dict | None = None,
    lengths: tuple[tuple[int, int], ...] = LENGTHS,
    lr: float = 2e-3,
    seed: int = 0,
) -> Iterator[tuple[int, torch.optim.Optimizer, torch.Tensor]]:
    """Train on latents {T: (N, T, H, W, C)}; sample i shows scene i modulo the number of scenes.

    Yields after each step its number, the optimizer and the loss; average follows the model.
    """
    device = next(model.parameters()).device
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    if optimizer_state is not None:
        optimizer.load_state_dict(optimizer_state)
    empty = [ids.to(device) for ids in model.embedder.tokenize([""])]
    torch.manual_seed(seed + budget.step)
    while not budget.spent:
        generator = torch.Generator().manual_seed(seed + budget.step)
        choice = torch.multinomial(length_weights(budget.progress), 1, generator=generator).item()
        frames, batch = lengths[choice]
        scenes, ids, ids2 = captions.draw(batch, generator)
        if torch.rand((), generator=generator) < EMPTY_CAPTIONS:
            ids, ids2 = (x.expand(batch, -1) for x in empty)
        repeats = len(latents[frames]) // captions.num_scenes
        rows = torch.randint(repeats, (batch,), generator=generator).to(device) * captions.num_scenes + scenes

        set_lr(optimizer, lr * budget.lr_factor)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = flow_loss(model, latents[frames][rows].float(), ids, ids2)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        average.update_parameters(model)
        budget.step += 1
        yield budget.step, optimizer, loss.detach()


@torch.no_grad()
def generate_videos(
    model: TextToLatent,
    vae: AutoencoderKLHunyuanVideo,
    prompts: list[str],
    noise: torch.Tensor,
    sampling: SamplingConfig,
) -> torch.Tensor:
    """uint8 videos (B, 3, frames, H, W) of the prompts from noise (B, T, H, W, C), as the pipeline makes them."""
    device = noise.device
    bf16 = torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")
    lengths = [model.embedder.tokenize([prompt])[0].shape[1] for prompt in prompts]
    videos: list[torch.Tensor | None] = [None] * len(prompts)
    with bf16:
        for length in sorted(set(lengths)):  # prompts of one length form a batch
            rows = [i for i, value in enumerate(lengths) if value == length]
            text = model.embedder(*(ids.to(device) for ids in model.embedder.tokenize([prompts[i] for i in rows])))
            null = model.embedder.encode("")
            null = TextEmbeds(*(part.expand(len(rows), *part.shape) for part in null))
            latents = generate(
                model.dit, noise[rows], text, null,
                sampling.num_steps, sampling.guidance_weight, sampling.scheduler_scale,
            )  # fmt: skip
            for row, video in zip(rows, torch.cat([decode(vae, part) for part in latents.split(8)]), strict=True):
                videos[row] = video
    return torch.stack(videos)


def averaged(model: TextToLatent) -> AveragedModel:
    """An exponential moving average of the weights: smoother than the last step, and what is published."""
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.999))


def evaluation_prompts(scenes: list[Scene]) -> list[str]:
    """A prompt for each scene that names all four attributes, every other one in Russian."""
    return [plain_caption(scene, LANGUAGES[i % 2]) for i, scene in enumerate(scenes)]
