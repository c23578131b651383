"""The folder of a training run, with its log and its checkpoints."""

import contextlib
import pickle
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from ..files import held, to_json, written_aside
from ..limits import check_finite
from ..models.checkpoint import CheckpointError
from ..parallel.groups import rank
from .budget import Budget


class Run:
    """A training run's folder, which holds log.jsonl and a checkpoint for each long stage. Only rank 0 writes to it."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.started = self.saved = time.monotonic()
        folder.mkdir(parents=True, exist_ok=True)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Keep other processes from running the same stage in this folder. Different stages may run at once.

        Raises:
            ValueError: another process runs it. The message names that process.
        """
        if rank() > 0:
            yield
            return
        with held(self.folder / f"{name}.lock"):
            yield

    def log(self, stage: str, record: dict) -> None:
        """Append a line to log.jsonl, and print it.

        Raises:
            ValueError: a number is not finite. The message names the stage and the step.
        """
        if rank() > 0:
            return
        record = {"stage": stage, "seconds": round(time.monotonic() - self.started, 1)} | record
        line = to_json(record, f"{stage}, {record}")
        with (self.folder / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        print(" ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in record.items()), flush=True)

    def save(self, name: str, budget: Budget, **parts) -> None:
        """Write a checkpoint, at most once a minute and always at the end. It is always complete.

        Raises:
            FloatingPointError: a weight is not finite. The message names the step. The last checkpoint stays.
        """
        if rank() > 0 or (not budget.spent and time.monotonic() - self.saved < 60):
            return
        self.saved = time.monotonic()
        state = {part: value.state_dict() for part, value in parts.items()} | {"budget": budget.state()}
        for key, value in state["model"].items():
            check_finite(value, f"{key} in step {budget.step} of {name}")
        save_state(state, self.folder / f"{name}.pt")

    def load(self, name: str, device: torch.device, parts: tuple[str, ...]) -> dict | None:
        """Return the last checkpoint of this name, which has these parts and "budget", or None if there is none.

        Raises:
            CheckpointError: the file is damaged, or lacks a part.
        """
        path = self.folder / f"{name}.pt"
        if not path.exists():
            return None
        state = load_state(path, device)
        if lost := [part for part in (*parts, "budget") if part not in state]:
            raise CheckpointError(f"{path} has no {lost[0]}: remove it to begin the stage anew")
        return state

    def need(self, name: str, stage: str) -> Path:
        """Return the path of what an earlier stage leaves in this folder.

        Raises:
            ValueError: it is not there yet. The message names the stage.
        """
        path = self.folder / name
        if not path.exists():
            raise ValueError(f"{path} is missing: run `launch/train_mini.py {stage} --folder {self.folder}` first")
        return path


def save_state(state: dict, path: Path) -> None:
    """Write a dict of tensors for load_state, completely or not at all."""
    with written_aside(path) as aside:
        torch.save(state, aside)


def load_state(path: Path, device: torch.device) -> dict:
    """Read a dict of tensors that save_state wrote.

    Raises:
        CheckpointError: the file is damaged, or something else. Objects other than tensors and numbers are not loaded.
    """
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{path} cannot be read: remove it to begin the stage anew") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} is no checkpoint of a training: remove it to begin the stage anew")
    return state


def resume(model: torch.nn.Module, state: dict, part: str, name: str) -> None:
    """Load a part of a checkpoint into a model.

    Raises:
        CheckpointError: it is a checkpoint of another model.
    """
    try:
        model.load_state_dict(state[part])
    except RuntimeError as error:
        cure = "use its configuration, or another --folder"
        raise CheckpointError(f"the checkpoint {name}.pt is of another model: {cure}") from error
