"""How long a training lasts, and its learning rate on the way."""

import math
import time
from dataclasses import dataclass, field

import torch


@dataclass
class Budget:
    """Optimiser steps or minutes, whichever is spent first; seconds counts those of earlier, interrupted runs."""

    steps: int
    minutes: float = math.inf
    step: int = 0
    seconds: float = 0.0
    warmup: int = 200
    started: float = field(default_factory=time.monotonic)

    def elapsed(self) -> float:
        return self.seconds + time.monotonic() - self.started

    @property
    def progress(self) -> float:
        """From 0 to 1."""
        return min(1.0, max(self.step / self.steps, self.elapsed() / (60.0 * self.minutes)))

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
