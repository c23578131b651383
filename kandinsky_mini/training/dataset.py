"""Training data: rendered videos, their latents, and captions. All of it lives on the training device."""

import random

import torch
from diffusers import AutoencoderKLHunyuanVideo
from tqdm.auto import tqdm

from ..config import FPS
from ..models.text_embedders import TextEmbedder
from ..models.vae import encode
from ..world.captions import LANGUAGES, caption
from ..world.render import render
from ..world.scenes import Scene, all_scenes, is_held_out


def training_scenes() -> list[Scene]:
    return [scene for scene in all_scenes() if not is_held_out(scene)]


def held_out_scenes() -> list[Scene]:
    return [scene for scene in all_scenes() if is_held_out(scene)]


def repeat_scenes(scenes: list[Scene], count: int) -> list[Scene]:
    """Return `count` scenes in turn, so that video i shows scene i modulo the number of scenes."""
    return [scenes[i % len(scenes)] for i in range(count)]


def render_videos(
    scenes: list[Scene], frames: int, size: tuple[int, int], seed: int, device: torch.device, chunk: int = 96
) -> torch.Tensor:
    """Render one uint8 video for each scene, (len(scenes), 3, frames, *size), on the device.

    size is (height, width). The seed decides what the scenes leave to chance.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    parts = [
        render(scenes[start : start + chunk], frames, generator, *size, device=device, fps=FPS)
        for start in tqdm(range(0, len(scenes), chunk), desc="rendering")
    ]
    return torch.cat(parts)


@torch.no_grad()
def render_latents(
    vae: AutoencoderKLHunyuanVideo,
    scenes: list[Scene],
    repeats: int,
    frames: int,
    size: tuple[int, int],
    generator: torch.Generator,
    device: torch.device,
) -> torch.Tensor:
    """Return bfloat16 latents (N, T, H, W, C) of videos that are rendered on the way.

    The scenes are rendered `repeats` times, each time with new random choices. The N videos go through all scenes in
    turn, again and again. size is (height, width) in pixels.
    """
    parts, chunk = [], max(96, 2400 // frames)  # many at once, since painting a few takes as long
    for _ in tqdm(range(repeats), desc=f"latents of {frames} frames"):
        for start in range(0, len(scenes), chunk):
            videos = render(scenes[start : start + chunk], frames, generator, *size, device=device, fps=FPS)
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                parts += [encode(vae, part).to(torch.bfloat16) for part in videos.split(max(16, 96 // frames))]
    return torch.cat(parts)


class CaptionBuckets:
    """Captions of scenes, grouped by their number of tokens for the first encoder.

    A batch comes from one group, so that no caption needs padding there. The pipeline does not pad it either.
    """

    def __init__(self, embedder: TextEmbedder, scenes: list[Scene], phrasings: int, seed: int, device: torch.device):
        rng = random.Random(seed)
        self.num_scenes = len(scenes)
        rows = [
            (index, caption(scene, language, rng))
            for index, scene in enumerate(scenes)
            for language in LANGUAGES
            for _ in range(phrasings)
        ]
        groups: dict[int, list] = {}
        unk = embedder.tokenizer.unk_token_id
        for index, text in rows:
            ids, ids2 = embedder.tokenize([text])
            if rng.random() < 0.1:  # practice for prompts in which one word is unknown: it must not spoil the rest
                place = rng.randrange(1, ids.shape[1])
                ids = _insert(ids, place, unk)
                ids2 = _insert(ids2, place, unk)[:, :-1]
            groups.setdefault(ids.shape[1], []).append((index, ids[0], ids2[0]))
        self.groups = [
            tuple(
                torch.stack([torch.as_tensor(part) for part in column]).to(device)
                for column in zip(*group, strict=True)
            )
            for group in groups.values()
        ]
        self.empty = tuple(ids.to(device) for ids in embedder.tokenize([""]))
        self.weights = torch.tensor([len(group[0]) for group in self.groups], dtype=torch.float)

    def draw(
        self, batch: int, common: torch.Generator, own: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Draw indices of scenes (batch,), and token ids (batch, L) and (batch, L2) for the two encoders.

        All ranks share the generator `common`, which decides the length. This rank's `own` generator picks captions.
        """
        group = self.groups[torch.multinomial(self.weights, 1, generator=common).item()]
        rows = torch.randint(len(group[0]), (batch,), generator=own).to(group[0].device)
        return tuple(column[rows] for column in group)


def _insert(ids: torch.Tensor, place: int, token: int) -> torch.Tensor:
    return torch.cat([ids[:, :place], torch.full_like(ids[:, :1], token), ids[:, place:]], dim=1)
