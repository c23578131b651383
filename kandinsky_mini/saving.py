"""Videos become files, completely or not at all, and latents are kept until their video is one."""

import contextlib
import itertools
import shlex
import warnings
from collections.abc import Iterator
from pathlib import Path

import imageio.v3 as iio
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from .config import FPS
from .files import check_writable, trial, written_aside
from .models.checkpoint import read_tensor

SUFFIXES = {"video": ".mp4", "image": ".png"}
MEGABYTES = 16  # a disk with less room than this for a video counts as full


def save(video: torch.Tensor, path: Path) -> None:
    """Write a uint8 video (1, 3, frames, height, width) as mp4, or its only frame as png.

    Raises:
        OSError: the file cannot be written completely, for example because the disk is full.
    """
    with written_aside(path) as aside:
        _write(video, aside, path)


def check_can_save(path: Path, latent_bytes: int = 0) -> None:
    """Refuse, before hours of sampling, a path at which no video, or image, and no latent could be saved afterwards.

    As many bytes as both may take are really written, and thrown away. So is a small video, because a missing encoder
    shows only then.

    Raises:
        ValueError: the path cannot be written, the disk is full, or the encoder does not work.
    """
    check_writable(path, megabytes=MEGABYTES + latent_bytes // 2**20 + 1)
    check_writable(latent_path(path))
    with trial(path) as aside:
        try:
            _write(torch.zeros(1, 3, 2, 16, 16, dtype=torch.uint8, device="cpu"), aside, path)
        except (OSError, RuntimeError, ImportError) as error:
            reason = str(error).splitlines()[0]
            cure = "unset IMAGEIO_FFMPEG_EXE, or pip install imageio-ffmpeg"
            raise ValueError(f"{path}: encoding a video does not work here: {reason} -> {cure}") from error


@contextlib.contextmanager
def latent_kept(latent: torch.Tensor, path: Path) -> Iterator[None]:
    """Keep a latent (T, H, W, C) beside the path of its video until the block, which decodes and saves it, has ended.

    If the block fails, the file stays, and an error gets a note that says how to go on. One that an earlier run has
    left there stays, too.

    Warns:
        UserWarning: the latent cannot be written. The block runs all the same.
    """
    file = _free_latent_path(path)
    try:
        with written_aside(file) as aside:
            save_file({"latent": latent.contiguous().cpu()}, aside)
    except (OSError, SafetensorError) as error:
        warnings.warn(f"the latent is decoded without being kept: {file} cannot be written: {error}", stacklevel=3)
    try:
        yield
    except BaseException as error:
        if not file.exists():
            raise
        again = shlex.join(["python", "launch/generate.py", "--latent", str(file), "--path", str(path)])
        same = "with the same --config and --weights, and on another --device if you like"
        error.add_note(f"The latent is kept. To go on from it, {same}: {again}")
        raise
    file.unlink(missing_ok=True)  # another run to the same path may have been quicker


def load_latent(path: str | Path, channels: int) -> torch.Tensor:
    """Load a latent (T, H, W, channels) that was kept.

    Raises:
        CheckpointError: the file holds no such latent. The message names it.
    """
    return read_tensor(path, "latent", (None, None, None, channels))


def latent_path(path: Path) -> Path:
    """Return the path of the latent that is kept beside the path of a video."""
    return path.with_name(f"{path.stem}.latent.safetensors")


def _free_latent_path(path: Path) -> Path:
    """Return the latent's path beside a video or, if a latent is there, the first one with a number that is free."""
    numbered = (path.with_stem(f"{path.stem}-{number}") for number in itertools.count(2))
    return next(file for file in map(latent_path, itertools.chain([path], numbered)) if not file.exists())


def _write(video: torch.Tensor, file: Path, path: Path) -> None:
    """Write a video to a file. Errors name the path that it will have in the end."""
    frames = video[0].permute(1, 2, 3, 0).numpy()
    if file.suffix.lower() == SUFFIXES["image"]:
        iio.imwrite(file, frames[0])
        return
    # Quality 9 of 10, because flat colours show every artefact.
    iio.imwrite(file, frames, fps=FPS, codec="libx264", quality=9, macro_block_size=16)
    try:
        iio.immeta(file)
    except OSError as error:  # ffmpeg does not report a full disk. But it writes the index last.
        raise OSError(f"{path} could not be written whole: is the disk full?") from error
