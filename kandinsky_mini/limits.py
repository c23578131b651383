"""Check numbers that people give and that models compute. Errors say what was given and what would work."""

import reprlib
from numbers import Integral, Real

import torch

_short = reprlib.Repr()
_short.maxstring, _short.maxother, _short.maxlong, _short.maxlevel = 80, 80, 60, 2


def short(value: object) -> str:
    """Return the repr of a value for a message, cut if it is long."""
    return _short.repr(value)


def check_whole(name: str, value: object, what: str, low: int, high: int, unit: int = 1) -> int:
    """Return the value as an int if it is a multiple of unit from low to high.

    The int matters: NumPy's small integers overflow when they are multiplied.

    Raises:
        ValueError: it is not. For a number, the message names the nearest ones that are.
    """
    problem = f"{name} must be {what}, {low} to {high}, not {short(value)}"
    if not _is_number(value):
        raise ValueError(problem)
    inside = min(max(value, low), high)
    below = int(inside) // unit * unit
    if value != below or not isinstance(value, Integral):
        near = f"is {below}" if inside == below else f"are {below} and {below + unit}"
        raise ValueError(f"{problem}; the nearest {near}")
    return below


def check_real(name: str, value: object, low: float, high: float) -> float:
    """Return the value as a float if it is a number from low to high.

    Raises:
        ValueError: it is not.
    """
    if not _is_number(value) or not low <= value <= high:
        raise ValueError(f"{name} must be a finite number, {low} to {high}, not {short(value)}")
    return float(value)


def check_finite(tensor: torch.Tensor, what: str) -> torch.Tensor:
    """Return the tensor if it holds neither NaN nor an infinity.

    Raises:
        FloatingPointError: it does. The message begins with `what`.
    """
    # Any NaN or infinity shows in the sum, and a sum needs no memory. On the meta device there are no values to check.
    if not tensor.is_meta and not tensor.sum().isfinite():
        raise FloatingPointError(f"{what} is not finite: are the weights damaged, or a setting extreme?")
    return tensor


def _is_number(value: object) -> bool:
    """Accept any real number, NumPy's included, but neither NaN nor a bool, which to Python is an int."""
    return isinstance(value, Real) and not isinstance(value, bool) and value == value
