"""Videos become files, completely or not at all."""

import os
from pathlib import Path

import imageio.v3 as iio
import torch

from .config import FPS

SUFFIXES = {"video": ".mp4", "image": ".png"}


def save(video: torch.Tensor, path: Path) -> None:
    """Write a uint8 video (1, 3, frames, height, width) as mp4, or its only frame as png.

    The file is written under another name first and renamed at the end, so that path never holds half a video.
    """
    frames = video[0].permute(1, 2, 3, 0).numpy()
    aside = name_aside(path)
    try:
        if path.suffix.lower() == SUFFIXES["image"]:
            iio.imwrite(aside, frames[0])
        else:
            # Quality 9 of 10, because flat colours show every artefact.
            iio.imwrite(aside, frames, fps=FPS, codec="libx264", quality=9, macro_block_size=16)
            _check_complete(aside, path)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def name_aside(path: Path) -> Path:
    """Return the path that a file is written to before it takes its name."""
    return path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")


def _check_complete(aside: Path, path: Path) -> None:
    """Notice a full disk. ffmpeg reports none, but the file lacks its index, which ffmpeg writes last."""
    try:
        iio.immeta(aside)
    except OSError as error:
        raise OSError(f"{path} could not be written whole: is the disk full?") from error
