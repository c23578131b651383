"""Read YAML configurations into frozen dataclasses. An unknown key, a missing key or a wrong type is an error.

Paths of weights are relative to the root of the repository.
"""

import dataclasses
import re
import typing
from dataclasses import dataclass
from pathlib import Path

import yaml

from .limits import check_real, check_whole, short

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = Path(__file__).resolve().parent / "configs"

FPS = 24  # frames a second, in every video that is trained on, generated or saved
# One position of a latent stands for 8 x 8 pixels of 4 frames. The first frame has a latent frame to itself.
PIXELS_PER_LATENT, FRAMES_PER_LATENT = 8, 4
# Far beyond any model: these catch typing errors before they take all memory.
MOST_SECONDS, MOST_PIXELS, MOST_STEPS = 3600, 8192, 1000
MOST_BLOCKS, MOST_CHANNELS, MOST_TOKENS = 1000, 2**17, 2**17


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

    The prompt takes the place of {} in prompt_template, or in image_template for an image. After encoding, the first
    crop_start or image_crop_start tokens are dropped, which are those before the prompt. The prompt and the rest of the
    template are cut off after max_length tokens, and for CLIP the prompt after pooled_max_length. known_words tells a
    person which words the model was trained on. It is empty if the model takes any word. expansion_template asks Qwen
    to describe a prompt in more detail. It is empty if the encoder cannot write.
    """

    prompt_template: str
    crop_start: int
    image_template: str
    image_crop_start: int
    max_length: int
    pooled_max_length: int
    negative_prompt: str
    known_words: str
    expansion_template: str

    def template(self, image: bool) -> tuple[str, int]:
        """Return the template of an image or of a video, and how many tokens are cut off."""
        return (self.image_template, self.image_crop_start) if image else (self.prompt_template, self.crop_start)


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
        frames = int(self.time_length) * FPS // FRAMES_PER_LATENT + 1  # int, because NumPy's uint8 would overflow
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
    """One YAML file of configs/.

    A file can name another file of the same folder as its base. It then holds only what differs. A base has no base of
    its own.
    """

    name: str
    dit: DiTConfig
    text: TextConfig
    vae: VAEConfig
    sampling: SamplingConfig
    weights: WeightsConfig


def load_config(path: str | Path | None = None) -> Config:
    """Read a YAML configuration: a path, or the name of a file in configs/, such as lite_5s. The default is mini.

    Raises:
        ConfigError: the file cannot be read or is not YAML, a key is unknown, missing or there twice, or a value has
            the wrong type or makes no model.
    """
    known = {file.stem: file for file in CONFIGS.glob("*.yaml")}
    name = "mini" if path is None else str(path)
    path = known.get(name, Path(name))
    values = _read_with_base(path)
    try:
        config = _build(Config, values, "")
        if not re.fullmatch(r"[\w.-]+", config.name):  # files of records are named after it
            raise ConfigError(f"name: {short(config.name)} may have only letters, digits and _ . -")
        _check_model(config.dit)
        _check_text(config.text)
        return dataclasses.replace(
            config, sampling=check_sampling(config.sampling, config.dit.patch_size, "sampling: ")
        )
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error


def _read_with_base(path: Path) -> object:
    values = _read(path)
    if not isinstance(values, dict) or "base" not in values:
        return values
    name = values.pop("base")
    if not isinstance(name, str) or Path(name).name != name:
        raise ConfigError(f"{path}: base: {short(name)} is not the name of a file in the same folder")
    return _merged(_read(path.with_name(name)), values)


def _merged(base: object, changes: object) -> object:
    if not (isinstance(base, dict) and isinstance(changes, dict)):
        return changes
    return base | {key: _merged(base.get(key), value) for key, value in changes.items()}


def _read(path: Path) -> object:
    """Read a YAML file. The message of a ConfigError begins with the path."""
    try:
        return yaml.load(path.read_text(encoding="utf-8"), _UniqueKeys)
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror}") from error
    except RecursionError as error:
        raise ConfigError(f"{path} is nested too deeply") from error
    except (yaml.YAMLError, ValueError) as error:  # a ValueError means bytes that are not text, or an impossible date
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from error


def check_sampling(sampling: SamplingConfig, patch_size: tuple[int, int, int], where: str = "") -> SamplingConfig:
    """Check the settings, and return them with NumPy numbers turned into plain Python numbers.

    Width and height must hold whole patches of the latent.

    Raises:
        ValueError: a setting cannot be sampled. The message begins with `where`, names it and says which values work.
    """

    def whole(name: str, what: str, low: int, high: int, unit: int = 1) -> int:
        return check_whole(where + name, getattr(sampling, name), what, low, high, unit)

    wide, high = (PIXELS_PER_LATENT * patch for patch in (patch_size[2], patch_size[1]))
    return dataclasses.replace(
        sampling,
        time_length=whole("time_length", "whole seconds", 0, MOST_SECONDS),
        width=whole("width", f"a multiple of {wide} pixels", wide, MOST_PIXELS // wide * wide, wide),
        height=whole("height", f"a multiple of {high} pixels", high, MOST_PIXELS // high * high, high),
        num_steps=whole("num_steps", "a whole number", 1, MOST_STEPS),
        guidance_weight=check_real(f"{where}guidance_weight", sampling.guidance_weight, -1000, 1000),
        scheduler_scale=check_real(f"{where}scheduler_scale", sampling.scheduler_scale, 0.001, 1000),
        scale_factor=tuple(check_real(f"{where}scale_factor", v, 0.001, 1000) for v in sampling.scale_factor),
    )


def _check_model(dit: DiTConfig) -> None:
    for name, value in vars(dit).items():
        if name in ("patch_size", "axes_dims"):
            most, unit = (16, 1) if name == "patch_size" else (1024, 2)  # RoPE turns pairs of channels
            for each in value:
                check_whole(f"dit: {name}", each, f"a multiple of {unit}", unit, most, unit)
        elif name != "visual_cond":
            most = MOST_BLOCKS if name.startswith("num_") else MOST_CHANNELS
            check_whole(f"dit: {name}", value, "a whole number", 1, most)
    if dit.model_dim % dit.head_dim:
        raise ConfigError(f"dit: model_dim {dit.model_dim} is not a multiple of the sum of axes_dims, {dit.head_dim}")


def _check_text(text: TextConfig) -> None:
    for name in ("prompt_template", "image_template", *(["expansion_template"] if text.expansion_template else [])):
        template = getattr(text, name)
        before, _, after = template.partition("{}")
        if "{}" not in template or set("{}") & set(before + after):
            raise ConfigError(f"text: {name}: {short(template)} needs one {{}}, and no other braces")
    for name, low in (("crop_start", 0), ("image_crop_start", 0), ("max_length", 1), ("pooled_max_length", 1)):
        check_whole(f"text: {name}", getattr(text, name), "a whole number", low, MOST_TOKENS)


class _UniqueKeys(yaml.SafeLoader):
    """A loader that refuses a key which is there twice. By itself, YAML lets the last one win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            line, name = key.start_mark.line + 1, str(key.value)
            if name in lines:
                raise yaml.YAMLError(f"the key {short(name)} is there twice, in lines {lines[name]} and {line}")
            lines[name] = line
        return super().construct_mapping(node, deep)


