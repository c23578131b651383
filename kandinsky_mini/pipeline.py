"""From a prompt to a video: encode the text, sample a latent, decode it, save it."""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from diffusers import AutoencoderKLHunyuanVideo

from .config import Config
from .models import vae as vae_coding
from .models.dit import DiffusionTransformer3D
from .models.text_embedders import TextEmbedder
from .models.text_embeds import TextEmbeds
from .parallel.groups import from_rank_0, rank
from .parallel.layout import ParallelLayout
from .parallel.spread import over_ranks
from .sampling import Branches, draw_noise, generate
from .saving import latent_kept, save
from .validation import check_request

COMPONENTS = ("dit", "vae", "text_embedder")


class Kandinsky5T2VPipeline:
    """The models of one configuration, each on its device. device_map has the keys of COMPONENTS.

    With offload, the models wait in the CPU's memory, and each is on its device only while it works.

    Under a launcher each rank has a pipeline, and all ranks must call theirs in the same way. Rank 0 encodes the text,
    shows the progress and saves. The others hold their shard of the CrossDiT and, where it decodes in pieces, the VAE.
    """

    def __init__(
        self,
        device_map: dict[str, torch.device],
        dit: DiffusionTransformer3D,
        text_embedder: TextEmbedder | None,
        vae: AutoencoderKLHunyuanVideo | None,
        config: Config,
        layout: ParallelLayout | None = None,
        branches: Branches = map,
        offload: bool = False,
    ):
        self.device_map = device_map
        self.dit = dit
        self.text_embedder = text_embedder
        self.vae = vae
        self.config = config
        self.layout = layout or ParallelLayout()
        self.branches = branches
        self.offload = offload

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
        expand_prompts: bool | None = None,
        save_path: str | Path | None = None,
        progress: bool = True,
        callback: Callable[[int, torch.Tensor], None] | None = None,
    ) -> torch.Tensor | None:
        """Generate a uint8 video (1, 3, 24 * time_length + 1, height, width) on the CPU.

        Only rank 0 returns it. Arguments that are None take the configuration's value.

        Args:
            text: the prompt.
            time_length: whole seconds; 0 gives an image of one frame.
            width, height: pixels, multiples of 16.
            guidance_weight: how far the guidance moves away from the negative caption. With 1 there is no guidance,
                and a step takes one forward instead of two. If the configuration says 1, no other weight is allowed.
            num_steps: Euler steps from noise to latent.
            scheduler_scale: a scale above 1 spends more of the steps near the noise.
            seed: seed of the starting noise. None draws one, the same for all ranks.
            negative_caption: what the guidance moves away from.
            expand_prompts: let Qwen describe the prompt in more detail first. None does so where the configuration has
                an expansion_template.
            save_path: .mp4 for a video, .png for an image. If the run fails, a file that was there stays as it was. If
                decoding or saving fails, the latent is kept beside it, and launch/generate.py can go on from there.
            progress: show a progress bar.
            callback: called as callback(step, latent) after each step, on rank 0. latent is (T, H, W, C).

        Raises:
            ValueError: an argument has a wrong type or value, or save_path could not be written. This is checked before
                any model runs.
            FloatingPointError: a model returns values that are not finite. The message names the step or the part.

        Warns:
            UserWarning: a prompt has words that the model has never seen, or more tokens than the model reads.
        """
        asked = check_request(
            self.config,
            self.layout,
            text,
            negative_caption=negative_caption,
            seed=seed,
            expand_prompts=expand_prompts,
            save_path=save_path,
            time_length=time_length,
            width=width,
            height=height,
            num_steps=num_steps,
            guidance_weight=guidance_weight,
            scheduler_scale=scheduler_scale,
        )
        first, sampling = rank() == 0, asked.sampling
        if first:
            self._warn_about(text, "prompt", asked.image)
            if sampling.guided:
                self._warn_about(asked.negative_caption, "negative caption", asked.image)

        def prepare() -> tuple[TextEmbeds, TextEmbeds | None, int]:
            with self.on_its_device("text_embedder"):
                prompt = self.text_embedder.expand(text) if asked.expand_prompts else text
                if progress and prompt != text:
                    print(f"expanded prompt: {prompt}", flush=True)
                embeds, null_embeds = self.text_embedder.encode(prompt, asked.image).to("cpu"), None
                if sampling.guided:
                    null_embeds = self.text_embedder.encode(asked.negative_caption, asked.image).to("cpu")
            # torch.seed() would reseed the caller as well.
            return embeds, null_embeds, torch.Generator("cpu").seed() if asked.seed is None else asked.seed

        embeds, null_embeds, seed = from_rank_0(prepare, long_work="encoding the text")
        device = self.device_map["dit"]
        with self.on_its_device("dit"):
            latent = generate(
                self.dit,
                draw_noise((*sampling.latent_size, self.config.dit.in_visual_dim), seed).to(device),
                embeds.to(device),
                null_embeds and null_embeds.to(device),
                sampling,
                progress=progress and first,
                callback=callback if first else None,
                branches=self.branches,
            )
        if not first:
            if self.vae is not None:
                self.decode(latent)  # this rank's share of the pieces
            return None
        if asked.save_path is None:
            return self.decode(latent)
        with latent_kept(latent, asked.save_path):
            video = self.decode(latent)
            save(video, asked.save_path)
        return video

    @torch.no_grad()
    def decode(self, latent: torch.Tensor) -> torch.Tensor | None:
        """Decode a latent (T, H, W, C) into a uint8 video (1, 3, frames, height, width) on the CPU.

        Every rank that has a VAE must call this. Where the VAE decodes in pieces, the ranks share them, and only rank 0
        returns the video.
        """
        pieces = over_ranks if self.config.vae.tiling and self.layout.ranks > 1 else map
        with self.on_its_device("vae"):
            video = vae_coding.decode(self.vae, latent[None].to(self.device_map["vae"]), pieces)
        return None if video is None else video.cpu()

    @contextlib.contextmanager
    def on_its_device(self, name: str) -> Iterator[None]:
        """Have a model on its device in this context. With offload, it waits in the CPU's memory before and after."""
        if not self.offload:
            yield
            return
        model = getattr(self, name)
        model.to(self.device_map[name])
        try:
            yield
        finally:
            model.to("cpu")
            torch.cuda.empty_cache()  # the next model needs the memory

    def _warn_about(self, text: str, what: str, image: bool) -> None:
        """Warn about words of a text that the model has never seen, and about those that will be cut off."""
        known = self.config.text.known_words
        if known and (unknown := self.text_embedder.unknown_words(text)):
            words = ", ".join(repr(word) for word in dict.fromkeys(unknown))
            where = f"{words} in the {what}" if what != "prompt" else words
            warnings.warn(f"{self.config.name} has never seen {where}. It knows {known}.", stacklevel=3)
        if excess := self.text_embedder.excess_tokens(text, image):
            most = self.config.text.max_length
            message = f"the {what} has {most + excess} tokens, {self.config.name} reads {most}: the rest is cut off"
            warnings.warn(message, stacklevel=3)
