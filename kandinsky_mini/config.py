"""Read YAML configurations into frozen dataclasses. An unknown key, a missing key or a wrong type is an error.

Paths of weights are relative to the root of the repository.
"""

import dataclasses
import typing
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = Path(__file__).resolve().parent / "configs"

FPS = 24  # frames a second, in every video that is trained on, generated or saved
# One position of a latent stands for 8 x 8 pixels of 4 frames. The first frame has a latent frame to itself.
PIXELS_PER_LATENT, FRAMES_PER_LATENT = 8, 4


class ConfigError(ValueError):
    """A configuration has a wrong key or value. The message names the file and the key."""


@dataclass(frozen=True)
class DiTConfig:
    """The sizes of DiffusionTransformer3D.

    patch_size and axes_dims are ordered (time, height, width). axes_dims says how many channels of a head encode each
    of the three positions; their sum is head_dim. With visual_cond the model also takes a latent to continue from.
    """

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

    @property
    def head_dim(self) -> int:
        return sum(self.axes_dims)

    @property
    def num_heads(self) -> int:
        return self.model_dim // self.head_dim


@dataclass(frozen=True)
class TextConfig:
    """How prompts are encoded.

    The prompt takes the place of {} in prompt_template. The first crop_start tokens belong to the template and are cut
    off afterwards. Prompts longer than max_length tokens, or pooled_max_length for CLIP, are truncated. known_words
    tells a person which words the model was trained on. It is empty if the model takes any word.
    """

    prompt_template: str
    crop_start: int
    max_length: int
    pooled_max_length: int
    negative_prompt: str
    known_words: str


@dataclass(frozen=True)
class VAEConfig:
    """With tiling, long videos are decoded in overlapping pieces along time, which bounds the memory they take."""

    tiling: bool


@dataclass(frozen=True)
class SamplingConfig:
    """Default settings for a call of the pipeline.

    time_length is in seconds, width and height in pixels. scale_factor divides the RoPE angles of time, height and
    width. The pipeline's docstring explains the others.
    """

    time_length: int
    width: int
    height: int
    num_steps: int
    guidance_weight: float
    scheduler_scale: float
    scale_factor: tuple[float, float, float]

    @property
    def guided(self) -> bool:
        """Whether a step runs two forwards. A guidance weight of 1 gives the velocity of the prompt alone."""
        return self.guidance_weight != 1

    @property
    def latent_size(self) -> tuple[int, int, int]:
        """(T, H, W) of the latent for a video with these settings."""
        frames = self.time_length * FPS // FRAMES_PER_LATENT + 1
        return frames, self.height // PIXELS_PER_LATENT, self.width // PIXELS_PER_LATENT


@dataclass(frozen=True)
class WeightsConfig:
    """A .safetensors file or a folder for each model."""

    dit: str
    vae: str
    text_encoder: str
    text_encoder2: str


@dataclass(frozen=True)
class Config:
    """One YAML file of configs/."""

    name: str
    dit: DiTConfig
    text: TextConfig
    vae: VAEConfig
    sampling: SamplingConfig
    weights: WeightsConfig


def load_config(path: str | Path | None = None) -> Config:
    """Read a YAML configuration, by default configs/mini.yaml.

    Raises:
        ConfigError: the file cannot be read or is not YAML, a key is unknown or missing, or a value has the wrong type.
    """
    path = CONFIGS / "mini.yaml" if path is None else Path(path)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror}") from error
    except (yaml.YAMLError, ValueError) as error:  # a ValueError means bytes that are not text, or an impossible date
        raise ConfigError(f"{path} is not YAML: {error}") from error
    config = _build(Config, values, str(path))
    if config.text.prompt_template.count("{}") != 1:
        raise ConfigError(f"{path}: text: prompt_template: {config.text.prompt_template!r} needs one {{}}")
    return config


def _build(kind: type, value: object, where: str):
    """Turn a value read from YAML into the given type. Errors start with `where`, which names the file and the key."""
    if dataclasses.is_dataclass(kind):
        return _build_dataclass(kind, value, where)
    if typing.get_origin(kind) is tuple:
        kinds = typing.get_args(kind)
        if not isinstance(value, list) or len(value) != len(kinds):
            raise ConfigError(f"{where}: {value!r} is not a list of {len(kinds)}")
        return tuple(_build(k, v, f"{where}[{i}]") for i, (k, v) in enumerate(zip(kinds, value, strict=True)))
    if kind is float and type(value) is int:
        return float(value)
    # `type(...) is` instead of isinstance, because to Python a bool is an int.
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
