"""The stage `dit`: train the CrossDiT and both text encoders jointly, with the flow-matching loss."""

import functools
import itertools
from collections.abc import Iterator

import torch
from diffusers import AutoencoderKLHunyuanVideo
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..config import SamplingConfig
from ..models.dit import DiffusionTransformer3D
from ..models.text_embedders import TextEmbedder
from ..models.text_embeds import TextEmbeds
from ..models.vae import decode
from ..parallel.groups import rank
from ..sampling import generate, predict_velocity
from ..world.captions import LANGUAGES, plain_caption
from ..world.scenes import Scene
from .budget import Budget, set_lr, step_generators
from .dataset import CaptionBuckets
from .gradients import Gradients

# (latent frames, videos a step) for 0, 1 and 2 seconds. Each gives about the same number of tokens a step.
LENGTHS = ((1, 512), (7, 96), (13, 48))
EMPTY_CAPTIONS = 0.1
TIME_SHIFT = 4.0  # as in sampling, it puts more weight near the noise, where the scene is decided


class TextToLatent(nn.Module):
    """The models that are trained together: the CrossDiT and the text encoders."""

    def __init__(self, dit: DiffusionTransformer3D, embedder: TextEmbedder):
        super().__init__()
        self.dit, self.embedder = dit, embedder

    def forward(self, x: torch.Tensor, time: torch.Tensor, ids: torch.Tensor, ids2: torch.Tensor) -> torch.Tensor:
        return predict_velocity(self.dit, x, time, self.embedder(ids, ids2))


def flow_loss(
    model: TextToLatent, latents: torch.Tensor, ids: torch.Tensor, ids2: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Return the mean squared error of the velocity, at a random time for each sample, as {"loss": scalar}.

    latents are (B, T, H, W, C).
    """
    latents, batch = latents.float(), len(latents)
    offsets = torch.rand(batch, dtype=torch.float32, device=latents.device)
    u = (torch.arange(batch, device=latents.device) + offsets) / batch
    time = TIME_SHIFT * u / (1.0 + (TIME_SHIFT - 1.0) * u)
    noise = torch.randn_like(latents)
    t = time[:, None, None, None, None]
    velocity = model((1.0 - t) * latents + t * noise, time[:, None], ids, ids2)
    return {"loss": (velocity.float() - (noise - latents)).square().mean()}


def length_weights(progress: float) -> torch.Tensor:
    """Return how often each of LENGTHS is drawn.

    Images come first, because they teach words and looks cheaply. Then come videos.
    """
    images = max(0.1, 0.9 - 2.0 * progress)
    return torch.tensor([images, 0.3 * (1.0 - images), 0.7 * (1.0 - images)])


def prepare(
    model: TextToLatent, captions: CaptionBuckets, lengths: tuple[tuple[int, int], ...], size: tuple[int, int, int]
) -> Gradients:
    """Return a Gradients object for the model. On a GPU, first compile the blocks and record a graph for each shape.

    Noise stands in for the data, so this can run before there is any. It takes a minute or two. size is the (H, W, C)
    of a latent.
    """
    gradients = Gradients(functools.partial(flow_loss, model), model.parameters())
    if gradients.device.type == "cuda":
        for block in model.dit.visual_transformer_blocks:
            block.compile(dynamic=True)
        texts = [(ids, ids2) for _, ids, ids2 in captions.groups] + [captions.empty]
        for (frames, batch), (ids, ids2) in itertools.product(lengths, texts):
            noise = torch.randn(batch, frames, *size, device=gradients.device, dtype=torch.bfloat16)
            gradients(noise, ids[:1].expand(batch, -1), ids2[:1].expand(batch, -1))
    return gradients


def train_dit(
    model: TextToLatent,
    gradients: Gradients,
    average: AveragedModel,
    latents: dict[int, torch.Tensor],
    captions: CaptionBuckets,
    budget: Budget,
    optimizer_state: dict | None = None,
    lengths: tuple[tuple[int, int], ...] = LENGTHS,
    lr: float = 1e-3,
    seed: int = 0,
    refine: bool = False,
) -> Iterator[tuple[int, torch.optim.Optimizer, dict[str, torch.Tensor]]]:
    """Train on latents {T: (N, T, H, W, C)}, in which sample i shows scene i modulo the number of scenes.

    After each step, yield its number, the optimizer and the parts of the loss. `average` follows the model. With
    `refine`, training does not begin with mostly images, because the model knows its words and looks already.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    if optimizer_state is not None:
        optimizer.load_state_dict(optimizer_state)
    torch.manual_seed((seed + budget.step) * 64 + rank())
    while not budget.spent:
        common, own = step_generators(seed, budget.step)
        weights = length_weights(1.0 if refine else budget.progress)
        frames, batch = lengths[torch.multinomial(weights, 1, generator=common).item()]
        scenes, ids, ids2 = captions.draw(batch, common, own)
        if torch.rand((), generator=common) < EMPTY_CAPTIONS:
            ids, ids2 = (x.expand(batch, -1) for x in captions.empty)
        repeats = len(latents[frames]) // captions.num_scenes
        rows = torch.randint(repeats, (batch,), generator=own).to(scenes.device) * captions.num_scenes + scenes

        parts = gradients(latents[frames][rows], ids, ids2)
        set_lr(optimizer, lr * budget.lr_factor)
        optimizer.step()
        average.update_parameters(model)
        budget.count_step()
        yield budget.step, optimizer, parts


@torch.no_grad()
def generate_videos(
    model: TextToLatent,
    vae: AutoencoderKLHunyuanVideo,
    prompts: list[str],
    noise: torch.Tensor,
    sampling: SamplingConfig,
) -> torch.Tensor:
    """Generate uint8 videos (B, 3, frames, H, W) of the prompts from noise (B, T, H, W, C), as the pipeline does."""
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
            latents = generate(model.dit, noise[rows], text, null, sampling)
            for row, video in zip(rows, torch.cat([decode(vae, part) for part in latents.split(8)]), strict=True):
                videos[row] = video
    return torch.stack(videos)


def averaged(model: TextToLatent) -> AveragedModel:
    """Return an exponential moving average of the model's weights.

    It is smoother than the weights of the last step, and it is published instead of them.
    """
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.999))


def evaluation_prompts(scenes: list[Scene]) -> list[str]:
    """Return a prompt for each scene that names all four attributes. Every other prompt is in Russian."""
    return [plain_caption(scene, LANGUAGES[i % 2]) for i, scene in enumerate(scenes)]
