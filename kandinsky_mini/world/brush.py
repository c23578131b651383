"""A brush that paints flat, smooth-edged shapes into many videos at once.

Each shape is a signed distance function. It gives the distance from every pixel to the shape's outline, and is negative
inside. Divided by the size of a pixel, the distance tells how much of the pixel the shape covers. Anti-aliasing is
nothing more than that.

In the tensor shapes below, N counts videos, T counts frames, and H x W are pixels. A number that describes a painted
shape may be a plain float, which is the same everywhere, or a tensor (N, 1, T, 1, 1), which differs from video to video
and from frame to frame.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .palette import PALETTE

Number = float | Tensor
Point = tuple[Number, Number]


def load_palette(device: torch.device | str) -> dict[str, Tensor]:
    """Return every named colour as a tensor (1, 3, 1, 1, 1) in 0..1. A single copy sends them all to the device."""
    digits = [[int(code[i : i + 2], 16) for i in (1, 3, 5)] for code in PALETTE.values()]
    rows = torch.tensor(digits, dtype=torch.float32, device=device).div(255).view(-1, 1, 3, 1, 1, 1)
    return dict(zip(PALETTE, rows, strict=True))


@dataclass
class Brush:
    """An image, together with the coordinate system in which shapes are painted into it."""

    image: Tensor  # (N, 3, T, H, W), 0..1, painted in place
    x: Tensor  # the x of each pixel, broadcastable to (N, 1, T, H, W); it points right
    y: Tensor  # the y of each pixel, broadcastable in the same way; it points up
    pixel: Number  # the size of one pixel in the units of x and y
    palette: dict[str, Tensor]  # colours by name, each (1 or N, 3, 1, 1, 1)

    def moved(self, x: Number, y: Number, degrees: float = 0.0) -> "Brush":
        """Return a brush for the same image with its origin at (x, y) and its axes turned counter-clockwise."""
        cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        dx, dy = self.x - x, self.y - y
        if not degrees:
            return replace(self, x=dx, y=dy)
        return replace(self, x=cos * dx + sin * dy, y=cos * dy - sin * dx)

    def paint(self, colour: str, distance: Tensor, opacity: float = 1.0) -> None:
        """Lay a colour over the image wherever the signed distance is negative."""
        coverage = (0.5 - distance / self.pixel).clamp_(0, 1)
        self.image.lerp_(self.palette[colour], coverage * opacity if opacity < 1 else coverage)

    def ellipse(self, colour: str, x: Number, y: Number, rx: Number, ry: Number) -> None:
        self.paint(colour, self.to_ellipse(x, y, rx, ry))

    def limb(self, colour: str, start: Point, end: Point, r0: float, r1: float | None = None) -> None:
        self.paint(colour, self.to_limb(start, end, r0, r1))

    def polygon(self, colour: str, *corners: tuple[float, float]) -> None:
        self.paint(colour, self.to_polygon(*corners))

    def to_ellipse(self, x: Number, y: Number, rx: Number, ry: Number) -> Tensor:
        """Return the distance to an ellipse. It is exact for a circle and close enough for a moderately flat one."""
        u, v = (self.x - x) / rx, (self.y - y) / ry
        return (length(u, v) - 1) * (rx * ry) ** 0.5

    def to_limb(self, start: Point, end: Point, r0: float, r1: float | None = None) -> Tensor:
        """Return the distance to a line segment with round ends, which serves for legs, ears and tails.

        Its radius is r0, or changes from r0 at the start to r1 at the end.
        """
        u, v = self.x - start[0], self.y - start[1]
        du, dv = end[0] - start[0], end[1] - start[1]
        along = ((u * du + v * dv) / (du * du + dv * dv)).clamp_(0, 1)
        radius = r0 if r1 is None else r0 + along * (r1 - r0)
        return length(u - along * du, v - along * dv) - radius

    def to_polygon(self, *corners: tuple[float, float]) -> Tensor:
        """Return the distance to a convex polygon whose corners are listed counter-clockwise.

        It is the largest of the signed distances to the edges.
        """
        distance = None
        for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True):
            size = math.hypot(x1 - x0, y1 - y0)
            nx, ny = (y1 - y0) / size, (x0 - x1) / size  # the edge's outward normal
            edge = nx * self.x + (ny * self.y - (nx * x0 + ny * y0))
            distance = edge if distance is None else torch.maximum(distance, edge)
        return distance


def length(u: Tensor, v: Tensor) -> Tensor:
    return torch.addcmul(u * u, v, v).sqrt_()
