"""A prompt becomes a video, and the arguments of a call do what they promise."""

import contextlib
import dataclasses
import math

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLHunyuanVideo

from kandinsky_mini import get_T2V_pipeline, pipeline
from kandinsky_mini.config import FPS
from kandinsky_mini.models.dit import DiffusionTransformer3D
from kandinsky_mini.models.text_embedders import TextEmbedder
from kandinsky_mini.sampling import draw_noise, time_steps
from kandinsky_mini.saving import latent_kept, latent_path

pytestmark = pytest.mark.usefixtures("one_thread")

PROMPT = "a cat in a red hat"


@pytest.mark.parametrize(("time_length", "frames"), [(0, 1), (1, 25), (2, 49)])
def test_shape_of_the_video(tiny_pipe, time_length, frames):
    video = tiny_pipe(PROMPT, time_length=time_length, width=32, height=16, num_steps=1, seed=1, progress=False)
    assert video.shape == (1, 3, frames, 16, 32)
    assert (video.dtype, video.device.type) == (torch.uint8, "cpu")
    assert video.float().std() > 1, "the picture is empty"


def test_an_image_is_saved_as_png(tiny_pipe, tmp_path):
    video = tiny_pipe(PROMPT, time_length=0, seed=1, save_path=tmp_path / "cat.png", progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["cat.png"]
    assert torch.equal(torch.from_numpy(iio.imread(tmp_path / "cat.png")), video[0, :, 0].permute(1, 2, 0))


@pytest.mark.parametrize("path_type", [str, lambda path: path], ids=["str", "Path"])
def test_the_call_of_the_talk(tiny_config, tmp_path, path_type):
    pipe = get_T2V_pipeline(
        device_map={"dit": "cpu", "vae": torch.device("cpu"), "text_embedder": "cpu"}, conf_path=path_type(tiny_config)
    )
    path = tmp_path / "test.mp4"
    video = pipe(
        text=PROMPT,
        time_length=1,
        width=48,
        height=32,
        guidance_weight=5.0,
        num_steps=2,
        scheduler_scale=10.0,
        seed=9,
        save_path=path_type(path),
    )
    assert video.shape == (1, 3, 25, 32, 48)
    assert [file.name for file in tmp_path.iterdir()] == ["test.mp4"]
    saved = torch.from_numpy(iio.imread(path)).permute(3, 0, 1, 2)
    assert saved.shape == video[0].shape
    assert iio.immeta(path)["fps"] == FPS == 24
    away = (saved.float() - video[0].float()).abs().mean()
    assert away < 20, "the file does not show the video that was returned"


def test_a_suffix_in_capital_letters(tiny_pipe, tmp_path):
    tiny_pipe(PROMPT, save_path=tmp_path / "CAT.MP4", progress=False)
    tiny_pipe(PROMPT, time_length=0, save_path=tmp_path / "CAT.PNG", progress=False)
    assert iio.imread(tmp_path / "CAT.MP4").shape == (25, 16, 32, 3)
    assert iio.imread(tmp_path / "CAT.PNG").shape == (16, 32, 3)


def test_a_latent_that_a_quicker_run_to_the_same_path_has_removed_is_no_error(tmp_path):
    with latent_kept(torch.zeros(1, 2, 2, 16), tmp_path / "cat.png"):
        latent_path(tmp_path / "cat.png").unlink()
    assert list(tmp_path.iterdir()) == []


def test_a_good_run_replaces_the_file_that_was_there(tiny_pipe, tmp_path):
    (tmp_path / "cat.png").write_bytes(b"old")
    tiny_pipe(PROMPT, time_length=0, save_path=tmp_path / "cat.png", progress=False)
    assert iio.imread(tmp_path / "cat.png").shape == (16, 32, 3)


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu"), dict.fromkeys(["dit", "vae", "text_embedder"], "cpu")])
def test_device_map(tiny_config, device):
    pipe = get_T2V_pipeline(device, tiny_config)
    assert pipe.device_map == dict.fromkeys(["dit", "vae", "text_embedder"], torch.device("cpu"))
    assert not any(module.training for module in (pipe.dit, pipe.vae, pipe.text_embedder))
    assert {p.dtype for module in (pipe.dit, pipe.vae, pipe.text_embedder) for p in module.parameters()} == {
        torch.float32
    }


def test_the_seed_decides(tiny_pipe):
    first, again, other = (tiny_pipe(PROMPT, time_length=0, seed=seed, progress=False) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_without_a_seed_every_video_is_another(tiny_pipe):
    state = torch.random.get_rng_state()
    first, second = (tiny_pipe(PROMPT, time_length=0, progress=False) for _ in range(2))
    assert not torch.equal(first, second)
    assert torch.equal(torch.random.get_rng_state(), state), "the caller's own random numbers were disturbed"


def test_the_prompt_decides(tiny_pipe):
    cat, pig = (tiny_pipe(f"a {animal}", time_length=0, seed=1, progress=False) for animal in ("cat", "pig"))
    assert not torch.equal(cat, pig)


def test_the_negative_caption_decides(tiny_pipe):
    plain, empty, pig = (
        tiny_pipe(PROMPT, time_length=0, seed=1, negative_caption=negative, progress=False)
        for negative in (None, "", "a pig")
    )
    assert torch.equal(plain, empty)
    assert not torch.equal(plain, pig)


@pytest.mark.parametrize(("guidance_weight", "in_a_step"), [(1, 1), (1.0, 1), (5.0, 2), (0, 2)])
def test_forwards_in_a_step(tiny_pipe, forwards, guidance_weight, in_a_step):
    tiny_pipe(PROMPT, time_length=0, guidance_weight=guidance_weight, num_steps=4, progress=False)
    assert len(forwards) == 4 * in_a_step


def test_sampling_starts_from_noise_drawn_on_the_cpu(tiny_pipe, forwards):
    tiny_pipe(PROMPT, time_length=1, width=48, height=32, num_steps=1, seed=7, progress=False)
    noise = draw_noise((7, 4, 6, 16), 7)
    assert torch.equal(forwards[0][0], noise)
    assert noise.device.type == "cpu"


def test_a_step_follows_the_guided_velocity(tiny_pipe):
    velocities, latents = [], []
    hook = tiny_pipe.dit.register_forward_hook(lambda module, args, velocity: velocities.append(velocity))
    tiny_pipe(
        PROMPT,
        time_length=0,
        guidance_weight=3.0,
        num_steps=1,
        seed=7,
        progress=False,
        callback=lambda step, latent: latents.append(latent),
    )
    hook.remove()
    text, null = velocities
    expected = draw_noise((1, 2, 4, 16), 7) - (null + 3.0 * (text - null))
    torch.testing.assert_close(latents[0], expected)


def test_noise_depends_on_nothing_but_shape_and_seed():
    noise = draw_noise((3, 2, 2, 4), 5)
    torch.rand(3)
    assert torch.equal(noise, draw_noise((3, 2, 2, 4), 5))
    assert not torch.equal(noise, draw_noise((3, 2, 2, 4), 6))


def test_callback_sees_every_latent(tiny_pipe):
    seen = []
    video = tiny_pipe(
        PROMPT, time_length=1, width=48, height=32, progress=False, callback=lambda *args: seen.append(args)
    )
    assert [step for step, _ in seen] == [1, 2, 3]
    assert {latent.shape for _, latent in seen} == {(7, 4, 6, 16)}
    assert torch.equal(tiny_pipe.decode(seen[-1][1]), video)


@pytest.mark.parametrize("progress", [True, False])
def test_progress_bar(tiny_pipe, capsys, progress):
    tiny_pipe(PROMPT, time_length=0, progress=progress)
    captured = capsys.readouterr()
    assert ("3/3" in captured.err) == progress
    assert captured.out == ""


def test_only_rank_0_shows_the_progress_and_has_the_video(tiny_pipe, capsys, monkeypatch):
    monkeypatch.setattr(pipeline, "rank", lambda: 1)
    assert tiny_pipe(PROMPT, time_length=0) is None
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("scale", "times"), [(1.0, [1, 0.75, 0.5, 0.25, 0]), (10.0, [1, 30 / 31, 10 / 11, 10 / 13, 0])]
)
def test_time_steps(scale, times):
    assert time_steps(4, scale).tolist() == pytest.approx(times)


@pytest.mark.parametrize("scale", [0.001, 1, 1000])
def test_time_goes_down_from_noise_to_picture(scale):
    times = time_steps(50, scale).tolist()
    assert (times[0], times[-1]) == (pytest.approx(1, abs=1e-4), 0)
    assert all(math.isfinite(t) for t in times) and times == sorted(times, reverse=True)


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    yield
    torch.set_default_dtype(before)


@pytest.mark.parametrize("settings", [lambda: default_dtype(torch.float64), lambda: torch.device("meta")])
def test_the_caller_s_settings_do_not_change_the_picture(tiny_pipe, tiny_config, settings):
    latents, expected_latents = {}, {}
    expected = tiny_pipe(PROMPT, seed=1, progress=False, callback=expected_latents.__setitem__)
    with settings():
        pipe = get_T2V_pipeline("cpu", tiny_config)
        video = pipe(PROMPT, seed=1, progress=False, callback=latents.__setitem__)
    assert torch.equal(video, expected)
    assert all(torch.equal(latents[step], latent) for step, latent in expected_latents.items())
    parts = (pipe.dit, pipe.vae, pipe.text_embedder)
    assert {p.dtype for part in parts for p in part.parameters()} == {torch.float32}


@pytest.mark.parametrize("kind", [np.uint8, np.int8, np.int16])
def test_small_integers_do_not_overflow(tiny_pipe, kind):
    video = tiny_pipe(PROMPT, kind(12), kind(48), kind(32), num_steps=kind(1), seed=kind(1), progress=False)
    assert video.shape == (1, 3, 289, 32, 48)
    assert dataclasses.replace(tiny_pipe.config.sampling, time_length=kind(12)).latent_size[0] == 73


def test_values_from_numpy_are_numbers_too(tiny_pipe):
    plain = tiny_pipe(PROMPT, 1, 48, 32, 3.0, 2, 5.0, 4, progress=False)
    numpy = tiny_pipe(
        PROMPT, *map(np.int64, (1, 48, 32)), np.float32(3), np.int64(2), np.float32(5), np.int64(4), progress=False
    )
    assert torch.equal(plain, numpy)


def test_an_error_in_a_step_names_the_step_and_the_module(tiny_pipe):
    """A rank that waits in vain for another one fails like this, and the place tells what the other one did not do."""
    forwards = []

    def fail(*_):
        forwards.append(None)
        if len(forwards) == 3:  # a guided step has two
            raise RuntimeError("Timed out")

    layer = "visual_transformer_blocks.1.feed_forward.out_layer"
    hook = tiny_pipe.dit.get_submodule(layer).register_forward_pre_hook(fail)
    try:
        with pytest.raises(RuntimeError) as raised:
            tiny_pipe(PROMPT, seed=1, progress=False)
    finally:
        hook.remove()
    assert raised.value.__notes__ == [f"in step 2 of 3, in {layer}"]


def test_an_error_between_the_branches_is_one_of_their_exchange(tiny_pipe, monkeypatch):
    def fail(*_):
        raise RuntimeError("Timed out")

    monkeypatch.setattr(tiny_pipe, "branches", fail)
    with pytest.raises(RuntimeError) as raised:
        tiny_pipe(PROMPT, seed=1, progress=False)
    assert raised.value.__notes__ == ["in step 1 of 3, in the exchange of the branches"]


@pytest.fixture
def places(tiny_config, monkeypatch):
    """Build a pipeline that offloads. Return it, and where its models are after each move. cpu:0 plays the GPU."""
    where, moves, to = {}, [], torch.nn.Module.to
    names = {DiffusionTransformer3D: "dit", AutoencoderKLHunyuanVideo: "vae", TextEmbedder: "text_embedder"}

    def move(module: torch.nn.Module, *args) -> torch.nn.Module:
        if type(module) in names:
            where[names[type(module)]] = str(args[0])
            moves.append({name for name, place in where.items() if place == "cpu:0"})
        return to(module, *args)

    monkeypatch.setattr(torch.nn.Module, "to", move)
    return get_T2V_pipeline("cpu:0", tiny_config, offload=True), moves


def test_with_offload_each_model_is_on_its_device_only_while_it_works(places, tiny_pipe):
    """While they are loaded, too: none is still there when the next one comes."""
    pipe, moves = places
    assert moves == [set(), {"text_embedder"}, set(), {"vae"}, set()]
    moves.clear()
    video = pipe(PROMPT, num_steps=1, seed=1, progress=False)
    assert moves == [{"text_embedder"}, set(), {"dit"}, set(), {"vae"}, set()]
    assert torch.equal(video, tiny_pipe(PROMPT, num_steps=1, seed=1, progress=False))


def test_with_offload_a_model_that_fails_leaves_its_device(places, monkeypatch):
    pipe, moves = places
    moves.clear()
    monkeypatch.setattr(pipe.dit, "forward", lambda *_: torch.full((1,), math.nan))
    with pytest.raises(FloatingPointError):
        pipe(PROMPT, num_steps=1, seed=1, progress=False)
    assert moves == [{"text_embedder"}, set(), {"dit"}, set()]
