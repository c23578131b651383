"""Types of command-line options for the measuring scripts. They refuse bad values before anything is measured."""

import os
from argparse import ArgumentTypeError
from collections.abc import Callable
from pathlib import Path

import torch

from ..config import ConfigError, load_config


def at_least(low: int) -> Callable[[str], int]:
    """Return a type for whole numbers from low upwards."""

    def whole_number(text: str) -> int:
        if not text.lstrip("-").isdecimal() or int(text) < low:
            raise ArgumentTypeError(f"must be a whole number of at least {low}, not {text!r}")
        return int(text)

    return whole_number


def config_file(path: str) -> str:
    """Accept the path of a configuration that can be read."""
    try:
        load_config(path)
    except ConfigError as error:
        raise ArgumentTypeError(error) from error
    return path


def device(name: str) -> str:
    """Accept the name of a device. For CUDA, check that the GPU exists.

    This only counts the GPUs and does not initialise CUDA, because each rank chooses its own GPU later.
    """
    try:
        wanted = torch.device(name)
    except RuntimeError as error:
        raise ArgumentTypeError(f"{name!r} is not a device: use cpu, cuda, or a numbered GPU such as cuda:0") from error
    if wanted.type == "cuda" and (wanted.index or 0) >= torch.cuda.device_count():
        raise ArgumentTypeError(f"{name!r} does not exist here: PyTorch finds {torch.cuda.device_count()} GPUs")
    return name


def folder(path: str) -> Path:
    """Accept a folder that can be written to, and create it if it does not exist."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
        probe = Path(path, f".{os.getpid()}")  # one for each rank, since all of them try
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ArgumentTypeError(f"{path}: {error.strerror}") from error
    return Path(path)