def _build(kind: type, value: object, where: str):
    """Turn a value read from YAML into the given type. Errors start with `where`, which names the key."""
    if dataclasses.is_dataclass(kind):
        return _build_dataclass(kind, value, where)
    if typing.get_origin(kind) is tuple:
        kinds = typing.get_args(kind)
        if not isinstance(value, list) or len(value) != len(kinds):
            raise ConfigError(f"{where}{short(value)} is not a list of {len(kinds)}")
        places = [f"{where.removesuffix(': ')}[{i}]: " for i in range(len(kinds))]
        return tuple(_build(*each) for each in zip(kinds, value, places, strict=True))
    if kind is float and type(value) is int:
        return value  # check_sampling makes it a float, if it is not too large
    # `type(...) is` instead of isinstance, because to Python a bool is an int.
    if type(value) is not kind:
        raise ConfigError(f"{where}{short(value)} is not of type {kind.__name__}")
    return value


def _build_dataclass(kind: type, value: object, where: str):
    hints = typing.get_type_hints(kind)
    if not isinstance(value, dict):
        raise ConfigError(f"{where}expected the keys {', '.join(hints)}")
    if unknown := [key for key in value if key not in hints]:
        raise ConfigError(f"{where}unknown key {short(unknown[0])}; known are {', '.join(hints)}")
    if missing := [key for key in hints if key not in value]:
        raise ConfigError(f"{where}missing key {missing[0]!r}")
    return kind(**{key: _build(hints[key], value[key], f"{where}{key}: ") for key in hints})
