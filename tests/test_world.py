"""A scene of the small world shows only what is allowed, and its video really shows it."""

import dataclasses
import functools
import math
from itertools import combinations
from unittest.mock import MagicMock

import pytest
import torch

from kandinsky_mini.config import FPS
from kandinsky_mini.world import figures
from kandinsky_mini.world.backgrounds import night
from kandinsky_mini.world.brush import Brush, load_palette
from kandinsky_mini.world.figures import FIGURES, Pose, leg
from kandinsky_mini.world.render import BACKDROPS, CHANCES, REACH, STRIDE, into_figure, poses, walk
from kandinsky_mini.world.render import render as render_at
from kandinsky_mini.world.scenes import ALLOWED, BACKGROUNDS, COLOURS, Scene, all_scenes, is_held_out

render = functools.partial(render_at, fps=FPS)
HATS = {  # RGB values, in 0..255, that a viewer would call by these names
    "red": (226, 59, 46),
    "yellow": (255, 208, 18),
    "green": (31, 159, 79),
    "blue": (42, 107, 234),
    "purple": (154, 72, 216),
    "black": (37, 35, 43),
}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator("cpu").manual_seed(seed)


def hat_mask(videos: torch.Tensor, colour: str) -> torch.Tensor:
    """Return which pixels (B, T, H, W) of uint8 videos (B, 3, T, H, W) have the hat's colour."""
    target = torch.tensor(HATS[colour]).view(1, 3, 1, 1, 1)
    return (videos.int() - target).abs().amax(1) <= 8


def centre(mask: torch.Tensor, dim: int) -> torch.Tensor:
    """Return the mean position (B, T) of the mask's pixels along x (dim -1) or y (dim -2, downwards)."""
    where = torch.arange(mask.shape[dim]).float()
    along = mask.float().sum(-2 if dim == -1 else -1)
    return (along * where).sum(-1) / along.sum(-1)


def test_shape_and_type():
    videos = render(all_scenes()[::100], 5, seeded(0))
    assert videos.shape == (6, 3, 5, 128, 192)
    assert videos.dtype == torch.uint8
    assert render(all_scenes()[:1], 1, seeded(0), height=32, width=48).shape == (1, 3, 1, 32, 48)


