"""The configurations: frozen dataclasses, which are read from the YAML files of configs/ and checked.

Paths of weights are relative to the root of the repository.
"""

import dataclasses
import math
import re
from dataclasses import dataclass
from pathlib import Path

from .limits import check_real, check_whole, short
from .typed_yaml import ConfigError, build, read_yaml

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = Path(__file__).resolve().parent / "configs"

FPS = 24  # frames a second, in every video that is trained on, generated or saved
# One position of a latent stands for 8 x 8 pixels of 4 frames. The first frame has a latent frame to itself.
PIXELS_PER_LATENT, FRAMES_PER_LATENT = 8, 4
# Far beyond any model: these catch typing errors before they take all memory.
MOST_SECONDS, MOST_PIXELS, MOST_STEPS = 3600, 8192, 1000
MOST_BLOCKS, MOST_CHANNELS, MOST_TOKENS = 1000, 2**17, 2**17


@dataclass(frozen=True)
class NablaConfig:
    """How NABLA, a sparse attention, chooses blocks of tokens.

    P is the share of the coarse map that the chosen blocks make up. window says how many frames, rows and columns of
    blocks around each block are always kept. block is the height and the width of a block in patches.
    """

    P: float
    window: tuple[int, int, int]
    block: tuple[int, int]

    @property
    def block_tokens(self) -> int:
        return math.prod(self.block)


@dataclass(frozen=True)
class DiTConfig:
    """The sizes of DiffusionTransformer3D.

    patch_size and axes_dims are ordered (time, height, width). axes_dims says how many channels of a head encode each
    of the three positions; their sum is head_dim. With visual_cond the model also takes a latent to continue from.
    With nabla the visual tokens attend to one another sparsely.
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
    nabla: NablaConfig | None = None

    @property
    def head_dim(self) -> int:
        return sum(self.axes_dims)

    @property
    def num_heads(self) -> int:
        return self.model_dim // self.head_dim

    @property
    def unit(self) -> tuple[int, int]:
        """The height and the width of a video are multiples of these numbers of pixels."""
        block = self.nabla.block if self.nabla else (1, 1)
        return tuple(PIXELS_PER_LATENT * patch * part for patch, part in zip(self.patch_size[1:], block, strict=True))


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
    values = read_yaml(path)
    try:
        config = build(Config, values)
        if not re.fullmatch(r"[\w.-]+", config.name):  # files of records are named after it
            raise ConfigError(f"name: {short(config.name)} may have only letters, digits and _ . -")
        _check_model(config.dit)
        _check_text(config.text)
        return dataclasses.replace(config, sampling=check_sampling(config.sampling, config.dit.unit, "sampling: "))
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error


def check_sampling(sampling: SamplingConfig, unit: tuple[int, int], where: str = "") -> SamplingConfig:
    """Check the settings, and return them with NumPy numbers turned into plain Python numbers.

    Height and width must be multiples of the unit, in pixels, which is DiTConfig.unit.

    Raises:
        ValueError: a setting cannot be sampled. The message begins with `where`, names it and says which values work.
    """

    def whole(name: str, what: str, low: int, high: int, unit: int = 1) -> int:
        return check_whole(where + name, getattr(sampling, name), what, low, high, unit)

    high, wide = unit
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
        elif name not in ("visual_cond", "nabla"):
            most = MOST_BLOCKS if name.startswith("num_") else MOST_CHANNELS
            check_whole(f"dit: {name}", value, "a whole number", 1, most)
    if dit.model_dim % dit.head_dim:
        raise ConfigError(f"dit: model_dim {dit.model_dim} is not a multiple of the sum of axes_dims, {dit.head_dim}")
    if dit.nabla:
        _check_nabla(dit.nabla)


def _check_nabla(nabla: NablaConfig) -> None:
    check_real("dit: nabla: P", nabla.P, 0, 1)
    for size in nabla.window:
        check_whole("dit: nabla: window", size, "an odd number", 1, MOST_TOKENS - 1)
        if size % 2 == 0:
            raise ConfigError(f"dit: nabla: window: {size} is even, so a block would not be in its middle")
    for size in nabla.block:
        check_whole("dit: nabla: block", size, "a whole number", 1, MOST_TOKENS)


def _check_text(text: TextConfig) -> None:
    for name in ("prompt_template", "image_template", *(["expansion_template"] if text.expansion_template else [])):
        template = getattr(text, name)
        before, _, after = template.partition("{}")
        if "{}" not in template or set("{}") & set(before + after):
            raise ConfigError(f"text: {name}: {short(template)} needs one {{}}, and no other braces")
    for name, low in (("crop_start", 0), ("image_crop_start", 0), ("max_length", 1), ("pooled_max_length", 1)):
        check_whole(f"text: {name}", getattr(text, name), "a whole number", low, MOST_TOKENS)
