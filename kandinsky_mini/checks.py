"""Bad input is refused before any model runs, by an error that says what was given and what would work."""

import os
from numbers import Integral, Real
from pathlib import Path

from .saving import SUFFIXES, name_aside

PIXELS_PER_LATENT = 8
MOST_SECONDS, MOST_PIXELS = 3600, 8192  # far beyond any model: against typing errors


def check_text(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise ValueError(f"the {name} must be text, not {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"the {name} {value!r} has a broken character at position {error.start}") from error


def check_size(time_length: object, width: object, height: object, patch_size: tuple[int, int, int]) -> None:
    check_whole("time_length", time_length, "whole seconds", 0, MOST_SECONDS)
    for name, value, patch in (("width", width, patch_size[2]), ("height", height, patch_size[1])):
        unit = PIXELS_PER_LATENT * patch
        check_whole(name, value, f"a multiple of {unit} pixels", unit, MOST_PIXELS // unit * unit, unit)


def check_sampling(num_steps: object, guidance_weight: object, scheduler_scale: object) -> None:
    check_whole("num_steps", num_steps, "a whole number", 1, 1000)
    for name, value, low in (("guidance_weight", guidance_weight, -1000), ("scheduler_scale", scheduler_scale, 0.001)):
        if not _is_number(value) or not low <= value <= 1000:
            raise ValueError(f"{name} must be a finite number, {low} to 1000, not {value!r}")


def check_whole(name: str, value: object, what: str, low: int, high: int, unit: int = 1) -> None:
    """Refuse all but the multiples of unit from low to high, and name the nearest."""
    problem = f"{name} must be {what}, {low} to {high}, not {value!r}"
    if not _is_number(value):
        raise ValueError(problem)
    inside = min(max(value, low), high)
    below = int(inside // unit) * unit
    if value != below or not isinstance(value, Integral):
        near = f"is {below}" if inside == below else f"are {below} and {below + unit}"
        raise ValueError(f"{problem}; the nearest {near}")


def _is_number(value: object) -> bool:
    """Any real number, NumPy's too, but not NaN, and not a bool, which is an int to Python."""
    return isinstance(value, Real) and not isinstance(value, bool) and value == value


def check_save_path(path: str | Path, kind: str) -> Path:
    """Refuse, before hours of sampling, a path that cannot be written in the end."""
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
        name_aside(path).touch()  # the only sure test: the name may be too long, the disk read-only or full
        name_aside(path).unlink()
    except OSError as error:
        raise ValueError(f"{path} is not writable: {error.strerror}") from error
    return path
