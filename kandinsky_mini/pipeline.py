"""A prompt becomes a video: encode the text, sample a latent, decode it, save it."""

import math
import os
import warnings
from collections.abc import Callable
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

        check_text(text)
        check_size(time_length, width, height, self.config.dit.patch_size)
        check_sampling(num_steps, guidance_weight, scheduler_scale)
        if save_path is not None:
            save_path = check_save_path(Path(save_path), "image" if time_length == 0 else "video")
        self._warn_of_unknown_words(text)

        device = self.device_map["dit"]
        embeds = self.text_embedder.encode(text).to(device)
        null_embeds = None
        if guidance_weight != 1:
            null_embeds = self.text_embedder.encode(negative_caption).to(device)

        seed = torch.seed() % 2**32 if seed is None else seed
        latent = generate(
            self.dit,
            draw_noise(self._latent_shape(time_length, width, height), seed).to(device),
            embeds,
            null_embeds,
            num_steps,
            guidance_weight,
            scheduler_scale,
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
            words = ", ".join(repr(word) for word in unknown)
            warnings.warn(
                f"{self.config.name} has never seen {words}. It knows {self.config.text.known_words}.", stacklevel=3
            )


def check_text(text: object) -> None:
    if not isinstance(text, str):
        raise ValueError(f"the prompt must be text, not {type(text).__name__}")
    if not text.strip():
        raise ValueError("the prompt is empty: say what the video shows")


def check_size(time_length: object, width: object, height: object, patch_size: tuple[int, int, int]) -> None:
    if type(time_length) is not int or time_length < 0:
        near = max(0, round(time_length)) if isinstance(time_length, (int, float)) and math.isfinite(time_length) else 2
        raise ValueError(f"time_length must be whole seconds, 0 or more, not {time_length!r}; the nearest is {near}")
    for name, value, patch in (("height", height, patch_size[1]), ("width", width, patch_size[2])):
        unit = PIXELS_PER_LATENT * patch
        if type(value) is not int or value < unit or value % unit:
            low = (
                max(unit, int(value) // unit * unit)
                if isinstance(value, (int, float)) and math.isfinite(value)
                else unit
            )
            raise ValueError(
                f"{name} must be a multiple of {unit} pixels, not {value!r}; the nearest are {low} and {low + unit}"
            )


def check_sampling(num_steps: object, guidance_weight: object, scheduler_scale: object) -> None:
    if type(num_steps) is not int or num_steps < 1:
        raise ValueError(f"num_steps must be a whole number, 1 or more, not {num_steps!r}")
    for name, value in (("guidance_weight", guidance_weight), ("scheduler_scale", scheduler_scale)):
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ValueError(f"{name} must be a finite number, not {value!r}")
    if scheduler_scale <= 0:
        raise ValueError(f"scheduler_scale must be above 0, not {scheduler_scale!r}")


def check_save_path(path: Path, kind: str) -> Path:
    """Refuse, before hours of sampling, a path that cannot be written in the end."""
    if path.suffix.lower() != SUFFIXES[kind]:
        raise ValueError(f"{path}: the suffix of this {kind} must be {SUFFIXES[kind]}, not {path.suffix!r}")
    if path.is_dir():
        raise ValueError(f"{path} is a folder, not a file")
    if not path.parent.is_dir():
        raise ValueError(f"{path}: there is no folder {path.parent}")
    if not os.access(path.parent, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise ValueError(f"{path} is not writable")
    return path


def save(video: torch.Tensor, path: Path) -> None:
    """Write a uint8 video (1, 3, frames, height, width) as mp4, or its single frame as png.

    It is written aside and renamed at the end, so that a half-written file never takes the name.
    """
    import imageio.v3 as iio

    frames = video[0].permute(1, 2, 3, 0).numpy()
    aside = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        if path.suffix.lower() == SUFFIXES["image"]:
            iio.imwrite(aside, frames[0])
        else:
            # Quality 9 of 10: flat colours show every artefact.
            iio.imwrite(aside, frames, fps=FPS, codec="libx264", quality=9, macro_block_size=16)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
