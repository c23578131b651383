"""How long a training lasts, and its learning rate on the way."""

import math
import time
from dataclasses import dataclass, field

import torch

from ..distributed import from_rank_0, rank, world_size


@dataclass
class Budget:
    """Optimiser steps or minutes, whichever is spent first; seconds counts those of earlier, interrupted runs."""

    steps: int
    minutes: float = math.inf
    step: int = 0
    seconds: float = 0.0
    warmup: int = 200
    clock: float = 0.0
    started: float = field(default_factory=time.monotonic)

    def elapsed(self) -> float:
        return self.seconds + time.monotonic() - self.started

    @property
    def progress(self) -> float:
        """From 0 to 1."""
        return min(1.0, max(self.step / self.steps, self.clock))

    def count_step(self) -> None:
        self.step += 1
        # All ranks must stop at the same step, so they go by rank 0's clock, asked seldom since that costs time.
        if world_size() == 1 or self.step % 20 == 0:
            self.clock = from_rank_0(lambda: self.elapsed() / (60.0 * self.minutes))

    @property
    def spent(self) -> bool:
        return self.progress >= 1.0

    @property
    def lr_factor(self) -> float:
        """Linear warm-up, then a cosine down to zero."""
        return min(1.0, (self.step + 1) / self.warmup) * 0.5 * (1.0 + math.cos(math.pi * self.progress))

    def state(self) -> dict[str, float]:
        return {"step": self.step, "seconds": self.elapsed()}


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


def step_generators(seed: int, step: int) -> tuple[torch.Generator, torch.Generator]:
    """Chances of a step: those that all ranks must agree on, and this rank's own."""
    return tuple(torch.Generator().manual_seed((seed * 1_000_003 + step) * 64 + k) for k in (63, rank()))
