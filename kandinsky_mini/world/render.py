"""From scenes to videos: chance picks what captions leave open, motions become poses, and a brush paints them."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .backgrounds import BACKDROPS
from .brush import Brush, load_palette
from .figures import FIGURES, Pose
from .scenes import MOTIONS, Scene

HEIGHT_UNITS = 128  # the picture is 128 units high at any resolution
GROUND = 13  # figures stand on this line, in units from the bottom
REACH = 41  # the largest figure extends this far to either side of where it stands
# A figure walks this many units while each leg makes one step. A foot swings a quarter of that ahead of its hip and
# behind it, so that it does not skate.
STRIDE = 28
ON_CPU = {"dtype": torch.float32, "device": "cpu"}  # whatever the caller's defaults are
CHANCES = 9  # random numbers per scene: five for the figure, four for the background


@torch.no_grad()
def render(
    scenes: Sequence[Scene],
    frames: int,
    generator: torch.Generator,
    height: int = 128,
    width: int = 192,
    device: torch.device | str = "cpu",
    *,
    fps: int,
) -> Tensor:
    """Paint one video for each scene and return them, uint8 (B, 3, frames, height, width), at fps frames a second.

    `generator` lives on the CPU, so that the same seed gives the same videos on any device. Scenes added at the end
    of a batch do not change the videos before them.
    """
    chance = torch.rand(len(scenes), CHANCES, generator=generator, **ON_CPU)
    palette = load_palette(device)
    width_units = HEIGHT_UNITS * width / height
    pixel = HEIGHT_UNITS / height
    x = ((torch.arange(width, dtype=torch.float32, device=device) + 0.5) * pixel).view(1, 1, 1, 1, width)
    y = HEIGHT_UNITS - ((torch.arange(height, dtype=torch.float32, device=device) + 0.5) * pixel).view(
        1, 1, 1, height, 1
    )

    stages = torch.empty(len(scenes), 3, 1, height, width, dtype=torch.float32, device=device)
    for name, rows in groups([scene.background for scene in scenes]):
        brush = Brush(stages.new_empty(len(rows), 3, 1, height, width), x, y, pixel, palette)
        luck = chance[rows, 5:].to(device).view(-1, 4, 1, 1, 1, 1)
        BACKDROPS[name](brush, list(luck.unbind(1)), width_units)
        stages.index_copy_(0, rows.to(device), brush.image)

    videos = torch.empty(len(scenes), 3, frames, height, width, dtype=torch.uint8, device=device)
    # In bytes. A CPU has caches to make use of, while a GPU must be filled.
    memory = 2**26 if videos.device.type == "cpu" else 2**30
    at_once = max(1, memory // (4 * frames * height * width * 12))  # a video takes about twelve float planes
    for name, rows in groups([scene.animal for scene in scenes]):
        for part in rows.split(at_once):
            cast = [scenes[row] for row in part]
            pose = poses(cast, chance[part], frames, fps, width_units, device)
            place = part.to(device)
            image = stages[place].repeat(1, 1, frames, 1, 1)
            paint_figure(Brush(image, x, y, pixel, palette), name, [scene.colour for scene in cast], pose)
            videos.index_copy_(0, place, image.mul_(255).round_().to(torch.uint8))
    return videos


def groups(names: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
    """Yield each distinct name with its positions, so that everything of one kind can be painted together."""
    for name in dict.fromkeys(names):
        yield name, torch.tensor([row for row, other in enumerate(names) if other == name], device="cpu")


def paint_figure(brush: Brush, animal: str, colours: Sequence[str], pose: Pose) -> None:
    """Paint the animal with its hat, and a soft shadow under it, on top of what the image already shows."""
    spread = (22 - 8 * pose.airborne) * pose.size
    shade = 1 - brush.to_ellipse(pose.x, GROUND, spread, spread / 5) / (spread / 5)
    brush.image.lerp_(brush.palette["shadow"], shade.clamp_(0, 1) * 0.2)

    hats = {  # the name "hat" stands for a different colour in each video
        "hat": torch.cat([brush.palette[colour] for colour in colours]),
        "hat band": torch.cat([brush.palette[f"{colour} band"] for colour in colours]),
    }
    FIGURES[animal](into_figure(replace(brush, palette=brush.palette | hats), pose), pose)


def into_figure(brush: Brush, pose: Pose) -> Brush:
    """Return the brush in the figure's own coordinates.

    There the feet are at the origin, and the figure stands upright, faces right and has its normal size.
    """
    u = (brush.x - pose.x) * (pose.facing / pose.size)
    v = (brush.y - (GROUND + pose.lift)) / pose.size
    cos, sin = pose.tilt.cos(), pose.tilt.sin()
    x = (cos * u + sin * v) * pose.stretch
    y = (cos * v - sin * u) / pose.stretch
    return replace(brush, x=x, y=y, pixel=brush.pixel / pose.size)


def poses(
    scenes: Sequence[Scene], chance: Tensor, frames: int, fps: int, width: float, device: torch.device | str
) -> Pose:
    """Return how each figure stands in each frame, as a Pose of tensors (N, 1, T, 1, 1) on the device.

    They are computed on the CPU as (N, T), and then sent in one copy.
    """
    position, bulk, phase, pace, side = chance[:, :5, None].unbind(1)  # each (N, 1), 0..1
    left, right, jumping, dancing = (
        torch.tensor([[float(scene.motion == motion)] for scene in scenes], **ON_CPU) for motion in MOTIONS
    )
    walking = left + right
    facing = torch.where(walking > 0, right - left, torch.where(side < 0.5, -1.0, 1.0).float())
    seconds = torch.arange(frames, **ON_CPU)[None] / fps

    travelled, stride = walk(seconds, pace, phase, position, width)
    start = width / 2 - facing * (width / 2 - REACH - 8 * position)
    x = torch.where(walking > 0, start + facing * travelled, width * (0.35 + 0.3 * position))

    lift, stretch = hop(seconds * (0.75 + 0.15 * pace) + phase)
    sway = (2 * math.pi * (seconds * (0.9 + 0.15 * pace) + phase)).sin()
    tracks = Pose(
        x=x,
        lift=jumping * 17 * lift + walking * (2 * stride).cos().clamp(min=0) * 1.5,
        size=0.92 + 0.16 * bulk,
        facing=facing,
        tilt=dancing * math.radians(13) * sway,
        stretch=1 + jumping * (stretch - 1),
        swing=walking * STRIDE / 4 * stride.sin(),
        rise=walking * 4 * stride.cos(),
        airborne=jumping * lift,
    )
    stacked = torch.stack([track.expand(-1, frames) for track in vars(tracks).values()]).to(device)
    return Pose(*stacked.view(len(stacked), len(scenes), 1, frames, 1, 1))


def walk(seconds: Tensor, pace: Tensor, phase: Tensor, position: Tensor, width: float) -> tuple[Tensor, Tensor]:
    """Return the distance walked so far, in units, and the phase of the legs, which follows the distance.

    In two seconds the figure crosses 40 to 45 % of the picture. Then it slows down smoothly before the edge.
    """
    speed = width * (0.40 + 0.05 * pace) / 2
    room = (width - 2 * REACH - 8 * position - 2 * speed).clamp(min=1)  # the distance left after two seconds
    late = (seconds - 2).clamp(min=0)
    travelled = speed * seconds.clamp(max=2) + room * (1 - (-late * speed / room).exp())
    return travelled, 2 * math.pi * (travelled / STRIDE + phase)


def hop(beats: Tensor) -> tuple[Tensor, Tensor]:
    """Return the height (0..1) and the stretch of a figure that hops once in each beat.

    It crouches for 0.35 of the beat, and then flies along a parabola.
    """
    beat = beats.frac()
    crouch = (beat / 0.35).clamp(max=1)
    flight = ((beat - 0.35) / 0.65).clamp(min=0)
    stretch = 1 - 0.1 * (math.pi * crouch).sin().square() + 0.04 * (2 * math.pi * flight).sin().square()
    return 4 * flight * (1 - flight), stretch
