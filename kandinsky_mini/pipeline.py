"""A prompt becomes a video: encode the text, sample a latent, decode it, save it."""

import os
import warnings
from collections.abc import Callable
from numbers import Integral, Real
from pathlib import Path

import torch
from diffusers import AutoencoderKLHunyuanVideo

from .config import Config
from .models import vae as vae_coding
from .models.dit import DiffusionTransformer3D
from .models.text_embedders import TextEmbedder
from .sampling import draw_noise, generate

FPS = 24
FRAMES_PER_LATENT = 4  # the VAE packs the first frame alone, then every 4 frames into one
PIXELS_PER_LATENT = 8
MOST_SECONDS, MOST_PIXELS = 3600, 8192  # far beyond any model: against typing errors
SUFFIXES = {"video": ".mp4", "image": ".png"}


class Kandinsky5T2VPipeline:
    """Holds the models, each on its device: device_map has the keys "dit", "vae" and "text_embedder"."""

    def __init__(
        self,
        device_map: dict[str, torch.device],
        dit: DiffusionTransformer3D,
        text_embedder: TextEmbedder,
        vae: AutoencoderKLHunyuanVideo,
        config: Config,
    ):
        self.device_map = device_map
        self.dit = dit
        self.text_embedder = text_embedder
        self.vae = vae
        self.config = config

    def __call__(
        self,
        text: str,
        time_length: int | None = None,
        width: int | None = None,
        height: int | None = None,
        guidance_weight: float | None = None,
        num_steps: int | None = None,
        scheduler_scale: float | None = None,
        seed: int | None = None,
        negative_caption: str | None = None,
        save_path: str | Path | None = None,
        progress: bool = True,
        callback: Callable[[int, torch.Tensor], None] | None = None,
    ) -> torch.Tensor:
        """Generate a video, uint8 (1, 3, 24 * time_length + 1, height, width), on the CPU.

        What is None comes from the configuration.

        Args:
            text: the prompt.
            time_length: seconds, a whole number; 0 gives one frame, an image.
            width, height: pixels, multiples of 16.
            guidance_weight: how far the guidance moves from an empty prompt; 1 runs one forward a step, not two.
            num_steps: Euler steps from noise to latent.
            scheduler_scale: above 1, more of the steps are near the noise.
            seed: of the starting noise; None draws one.
            negative_caption: what the guidance moves away from.
            save_path: .mp4 for a video, .png for an image; a failed run leaves what was there as it was.
            progress: show a progress bar.
            callback: called as callback(step, latent) after each step; latent is (T, H, W, C).

        Raises:
            ValueError: a value that cannot work; it is found before any model runs.
        """
        defaults = self.config.sampling
        time_length = defaults.time_length if time_length is None else time_length
        width = defaults.width if width is None else width
        height = defaults.height if height is None else height
        num_steps = defaults.num_steps if num_steps is None else num_steps
        guidance_weight = defaults.guidance_weight if guidance_weight is None else guidance_weight
        scheduler_scale = defaults.scheduler_scale if scheduler_scale is None else scheduler_scale
        negative_caption = self.config.text.negative_prompt if negative_caption is None else negative_caption

        seed = torch.Generator().seed() if seed is None else seed  # not torch.seed(), which reseeds the caller

        check_text("prompt", text)
        check_text("negative caption", negative_caption)
        if not text.strip():
            raise ValueError("the prompt is empty: say what the video shows")
        check_size(time_length, width, height, self.config.dit.patch_size)
        check_sampling(num_steps, guidance_weight, scheduler_scale)
        check_whole("seed", seed, "a whole number", 0, 2**64 - 1)
        if save_path is not None:
            save_path = check_save_path(save_path, "image" if time_length == 0 else "video")
        self._warn_of_unknown_words(text)

        device = self.device_map["dit"]
        embeds = self.text_embedder.encode(text).to(device)
        null_embeds = None
        if guidance_weight != 1:
            null_embeds = self.text_embedder.encode(negative_caption).to(device)

        latent = generate(
            self.dit,
            draw_noise(self._latent_shape(time_length, width, height), int(seed)).to(device),
            embeds,
            null_embeds,
            num_steps,
            float(guidance_weight),
            float(scheduler_scale),
            self.config.sampling.scale_factor,
            dtype=self.dit.out_layer.out_layer.weight.dtype,
            progress=progress,
            callback=callback,
        )
        video = self.decode(latent)
        if save_path is not None:
            save(video, save_path)
        return video

    @torch.no_grad()
    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        """Latent (T, H, W, C) -> uint8 video (1, 3, frames, height, width) on the CPU."""
        return vae_coding.decode(self.vae, latent[None].to(self.device_map["vae"])).cpu()

    def _latent_shape(self, time_length: int, width: int, height: int) -> tuple[int, int, int, int]:
        frames = time_length * FPS // FRAMES_PER_LATENT + 1
        return (frames, height // PIXELS_PER_LATENT, width // PIXELS_PER_LATENT, self.config.dit.in_visual_dim)

    def _warn_of_unknown_words(self, text: str) -> None:
        if unknown := self.text_embedder.unknown_words(text):
            words = ", ".join(repr(word) for word in dict.fromkeys(unknown))
            warnings.warn(
                f"{self.config.name} has never seen {words}. It knows {self.config.text.known_words}.", stacklevel=3
            )


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
        _aside(path).touch()  # the only sure test: the name may be too long, the disk read-only or full
        _aside(path).unlink()
    except OSError as error:
        raise ValueError(f"{path} is not writable: {error.strerror}") from error
    return path


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")


def _check_whole_file(aside: Path, path: Path) -> None:
    """On a full disk ffmpeg ends without a word; what it leaves has no index, which it writes last."""
    import imageio.v3 as iio

    try:
        iio.immeta(aside)
    except OSError as error:
        raise OSError(f"{path} could not be written whole: is the disk full?") from error


def save(video: torch.Tensor, path: Path) -> None:
    """Write a uint8 video (1, 3, frames, height, width) as mp4, or its single frame as png.

    It is written aside and renamed at the end, so that a half-written file never takes the name.
    """
    import imageio.v3 as iio

    frames = video[0].permute(1, 2, 3, 0).numpy()
    aside = _aside(path)
    try:
        if path.suffix.lower() == SUFFIXES["image"]:
            iio.imwrite(aside, frames[0])
        else:
            # Quality 9 of 10: flat colours show every artefact.
            iio.imwrite(aside, frames, fps=FPS, codec="libx264", quality=9, macro_block_size=16)
            _check_whole_file(aside, path)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
