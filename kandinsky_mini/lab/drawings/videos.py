"""Draw strips of frames. They are PNG, so that pages that cannot play videos show them too."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure


def strip(pictures: Sequence[np.ndarray | torch.Tensor], titles: Sequence[str]) -> Figure:
    """Draw pictures side by side, each under its title. They are (height, width, 3), or (height, width) in grey."""
    height, width = pictures[0].shape[:2]
    each = min(2.4, 12.0 / len(pictures))  # the width of a picture in inches
    figure, axes = plt.subplots(1, len(pictures), figsize=(each * len(pictures), each * height / width + 0.4))
    for axis, picture, title in zip(np.atleast_1d(axes), pictures, titles, strict=True):
        axis.imshow(picture, cmap="gray")
        axis.set_title(title, fontsize=11)
        axis.axis("off")
    figure.tight_layout(pad=0.3)
    plt.close(figure)  # so that it is shown only once, as the value of its cell
    return figure


def frames_of(video: np.ndarray | torch.Tensor, count: int = 5) -> Figure:
    """Draw a strip of `count` evenly spaced frames. The video has a shape that `side_by_side` accepts."""
    frames = frames_first(video)
    chosen = evenly(len(frames), count)
    return strip([frames[i] for i in chosen], [f"frame {i}" for i in chosen])


def side_by_side(videos: dict[str, np.ndarray | torch.Tensor], count: int = 3) -> Figure:
    """Draw the same `count` frames of several videos, to compare them. Each video has a row with its name.

    A video is (1, 3, frames, height, width), as the pipeline returns it, or (frames, height, width, 3), as it is read
    from a file.

    Raises:
        ValueError: the videos differ in their number of frames or in their size.
    """
    clips = {name: frames_first(video) for name, video in videos.items()}
    shapes = {clip.shape for clip in clips.values()}
    if len(shapes) != 1:
        raise ValueError(f"videos of one shape (frames, height, width, 3) are needed, not of {sorted(shapes)}")
    ((frames, height, width, _),) = shapes
    each = min(3.0, 12.0 / count)  # the width of a frame in inches
    size = (each * count + 0.4, (each * height / width + 0.1) * len(clips) + 0.3)
    figure, axes = plt.subplots(len(clips), count, figsize=size, squeeze=False)
    for row, (name, clip) in zip(axes, clips.items(), strict=True):
        row[0].set_ylabel(name, fontsize=12)
        for axis, i in zip(row, evenly(frames, count), strict=True):
            axis.imshow(clip[i])
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
    for axis, i in zip(axes[0], evenly(frames, count), strict=True):
        axis.set_title(f"frame {i}", fontsize=12)
    figure.tight_layout(pad=0.3)
    plt.close(figure)
    return figure


def frames_first(video: np.ndarray | torch.Tensor) -> np.ndarray:
    """Return a video (1, 3, frames, height, width) as (frames, height, width, 3).

    A video of four dimensions has this shape already, and is returned as it is.
    """
    video = np.asarray(video)
    return video[0].transpose(1, 2, 3, 0) if video.ndim == 5 else video


def evenly(frames: int, count: int) -> list[int]:
    """Return the numbers of `count` frames, evenly spaced from the first to the last."""
    return torch.linspace(0, frames - 1, count).round().int().tolist()
