"""Options that the measuring scripts share. A bad value is refused before anything is measured."""

import os
from argparse import ArgumentTypeError
from collections.abc import Callable
from pathlib import Path

import torch

from ..config import ConfigError, load_config


def at_least(low: int) -> Callable[[str], int]:
    """A whole number from low on."""

    def whole_number(text: str) -> int:
        if not text.lstrip("-").isdecimal() or int(text) < low:
            raise ArgumentTypeError(f"must be a whole number from {low} on, not {text!r}")
        return int(text)

    return whole_number


def config_file(path: str) -> str:
    """The path of a configuration that can be read."""
    try:
        load_config(path)
    except ConfigError as error:
        raise ArgumentTypeError(error) from error
    return path


def device(name: str) -> str:
    """A device that is there. CUDA is only asked how many there are: a rank chooses its own later."""
    try:
        wanted = torch.device(name)
    except RuntimeError as error:
        raise ArgumentTypeError(f"{name!r} is no device: use cpu, cuda or such as cuda:0") from error
    if wanted.type == "cuda" and (wanted.index or 0) >= torch.cuda.device_count():
        raise ArgumentTypeError(f"{name!r} is not here: PyTorch finds {torch.cuda.device_count()} GPUs")
    return name


def folder(path: str) -> Path:
    """A folder that can be written in; made if it is not there."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
        probe = Path(path, f".{os.getpid()}")  # every rank tries
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ArgumentTypeError(f"{path}: {error.strerror}") from error
    return Path(path)
