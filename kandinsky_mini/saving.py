"""A video becomes a file, wholly or not at all."""

import os
from pathlib import Path

import imageio.v3 as iio
import torch

FPS = 24
SUFFIXES = {"video": ".mp4", "image": ".png"}


def save(video: torch.Tensor, path: Path) -> None:
    """Write a uint8 video (1, 3, frames, height, width) as mp4, or its single frame as png.

    It is written aside and renamed at the end, so that a half-written file never takes the name.
    """
    frames = video[0].permute(1, 2, 3, 0).numpy()
    aside = name_aside(path)
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


def name_aside(path: Path) -> Path:
    """Where a file is written before it takes its name."""
    return path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")


def _check_whole_file(aside: Path, path: Path) -> None:
    """On a full disk ffmpeg ends without a word; what it leaves has no index, which it writes last."""
    try:
        iio.immeta(aside)
    except OSError as error:
        raise OSError(f"{path} could not be written whole: is the disk full?") from error
