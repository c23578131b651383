"""A small classifier that looks at a video's pixels and says whether the video shows what its prompt asks for.

We then say that the prompt "came true". The scorer is trained on rendered videos only, never on generated ones. On
rendered videos of held-out scenes it must be right almost always, which evaluate_mini.py checks first.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from ..models.checkpoint import load_checkpoint
from ..world.scenes import ALLOWED, Scene

ATTRIBUTES = tuple(ALLOWED)


class Scorer(nn.Module):
    """Turn a uint8 video (B, 3, frames, H, W) into logits for each attribute, {name: (B, number of values)}."""

    def __init__(self, width: int = 24):
        super().__init__()
        widths = [3, width, 2 * width, 4 * width, 4 * width, 4 * width]
        self.stages = nn.ModuleList(
            nn.Sequential(
                nn.Conv3d(a, b, 3, stride=(1 if i == 0 else 2, 2, 2), padding=1), nn.GroupNorm(8, b), nn.GELU()
            )
            for i, (a, b) in enumerate(zip(widths[:-1], widths[1:], strict=True))
        )
        self.heads = nn.ModuleDict({name: nn.Linear(2 * widths[-1], len(ALLOWED[name])) for name in ATTRIBUTES})

    def forward(self, video: torch.Tensor) -> dict[str, torch.Tensor]:
        # Half the frames, at half the size, show everything that the scorer is asked about.
        x = F.avg_pool3d(video[:, :, ::2].to(self.heads["animal"].weight.dtype) / 127.5 - 1.0, (1, 2, 2))
        for stage in self.stages:
            x = stage(x)
        x = torch.cat([x.mean((2, 3, 4)), x.amax((2, 3, 4))], dim=-1)
        return {name: head(x) for name, head in self.heads.items()}


def load_scorer(path: str | Path) -> Scorer:
    """Load a trained scorer from a .safetensors file."""
    return load_checkpoint(Scorer(), path).eval()


def targets(scenes: list[Scene], device: torch.device | str) -> dict[str, torch.Tensor]:
    """Return the right answers as {name: (B,) indices}."""
    return {
        name: torch.tensor([ALLOWED[name].index(getattr(scene, name)) for scene in scenes], device=device)
        for name in ATTRIBUTES
    }


def train_scorer(videos: torch.Tensor, scenes: list[Scene], steps: int, batch: int = 32, seed: int = 0) -> Scorer:
    """Train a scorer on uint8 videos (N, 3, frames, H, W) and their scenes. The videos stay where they are."""
    device = videos.device
    torch.manual_seed(seed)
    scorer = Scorer().to(device)
    optimizer = torch.optim.AdamW(scorer.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps)
    answers = targets(scenes, device)
    for _ in range(steps):
        rows = torch.randint(len(videos), (batch,), device=device)
        noisy = videos[rows].float()
        # Generated videos are a little blurred and noisy. Training adds noise, so that the scorer learns not to mind.
        noisy = (noisy + torch.randn_like(noisy) * 12.0 * torch.rand(batch, 1, 1, 1, 1, device=device)).clamp(0, 255)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            logits = scorer(noisy)
        loss = sum(F.cross_entropy(logits[name].float(), answers[name][rows]) for name in ATTRIBUTES)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return scorer.eval()


@torch.no_grad()
def judge(scorer: Scorer, videos: torch.Tensor, scenes: list[Scene], batch: int = 16) -> dict[str, torch.Tensor]:
    """Return whether each attribute of each uint8 video (N, 3, frames, H, W) came true, as {name: (N,) bool}.

    The key "all" says whether every attribute did.
    """
    answers = targets(scenes, videos.device)
    logits = [scorer(part) for part in videos.split(batch)]
    right = {name: torch.cat([part[name] for part in logits]).argmax(-1) == answers[name] for name in ATTRIBUTES}
    return right | {"all": torch.stack(list(right.values())).all(0)}


def score(scorer: Scorer, videos: torch.Tensor, scenes: list[Scene]) -> dict[str, float]:
    """Return the share of the videos, 0 to 1, in which each attribute came true, or "all" of them at once."""
    return {name: right.float().mean().item() for name, right in judge(scorer, videos, scenes).items()}
