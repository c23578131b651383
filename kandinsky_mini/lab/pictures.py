"""Pictures for the notebooks. They are PNG, so that a page that does not play videos shows them too."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure


def strip(pictures: Sequence[np.ndarray | torch.Tensor], titles: Sequence[str]) -> Figure:
    """Pictures (height, width, 3), or (height, width) in grey, side by side, each under its title."""
    height, width = pictures[0].shape[:2]
    each = min(2.4, 12.0 / len(pictures))  # inches
    figure, axes = plt.subplots(1, len(pictures), figsize=(each * len(pictures), each * height / width + 0.4))
    for axis, picture, title in zip(np.atleast_1d(axes), pictures, titles, strict=True):
        axis.imshow(picture, cmap="gray")
        axis.set_title(title, fontsize=11)
        axis.axis("off")
    figure.tight_layout(pad=0.3)
    plt.close(figure)  # shown once, by the cell that it is the value of
    return figure


def frames_of(video: torch.Tensor, count: int = 5) -> Figure:
    """A strip of count frames, evenly spaced, of a video (1, 3, frames, height, width)."""
    chosen = torch.linspace(0, video.shape[2] - 1, count).round().int().tolist()
    return strip([video[0, :, i].permute(1, 2, 0) for i in chosen], [f"frame {i}" for i in chosen])
