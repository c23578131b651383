"""Configurations: frozen dataclasses, read from YAML, in which every key is known and has its type.

Paths of weights are relative to the repository's root.
"""

import dataclasses
import typing
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = Path(__file__).resolve().parent / "configs"


class ConfigError(ValueError):
    """A configuration has a wrong key or value. Names the file and the key."""


@dataclass(frozen=True)
class DiTConfig:
    """The arguments of DiffusionTransformer3D."""

    in_visual_dim: int
    in_text_dim: int
    in_text_dim2: int
    time_dim: int
    out_visual_dim: int
    patch_size: tuple[int, int, int]
    model_dim: int
    ff_dim: int
    num_text_blocks: int
    num_visual_blocks: int
    axes_dims: tuple[int, int, int]
    visual_cond: bool


@dataclass(frozen=True)
class TextConfig:
    """prompt_template has one {}; the first crop_start tokens belong to the template and are cut off."""

    prompt_template: str
    crop_start: int
    max_length: int
    pooled_max_length: int
    negative_prompt: str
    known_words: str


@dataclass(frozen=True)
class VAEConfig:
    """tiling: decode in overlapping pieces along time, which bounds the memory of long videos."""

    tiling: bool


@dataclass(frozen=True)
class SamplingConfig:
    """Defaults of a call of the pipeline; scale_factor divides the RoPE angles of time, height and width."""

    time_length: int
    width: int
    height: int
    num_steps: int
    guidance_weight: float
    scheduler_scale: float
    scale_factor: tuple[float, float, float]


@dataclass(frozen=True)
class WeightsConfig:
    dit: str
    vae: str
    text_encoder: str
    text_encoder2: str


@dataclass(frozen=True)
class Config:
    name: str
    dit: DiTConfig
    text: TextConfig
    vae: VAEConfig
    sampling: SamplingConfig
    weights: WeightsConfig


def load_config(path: str | Path | None = None) -> Config:
    """Read a YAML configuration; None is configs/mini.yaml.

    Raises:
        ConfigError: no such file, not YAML, an unknown or missing key, a value of the wrong type.
    """
    path = CONFIGS / "mini.yaml" if path is None else Path(path)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror}") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: not text, or an impossible date
        raise ConfigError(f"{path} is not YAML: {error}") from error
    config = _build(Config, values, str(path))
    if config.text.prompt_template.count("{}") != 1:
        raise ConfigError(f"{path}: text: prompt_template: {config.text.prompt_template!r} needs one {{}}")
    return config


def _build(kind: type, value: object, where: str):
    """Make a value of the given type from YAML's; `where` names the file and the key in errors."""
    if dataclasses.is_dataclass(kind):
        return _build_dataclass(kind, value, where)
    if typing.get_origin(kind) is tuple:
        kinds = typing.get_args(kind)
        if not isinstance(value, list) or len(value) != len(kinds):
            raise ConfigError(f"{where}: {value!r} is not a list of {len(kinds)}")
        return tuple(_build(k, v, f"{where}[{i}]") for i, (k, v) in enumerate(zip(kinds, value, strict=True)))
    if kind is float and type(value) is int:
        return float(value)
    # `type(...) is` and not isinstance, because a bool is an int to Python.
    if type(value) is not kind:
        raise ConfigError(f"{where}: {value!r} is not of type {kind.__name__}")
    return value


def _build_dataclass(kind: type, value: object, where: str):
    hints = typing.get_type_hints(kind)
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: expected the keys {', '.join(hints)}")
    if unknown := [key for key in value if key not in hints]:
        raise ConfigError(f"{where}: unknown key {unknown[0]!r}; known are {', '.join(hints)}")
    if missing := [key for key in hints if key not in value]:
        raise ConfigError(f"{where}: missing key {missing[0]!r}")
    return kind(**{key: _build(hints[key], value[key], f"{where}: {key}") for key in hints})
