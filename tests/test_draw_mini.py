"""The pictures of the small model show what was generated, at its own speed, and all of its training."""

import dataclasses
import json

import draw_mini
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image


@pytest.fixture
def drawn():
    """A function that returns the last figure's axes. They are closed at the end."""
    yield lambda: plt.gcf().axes
    plt.close("all")


def test_a_refinement_is_drawn_behind_all_training_before_it(monkeypatch, tmp_path, drawn):
    """Each refinement counts its steps from 0. A step may have several lines, and a log has lines of other stages."""
    vae, dit = [*range(1, 26)], [*range(1, 21), *range(1, 11), *range(1, 6)]
    log = [{"stage": "vae", "step": step, "mse": 0.04} for step in vae] + [{"stage": "latents", "count": 9}]
    for step in dit:
        log += [{"stage": "dit", "step": step, "loss": 0.1}, {"stage": "dit", "step": step, "came_true": {"all": 0.9}}]
    (tmp_path / "weights" / "mini").mkdir(parents=True)
    (tmp_path / "weights" / "mini" / "training.jsonl").write_text("\n".join(map(json.dumps, log)))
    monkeypatch.setattr(draw_mini, "ASSETS", tmp_path)
    draw_mini.curves(tmp_path / "training.png")
    axes = drawn()
    dotted = [[line.get_xdata()[0] for line in axis.lines if line.get_linestyle() == ":"] for axis in axes]
    assert dotted == [[], [20, 30], [20, 30]]
    for axis, steps, height in zip(axes, (25, 35, 35), (20.0, 0.1, 90.0), strict=True):
        assert list(axis.lines[0].get_xdata()) == list(range(1, steps + 1))
        assert axis.lines[0].get_ydata() == pytest.approx(height)
    for axis, steps in zip(axes[:2], (25, 35), strict=True):  # the mean of twenty steps stands at the last of them
        assert list(axis.lines[1].get_xdata()) == list(range(20, steps + 1))


def test_a_gif_shows_every_other_frame_at_the_speed_of_the_videos(tmp_path):
    ramp = np.arange(12, dtype=np.uint8) * 20
    moving = [np.stack([np.roll(ramp, frame + 3 * i) for frame in range(9)]) for i in range(4)]
    tiles = [np.broadcast_to(each[:, None, :, None], (9, 8, 12, 3)) for each in moving]
    draw_mini.save_gif(tiles, 2, tmp_path / "videos.gif")
    with Image.open(tmp_path / "videos.gif") as gif:
        assert (gif.n_frames, gif.info["duration"]) == (4, 80)  # 2 of 24 frames in a second, in hundredths
        for number in range(4):
            gif.seek(number)
            (a, b, c, d), shown = (tile[2 * number] for tile in tiles), np.asarray(gif.convert("RGB"))
            assert np.abs(shown - np.vstack([np.hstack([a, b]), np.hstack([c, d])]).astype(int)).max() <= 2


def test_what_the_model_expects_in_the_end_is_the_picture_itself(tiny_pipe, monkeypatch, tmp_path, drawn):
    config = tiny_pipe.config
    longer = dataclasses.replace(config, sampling=dataclasses.replace(config.sampling, num_steps=25))
    monkeypatch.setattr(tiny_pipe, "config", longer)
    monkeypatch.setattr(draw_mini, "get_T2V_pipeline", lambda device: tiny_pipe)
    draw_mini.steps(tmp_path / "steps.png")
    axes = drawn()
    latent, expected = (torch.from_numpy(np.array(axis.images[0].get_array())).int() for axis in (axes[6], axes[13]))
    image = tiny_pipe("a cat in a red hat", time_length=0, seed=1, progress=False)[0, :, 0].permute(1, 2, 0)
    assert (expected - image).abs().max() <= 1 < (latent - image).abs().max()
    assert [axis.get_title() for axis in axes[:2]] == ["noise", "after step 3"]
