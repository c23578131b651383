"""The folder of a training run, with its log and its checkpoints."""

import json
import time
from pathlib import Path

import torch

from ..parallel.groups import rank
from .budget import Budget


class Run:
    """A training run's folder, which holds log.jsonl and a checkpoint for each long stage. Only rank 0 writes to it."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.started = self.saved = time.monotonic()
        folder.mkdir(parents=True, exist_ok=True)

    def log(self, stage: str, record: dict) -> None:
        """Append a line to log.jsonl, and print it."""
        if rank() > 0:
            return
        record = {"stage": stage, "seconds": round(time.monotonic() - self.started, 1)} | record
        with (self.folder / "log.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")
        print(" ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in record.items()), flush=True)

    def save(self, name: str, budget: Budget, **parts) -> None:
        """Write a checkpoint, at most once a minute and always at the end.

        The file is written under another name and then renamed, so that a checkpoint is always complete.
        """
        if rank() > 0 or (not budget.spent and time.monotonic() - self.saved < 60):
            return
        self.saved = time.monotonic()
        state = {part: value.state_dict() for part, value in parts.items()} | {"budget": budget.state()}
        torch.save(state, self.folder / f"{name}.tmp")
        (self.folder / f"{name}.tmp").replace(self.folder / f"{name}.pt")

    def load(self, name: str, device: torch.device) -> dict | None:
        """Return the last checkpoint of this name, or None if there is none."""
        path = self.folder / f"{name}.pt"
        return torch.load(path, map_location=device) if path.exists() else None
