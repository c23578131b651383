"""Check the caller's arguments before any model runs. Errors say what was given and what would work."""

from pathlib import Path

from .limits import short
from .saving import SUFFIXES, check_can_save


def check_text(name: str, value: object) -> None:
    """Refuse anything but text that can be written as UTF-8."""
    if not isinstance(value, str):
        raise ValueError(f"the {name} must be text, not {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"the {name} {short(value)} has a broken character at position {error.start}") from error


def check_save_path(path: str | Path, kind: str) -> Path:
    """Refuse, before hours of sampling, a path that could not be written afterwards. kind is a key of SUFFIXES."""
    if not isinstance(path, (str, Path)):
        raise ValueError(f"save_path must be a path, not {short(path)}")
    path = Path(path)
    if path.suffix.lower() != SUFFIXES[kind]:
        raise ValueError(f"{path}: the suffix of this {kind} must be {SUFFIXES[kind]}, not {path.suffix!r}")
    check_can_save(path)
    return path
