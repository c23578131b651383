"""Types of command-line options for the scripts. They refuse bad values before anything is measured or trained."""

from argparse import ArgumentTypeError
from collections.abc import Callable
from pathlib import Path

import torch

from ..config import ConfigError, load_config
from ..files import check_writable
from ..limits import check_real, short


def at_least(low: int) -> Callable[[str], int]:
    """Return a type for whole numbers from low upwards."""

    def whole_number(text: str) -> int:
        if not text.isdecimal() or len(text) > 18 or int(text) < low:
            raise ArgumentTypeError(f"must be a whole number of at least {low}, not {short(text)}")
        return int(text)

    return whole_number


def between(low: float, high: float) -> Callable[[str], float]:
    """Return a type for numbers from low to high."""

    def number(text: str) -> float:
        try:
            return check_real("it", float(text), low, high)
        except ValueError as error:
            raise ArgumentTypeError(f"must be a number from {low} to {high}, not {short(text)}") from error

    return number


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
        check_writable(Path(path, "record.json"))
    except OSError as error:
        raise ArgumentTypeError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise ArgumentTypeError(error) from error
    return Path(path)


def file(path: str) -> Path:
    """Accept a file that can be written, and create its folder if it does not exist."""
    folder(str(Path(path).parent))
    try:
        check_writable(path)
    except ValueError as error:
        raise ArgumentTypeError(error) from error
    return Path(path)
