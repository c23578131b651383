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

    Raises:
        OSError: the file cannot be written completely, for example because the disk is full.
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
    """Return the temporary path, in the same folder, that a file is written to before it is renamed to `path`."""
    return path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")


def _check_complete(aside: Path, path: Path) -> None:
    """Raise OSError if the video is incomplete.

    ffmpeg does not report a full disk. But it writes the index last, so an incomplete file has none.
    """
    try:
        iio.immeta(aside)
    except OSError as error:
        raise OSError(f"{path} could not be written whole: is the disk full?") from error
