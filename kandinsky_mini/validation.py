"""Check the caller's arguments before any model runs. Errors say what was given and what would work."""

import dataclasses
import os
from numbers import Integral, Real
from pathlib import Path

from .config import PIXELS_PER_LATENT, SamplingConfig
from .saving import SUFFIXES, name_aside

MOST_SECONDS, MOST_PIXELS = 3600, 8192  # far beyond any model: these catch typing errors


def check_text(name: str, value: object) -> None:
    """Refuse anything but text that can be written as UTF-8."""
    if not isinstance(value, str):
        raise ValueError(f"the {name} must be text, not {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"the {name} {value!r} has a broken character at position {error.start}") from error


def check_sampling(sampling: SamplingConfig, patch_size: tuple[int, int, int]) -> SamplingConfig:
    """Check the settings, and return them with NumPy numbers turned into plain Python numbers.

    Width and height must hold whole patches of the latent.

    Raises:
        ValueError: a setting cannot be sampled. The message names it and says which values work.
    """
    check_whole("time_length", sampling.time_length, "whole seconds", 0, MOST_SECONDS)
    for name, patch in (("width", patch_size[2]), ("height", patch_size[1])):
        unit = PIXELS_PER_LATENT * patch
        most = MOST_PIXELS // unit * unit
        check_whole(name, getattr(sampling, name), f"a multiple of {unit} pixels", unit, most, unit)
    check_whole("num_steps", sampling.num_steps, "a whole number", 1, 1000)
    for name, low in (("guidance_weight", -1000), ("scheduler_scale", 0.001)):
        value = getattr(sampling, name)
        if not _is_number(value) or not low <= value <= 1000:
            raise ValueError(f"{name} must be a finite number, {low} to 1000, not {value!r}")
    whole = {name: int(getattr(sampling, name)) for name in ("time_length", "width", "height", "num_steps")}
    real = {name: float(getattr(sampling, name)) for name in ("guidance_weight", "scheduler_scale")}
    return dataclasses.replace(sampling, **whole, **real)


def check_whole(name: str, value: object, what: str, low: int, high: int, unit: int = 1) -> None:
    """Raise ValueError unless value is a multiple of unit from low to high. For a number, name the nearest ones."""
    problem = f"{name} must be {what}, {low} to {high}, not {value!r}"
    if not _is_number(value):
        raise ValueError(problem)
    inside = min(max(value, low), high)
    below = int(inside // unit) * unit
    if value != below or not isinstance(value, Integral):
        near = f"is {below}" if inside == below else f"are {below} and {below + unit}"
        raise ValueError(f"{problem}; the nearest {near}")


def _is_number(value: object) -> bool:
    """Accept any real number, NumPy's included, but neither NaN nor a bool, which to Python is an int."""
    return isinstance(value, Real) and not isinstance(value, bool) and value == value


def check_save_path(path: str | Path, kind: str) -> Path:
    """Refuse, before hours of sampling, a path that could not be written afterwards. kind is a key of SUFFIXES."""
    if not isinstance(path, (str, Path)):
        raise ValueError(f"save_path must be a path, not {path!r}")
    path = Path(path)
    if path.suffix.lower() != SUFFIXES[kind]:
        raise ValueError(f"{path}: the suffix of this {kind} must be {SUFFIXES[kind]}, not {path.suffix!r}")
    try:
        if not path.parent.is_dir():
            raise ValueError(f"{path}: there is no folder {path.parent}")
        if path.is_dir():
            raise ValueError(f"{path} is a folder, not a file")
        if path.exists() and not os.access(path, os.W_OK):
            raise ValueError(f"{path} is not writable")
        name_aside(path).touch()  # only trying tells whether the name is too long, or the disk read-only or full
        name_aside(path).unlink()
    except OSError as error:
        raise ValueError(f"{path} is not writable: {error.strerror}") from error
    return path