def test_the_seed_decides():
    scenes = all_scenes()[::60]
    first, again, other = (render(scenes, 3, seeded(seed), 64, 96) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert all(not torch.equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_caller_s_settings_do_not_decide(dtype):
    scenes = all_scenes()[::60]
    expected = render(scenes, 3, seeded(1), 32, 48)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device("meta"):
            painted = render(scenes, 3, seeded(1), 32, 48)
    finally:
        torch.set_default_dtype(before)
    assert torch.equal(painted, expected)


def test_a_soft_sky_is_rounded_to_the_nearest_shade():
    """Else every mixed colour would be darker than it is painted. Rows up to 40 show nothing but sky at the edge."""
    picture = render([Scene("cat", "red", "walks right", "snow")], 1, seeded(0))[0, :, 0]
    sky, haze = torch.tensor([195.0, 218.0, 238.0]), torch.tensor([233.0, 241.0, 248.0])
    share = ((127.5 - torch.arange(40) - 40) / 88)[:, None]  # the gradient goes from y = 40 to the top, 128
    painted = haze + share * (sky - haze)
    assert (picture[:, :40, 0].T - painted).abs().max() < 0.51


def test_first_scenes_do_not_depend_on_the_rest():
    scenes = all_scenes()[::60]
    assert torch.equal(render(scenes, 3, seeded(3), 64, 96)[:4], render(scenes[:4], 3, seeded(3), 64, 96))


@pytest.mark.parametrize("colour", COLOURS)
def test_hat_is_seen_on_every_background(colour):
    scenes = [Scene("duck", colour, "dances", background) for background in BACKGROUNDS]
    pictures = render(scenes, 1, seeded(4))
    seen = hat_mask(pictures, colour).sum((1, 2, 3))
    assert (seen > 150).all(), f"pixels of the hat per background: {seen.tolist()}"
    for other in set(COLOURS) - {colour, "black"}:  # pupils are black too
        assert (hat_mask(pictures, other).sum((1, 2, 3)) < 30).all(), other


@pytest.mark.parametrize(("motion", "sign"), [("walks left", -1), ("walks right", 1)])
def test_walks_across_and_stays_inside(motion, sign):
    scenes = [Scene(animal, "blue", motion, "meadow") for animal in ALLOWED["animal"]]
    videos = render(scenes, 49, seeded(5))
    x = centre(hat_mask(videos, "blue"), -1)
    assert (sign * x.diff(dim=1) > 0).all()
    share = sign * (x[:, -1] - x[:, 0]) / 192
    assert ((share > 0.38) & (share < 0.47)).all()
    edges = torch.stack([videos[..., 0], videos[..., -1]]).int()
    assert (edges.amax(3) == edges.amin(3)).all(), "something moves at the left or right edge"


@pytest.mark.parametrize(("pace", "position"), [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0)])
def test_the_longest_walk_ends_at_the_edge(pace, position):
    """The tip of the figure gets there, and no further."""
    minute = torch.tensor([60.0])
    travelled, _ = walk(minute, torch.tensor([pace]), torch.tensor([0.0]), torch.tensor([position]), 192.0)
    start = REACH + 8 * position
    assert start + travelled.item() + REACH == pytest.approx(192.0, abs=0.01)


def test_jumps_go_up_and_down():
    scenes = [Scene(animal, "purple", "jumps", "beach") for animal in ALLOWED["animal"]]
    videos = render(scenes, 25, seeded(6))
    mask = hat_mask(videos, "purple")
    y, x = centre(mask, -2), centre(mask, -1)
    assert (y.amax(1) - y.amin(1) > 18).all()
    assert (x.amax(1) - x.amin(1) < 4).all()
    turns = (y.diff(dim=1).sign().diff(dim=1) != 0).sum(1)
    assert (turns >= 2).all(), "the animal should go up, down and up again within a second"
    assert (videos[:, :, :, 0] == videos[:, :, :1, 0]).all(), "the upper edge cuts off a hop"


def test_dances_sway_in_place():
    scenes = [Scene(animal, "red", "dances", "snow") for animal in ALLOWED["animal"]]
    x = centre(hat_mask(render(scenes, 25, seeded(7)), "red"), -1)
    assert (x.amax(1) - x.amin(1) > 20).all()
    assert ((x.diff(dim=1).sign().diff(dim=1) != 0).sum(1) >= 2).all()


def test_hold_out_leaves_every_pair_in_training():
    scenes = all_scenes()
    assert len(set(scenes)) == 576
    training = [scene for scene in scenes if not is_held_out(scene)]
    assert len(training) == 480  # a sixth is held out
    names = list(ALLOWED)
    for one, two in combinations(names, 2):
        seen = {(getattr(scene, one), getattr(scene, two)) for scene in training}
        assert len(seen) == len(ALLOWED[one]) * len(ALLOWED[two]), (one, two)


def test_axes_turn_counter_clockwise():
    brush = Brush(torch.zeros(1, 3, 1, 1, 1), torch.tensor(3.0), torch.tensor(5.0), 1.0, {})
    turned = brush.moved(3, 4, degrees=90)  # the point above the new origin now lies on its x axis
    torch.testing.assert_close(torch.stack([turned.x, turned.y]), torch.tensor([1.0, 0.0]), atol=1e-6, rtol=0)


def test_a_pixel_is_small_in_the_units_of_a_large_figure():
    fields = dict.fromkeys((field.name for field in dataclasses.fields(Pose)), torch.ones(1))
    brush = Brush(torch.zeros(1, 3, 1, 1, 1), torch.zeros(1), torch.zeros(1), 3.0, {})
    assert into_figure(brush, Pose(**fields | {"size": torch.tensor([2.0])})).pixel.item() == 1.5


def test_the_background_has_random_numbers_of_its_own(monkeypatch):
    """Where the sun stands says nothing about where the figure stands."""
    used = []
    monkeypatch.setitem(BACKDROPS, "meadow", lambda brush, luck, width: (used.extend(luck), brush.image.zero_()))
    scenes = [scene for scene in all_scenes() if scene.background == "meadow"][:3]
    render(scenes, 2, seeded(1), 16, 24)
    chance = torch.rand(len(scenes), CHANCES, generator=seeded(1))
    assert torch.equal(torch.cat([luck.flatten(1) for luck in used], dim=1), chance[:, 5:])
    before = poses(scenes, chance.clone(), 2, FPS, 192.0, "cpu")
    chance[:, 5:] = 0.5
    after = poses(scenes, chance, 2, FPS, 192.0, "cpu")
    assert all(torch.equal(getattr(before, f.name), getattr(after, f.name)) for f in dataclasses.fields(Pose))


LEFT_TO_CHANCE = {"meadow": [0, 1, 2, 3], "beach": [0, 1, 2], "snow": [0, 1, 2, 3], "night": [0, 1, 3]}


def backdrop(name: str, changed: int | None = None, canvas: float = 0.0) -> torch.Tensor:
    """Paint a background with all random numbers alike, but for one of them."""
    x, y = (torch.arange(96) + 0.5).view(1, 1, 1, 1, 96) * 2, 128 - (torch.arange(64) + 0.5).view(1, 1, 1, 64, 1) * 2
    brush = Brush(torch.full((1, 3, 1, 64, 96), canvas), x, y, 2.0, load_palette("cpu"))
    luck = [torch.full((1, 1, 1, 1, 1), 0.8 if number == changed else 0.4) for number in range(4)]
    BACKDROPS[name](brush, luck, 192.0)
    return brush.image


@pytest.mark.parametrize("name", BACKGROUNDS)
def test_a_background_covers_the_whole_canvas(name):
    """The canvas is not cleaned before, so it may hold anything."""
    assert torch.equal(backdrop(name, canvas=0.0), backdrop(name, canvas=1.0))


@pytest.mark.parametrize("name", BACKGROUNDS)
def test_each_random_number_of_a_background_moves_something_in_it(name):
    whole = backdrop(name)
    assert [n for n in range(4) if not torch.equal(backdrop(name, changed=n), whole)] == LEFT_TO_CHANCE[name]


def test_hold_out_ignores_the_background():
    for scene in all_scenes():
        triple = (scene.animal, scene.colour, scene.motion)
        assert len({is_held_out(Scene(*triple, background)) for background in BACKGROUNDS}) == 1


@pytest.mark.parametrize("name", ALLOWED)
def test_wrong_words_are_refused(name):
    words = {"animal": "cat", "colour": "red", "motion": "jumps", "background": "snow"}
    with pytest.raises(ValueError, match=f"unknown {name} 'pink'") as error:
        Scene(**words | {name: "pink"})
    assert all(word in str(error.value) for word in ALLOWED[name])


LOOKS = {  # colours, in 0..255, that are seen only at the front of an animal, on its snout or beak
    "cat": (224, 96, 106),
    "dog": (246, 227, 197),
    "rabbit": (42, 32, 48),
    "bear": (210, 166, 121),
    "duck": (244, 123, 32),
    "pig": (168, 65, 95),
}


@pytest.mark.parametrize("animal", ALLOWED["animal"])
def test_an_animal_looks_where_it_goes(animal):
    """Left and right differ in more than the motion: a picture alone shows the direction, with the face in front."""
    for motion, sign in (("walks left", -1), ("walks right", 1)):
        picture = render([Scene(animal, "blue", motion, "night")], 1, seeded(8))[0, :, 0]
        eyes = (picture == 255).all(0) & (torch.arange(128) > 30)[:, None]  # the whites of the eyes
        face = (picture.int() - torch.tensor(LOOKS[animal])[:, None, None]).abs().amax(0) <= 8
        hat = hat_mask(picture[None, :, None], "blue")[0, 0]
        x = {name: centre(mask[None], -1).item() for name, mask in {"eyes": eyes, "face": face, "hat": hat}.items()}
        assert sign * (x["eyes"] - x["hat"]) > 1, x
        assert sign * (x["face"] - x["hat"]) > 1, x


def test_a_figure_that_does_not_walk_looks_either_way():
    pictures = render([Scene("duck", "blue", "jumps", "night")] * 12, 1, seeded(9))[:, :, 0]
    beak = (pictures.int() - torch.tensor(LOOKS["duck"])[:, None, None]).abs().amax(1) <= 8
    ahead = centre(beak, -1) - centre(hat_mask(pictures[:, :, None], "blue")[:, 0], -1)
    assert 2 <= (ahead > 0).sum() <= 10


def test_feet_follow_the_distance_also_where_a_figure_slows_down():
    """Else they would skate over the ground."""
    zero, seconds = torch.zeros(1, 1), torch.linspace(0, 4, 97)[None]
    travelled, stride = walk(seconds, zero, zero, zero, 192.0)
    late = travelled.diff()[0, -1] / travelled.diff()[0, 0]
    assert late < 0.5
    torch.testing.assert_close(stride, 2 * math.pi * travelled / STRIDE)


def test_a_foot_is_lifted_while_it_swings_forward():
    chance = torch.full((1, CHANCES), 0.5)
    pose = poses([Scene("cat", "red", "walks right", "meadow")], chance, 49, FPS, 192.0, "cpu")
    swing, rise = pose.swing.flatten(), pose.rise.flatten()
    forward = swing.diff()  # of the feet with step 1, in the direction of the walk
    clear = (forward.abs() > 0.2 * forward.abs().max()) & (rise[1:].abs() > 1)
    assert clear.sum() > 20 and ((forward > 0) == (rise[1:] > 0))[clear].all()


def test_a_limb_is_as_thick_at_each_end_as_it_is_told():
    x = torch.tensor([0.0, 10.0, 5.0])
    brush = Brush(torch.zeros(1, 3, 1, 1, 3), x, torch.zeros(3), 1.0, {})
    assert brush.to_limb((0, 0), (10, 0), 3.0, 1.0).tolist() == [-3.0, -1.0, -2.0]
    assert brush.to_limb((0, 0), (10, 0), 3.0).tolist() == [-3.0, -3.0, -3.0]


@pytest.mark.parametrize("place", [0.0, 0.3, 1.0])
def test_stars_keep_clear_of_the_moon(place):
    brush = MagicMock()
    night(brush, [torch.tensor(place), torch.tensor(0.5), torch.tensor(0.5), torch.tensor(0.5)], 192.0)
    moon = brush.moved.call_args.args[0]
    stars = [call.args[1] for call in brush.ellipse.call_args_list if call.args[0] == "star"]
    assert len(stars) == 5
    assert all(abs(star - moon) > 19 + 2.3 for star in stars)  # the radius of the moon's glow, and of a star


def test_feet_stay_on_the_ground_while_the_body_tilts():
    """A brush tilts with the body. In its coordinates, the foot has to move so that it stays where it is."""
    brush, zero, one = MagicMock(), torch.zeros(1), torch.ones(1)
    standing = Pose(zero, zero, one, one, zero, one, zero, zero, zero)
    tilt = torch.tensor([0.2])
    places = []
    for pose in (standing, dataclasses.replace(standing, tilt=tilt)):
        x, y = leg(brush, "cat", pose, (12, 14), 1, 4.2)
        cos, sin = pose.tilt.cos(), pose.tilt.sin()
        places.append(torch.cat([cos * x - sin * y, sin * x + cos * y]))  # the inverse of into_figure
    assert torch.allclose(*places, atol=1e-5)


@pytest.mark.parametrize("animal", FIGURES)
def test_an_animal_has_all_its_legs_and_half_of_them_step_at_a_time(animal, monkeypatch):
    steps, zero, one = [], torch.zeros(1), torch.ones(1)
    for part in ("torso", "hat", "eyes"):
        monkeypatch.setattr(figures, part, lambda *args, **options: None)
    monkeypatch.setattr(figures, "leg", lambda brush, colour, pose, hip, step, width: (steps.append(step), hip)[1])
    FIGURES[animal](MagicMock(), Pose(zero, zero, one, one, zero, one, zero, zero, zero))
    assert len(steps) == (2 if animal == "duck" else 4) and sum(steps) == 0


def test_a_video_that_is_larger_than_the_caches_is_painted_alone():
    """So many pixels that not even one video fits into what is painted at once."""
    assert render([all_scenes()[0]], 1, seeded(1), 1200, 1200).shape == (1, 3, 1, 1200, 1200)


def test_feet_spread_outwards_in_a_hop():
    zero, one = torch.zeros(1), torch.ones(1)
    hop = Pose(zero, zero, one, one, zero, one, zero, zero, airborne=one)
    (ahead, _), (behind, _) = (leg(MagicMock(), "cat", hop, (x, 14), 1, 4.2) for x in (12, -20))
    assert (ahead.item(), behind.item()) == (15, -23)
