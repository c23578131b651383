"""How long a training run lasts, and how its learning rate changes on the way."""

import math
import time
from dataclasses import dataclass, field

import torch

from ..parallel.groups import from_rank_0, rank, world_size


@dataclass
class Budget:
    """A budget of optimiser steps and minutes. Training ends as soon as either is spent.

    `seconds` counts the time of earlier runs that were interrupted. `clock` is the share of the minutes that rank 0 has
    spent.
    """

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
        """The share of the budget that is spent, from 0 to 1."""
        return min(1.0, max(self.step / self.steps, self.clock))

    def count_step(self) -> None:
        self.step += 1
        # All ranks must stop at the same step, so they all go by rank 0's clock.
        # They seldom ask for it, because asking takes time.
        if world_size() == 1 or self.step % 20 == 0:
            self.clock = from_rank_0(lambda: self.elapsed() / (60.0 * self.minutes))

    @property
    def spent(self) -> bool:
        return self.progress >= 1.0

    @property
    def lr_factor(self) -> float:
        """The factor of the learning rate: a linear warm-up, then a cosine down to zero."""
        return min(1.0, (self.step + 1) / self.warmup) * 0.5 * (1.0 + math.cos(math.pi * self.progress))

    def state(self) -> dict[str, float]:
        return {"step": self.step, "seconds": self.elapsed()}


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


def step_generators(seed: int, step: int) -> tuple[torch.Generator, torch.Generator]:
    """Return two generators for a step: one for what all ranks must agree on, and this rank's own."""
    # No rank has the number 63, as long as there are fewer than 64.
    return tuple(torch.Generator("cpu").manual_seed((seed * 1_000_003 + step) * 64 + k) for k in (63, rank()))
