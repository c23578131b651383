"""A prompt becomes a video: encode the text, sample a latent, decode it, save it."""

import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AutoencoderKLHunyuanVideo

from .checks import PIXELS_PER_LATENT, check_sampling, check_save_path, check_size, check_text, check_whole
from .config import Config
from .distributed import from_rank_0, rank
from .models import vae as vae_coding
from .models.dit import DiffusionTransformer3D
from .models.text_embedders import TextEmbedder, TextEmbeds
from .sampling import draw_noise, generate
from .saving import FPS, save

FRAMES_PER_LATENT = 4  # the VAE packs the first frame alone, then every 4 frames into one


def latent_shape(config: Config, time_length: int, width: int, height: int) -> tuple[int, int, int, int]:
    """(T, H, W, C) of the latent of a video of so many seconds and pixels."""
    frames = time_length * FPS // FRAMES_PER_LATENT + 1
    return (frames, height // PIXELS_PER_LATENT, width // PIXELS_PER_LATENT, config.dit.in_visual_dim)


class Kandinsky5T2VPipeline:
    """Holds the models, each on its device: device_map has the keys "dit", "vae" and "text_embedder".

    Under a launcher each rank has a pipeline and all are called alike. Rank 0 encodes the text, shows the progress,
    decodes and saves; the others hold their shard of the CrossDiT, and neither text embedder nor VAE.
    """

    def __init__(
        self,
        device_map: dict[str, torch.device],
        dit: DiffusionTransformer3D,
        text_embedder: TextEmbedder | None,
        vae: AutoencoderKLHunyuanVideo | None,
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
    ) -> torch.Tensor | None:
        """Generate a video, uint8 (1, 3, 24 * time_length + 1, height, width), on the CPU; None but on rank 0.

        What is None comes from the configuration.

        Args:
            text: the prompt.
            time_length: seconds, a whole number; 0 gives one frame, an image.
            width, height: pixels, multiples of 16.
            guidance_weight: how far the guidance moves from an empty prompt; 1 runs one forward a step, not two.
            num_steps: Euler steps from noise to latent.
            scheduler_scale: above 1, more of the steps are near the noise.
            seed: of the starting noise; None draws one, the same for all ranks.
            negative_caption: what the guidance moves away from.
            save_path: .mp4 for a video, .png for an image; a failed run leaves what was there as it was.
            progress: show a progress bar.
            callback: called as callback(step, latent) after each step, on rank 0; latent is (T, H, W, C).

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

        check_text("prompt", text)
        check_text("negative caption", negative_caption)
        if not text.strip():
            raise ValueError("the prompt is empty: say what the video shows")
        check_size(time_length, width, height, self.config.dit.patch_size)
        check_sampling(num_steps, guidance_weight, scheduler_scale)
        if seed is not None:
            check_whole("seed", seed, "a whole number", 0, 2**64 - 1)
        first = rank() == 0
        if first:
            if save_path is not None:
                save_path = check_save_path(save_path, "image" if time_length == 0 else "video")
            self._warn_about(text)

        def prepare() -> tuple[TextEmbeds, TextEmbeds | None, int]:
            embeds = self.text_embedder.encode(text).to("cpu")
            null_embeds = None if guidance_weight == 1 else self.text_embedder.encode(negative_caption).to("cpu")
            # Not torch.seed(), which would reseed the caller.
            return embeds, null_embeds, torch.Generator().seed() if seed is None else int(seed)

        embeds, null_embeds, seed = from_rank_0(prepare)
        device = self.device_map["dit"]
        latent = generate(
            self.dit,
            draw_noise(latent_shape(self.config, time_length, width, height), seed).to(device),
            embeds.to(device),
            null_embeds and null_embeds.to(device),
            num_steps,
            float(guidance_weight),
            float(scheduler_scale),
            self.config.sampling.scale_factor,
            dtype=self.dit.text_embeddings.norm.weight.dtype,
            progress=progress and first,
            callback=callback if first else None,
        )
        if not first:
            return None
        video = self.decode(latent)
        if save_path is not None:
            save(video, save_path)
        return video

    @torch.no_grad()
    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        """Latent (T, H, W, C) -> uint8 video (1, 3, frames, height, width) on the CPU."""
        return vae_coding.decode(self.vae, latent[None].to(self.device_map["vae"])).cpu()

    def _warn_about(self, text: str) -> None:
        """What the model cannot know of a prompt, or does not get to see of it."""
        if unknown := self.text_embedder.unknown_words(text):
            words = ", ".join(repr(word) for word in dict.fromkeys(unknown))
            warnings.warn(
                f"{self.config.name} has never seen {words}. It knows {self.config.text.known_words}.", stacklevel=3
            )
        if excess := self.text_embedder.excess_tokens(text):
            most = self.config.text.max_length
            message = f"the prompt has {most + excess} tokens, {self.config.name} reads {most}: the rest is cut off"
            warnings.warn(message, stacklevel=3)
