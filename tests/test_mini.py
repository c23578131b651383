"""The model that this repository ships: the CPU computes in float32 with it, and its VAE shows a video as it was."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch

from kandinsky_mini import get_T2V_pipeline
from kandinsky_mini.build import compute_dtype, find_weights
from kandinsky_mini.config import FPS, ROOT, load_config
from kandinsky_mini.models.text_embedders import load_text_embedder
from kandinsky_mini.models.vae import decode, encode, load_vae
from kandinsky_mini.pipeline import Kandinsky5T2VPipeline
from kandinsky_mini.training.fresh_models import new_vae
from kandinsky_mini.training.scorer import load_scorer, score
from kandinsky_mini.world.render import render
from kandinsky_mini.world.scenes import all_scenes, is_held_out


@pytest.fixture(scope="module")
def mini() -> Kandinsky5T2VPipeline:
    return get_T2V_pipeline("cpu")


@pytest.fixture(scope="module")
def videos() -> torch.Tensor:
    """Render the first 5 frames of a scene that training never showed."""
    scene = next(scene for scene in all_scenes() if is_held_out(scene))
    return render([scene], 5, torch.Generator().manual_seed(0), fps=FPS)


def test_a_cpu_computes_in_float32_though_the_files_are_in_bfloat16(mini):
    for name in ("dit", "text_embedder", "vae"):
        assert {parameter.dtype for parameter in getattr(mini, name).parameters()} == {torch.float32}, name


@torch.no_grad()
def test_the_vae_shows_a_held_out_video_as_it_was(mini, videos):
    """The training's page promises a PSNR of 35.9 dB for all held-out videos."""
    latents = encode(mini.vae, videos)
    shown = mini.decode(latents[0])
    assert shown.shape == videos.shape and shown.dtype == torch.uint8
    error = (shown.float() - videos.float()) / 255
    assert -10 * error.square().mean().log10() > 30
    # Noise has mean 0 and deviation 1, and sampling mixes latents with noise.
    assert abs(latents.mean()) < 0.3 and 0.7 < latents.std() < 1.3


@torch.no_grad()
def test_latents_are_scaled_when_encoded_and_scaled_back_when_decoded(videos):
    """Mini's factor is 1, so only the released VAE's, which is 0.476986, can show that it is applied the right way."""
    vae = new_vae(16).eval()
    clip = videos[:1, :, :5, :32, :32]
    plain = encode(vae, clip)
    video = decode(vae, plain)
    vae.register_to_config(scaling_factor=0.476986)
    torch.testing.assert_close(encode(vae, clip), 0.476986 * plain)
    assert (decode(vae, 0.476986 * plain).int() - video.int()).abs().max() <= 1


@pytest.mark.parametrize("tiling", [True, False])
def test_the_configuration_decides_whether_the_vae_works_in_pieces(tiling):
    """By itself, diffusers encodes and decodes in pieces. Training encodes and the pipeline decodes."""
    vae = load_vae(find_weights(load_config())["vae"], tiling, torch.float32)
    assert (vae.use_framewise_encoding, vae.use_framewise_decoding) == (tiling, tiling)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_parts_are_loaded_in_the_dtype_that_a_device_computes_in(dtype):
    """On a GPU that is bfloat16. A part in float32 would take twice the memory and time there."""
    config = load_config()
    weights = find_weights(config)
    embedder = load_text_embedder(weights["text_encoder"], weights["text_encoder2"], config.text, dtype)
    vae = load_vae(weights["vae"], config.vae.tiling, dtype)
    assert {parameter.dtype for part in (embedder.text_encoder, vae) for parameter in part.parameters()} == {dtype}
    assert {parameter.dtype for parameter in embedder.text_encoder2.parameters()} == {torch.float32}  # as released


def test_pixels_are_rounded_and_not_cut_off():
    """Cutting off would darken every picture by half a level. Values beyond black and white must not wrap around."""
    values = torch.tensor([-1.5, -1.0, -0.999, 0.0, 0.5, 0.999, 1.0, 1.5]).view(1, 1, 1, 1, 8)
    vae = SimpleNamespace(
        dtype=torch.float32,
        config=SimpleNamespace(scaling_factor=1.0),
        use_framewise_decoding=False,
        temporal_compression_ratio=4,
        tile_sample_min_num_frames=16,
        tile_sample_stride_num_frames=12,
        post_quant_conv=lambda x: x,
        decoder=lambda x: x,
    )
    assert decode(vae, values.movedim(1, -1)).flatten().tolist() == [0, 0, 0, 128, 191, 255, 255, 255]


def test_devices_compute_in_their_own_dtype():
    assert compute_dtype(torch.device("cuda")) == torch.bfloat16
    assert compute_dtype(torch.device("cpu")) == torch.float32


def test_the_weights_stay_small_enough_for_git():
    sizes = [path.stat().st_size / 1e6 for path in (ROOT / "assets" / "weights" / "mini").rglob("*") if path.is_file()]
    assert max(sizes) < 15 and sum(sizes) < 40


def test_mini_has_the_sizes_and_defaults_that_pages_and_lessons_name():
    """Lessons count with them: 8 heads of 32 numbers, 672 tokens in a second of video, 25 steps of two forwards."""
    config = load_config()
    dit, sampling = config.dit, config.sampling
    assert (dit.model_dim, dit.num_heads, dit.head_dim, dit.ff_dim, dit.time_dim) == (256, 8, 32, 1024, 128)
    assert (dit.num_text_blocks, dit.num_visual_blocks, dit.in_visual_dim, dit.patch_size) == (2, 6, 16, (1, 2, 2))
    assert (dit.axes_dims, dit.visual_cond, config.text.prompt_template) == ((8, 12, 12), False, "{}")
    assert (sampling.time_length, sampling.width, sampling.height, sampling.num_steps) == (2, 192, 128, 25)
    assert (sampling.guidance_weight, sampling.scheduler_scale, sampling.guided) == (3.0, 10.0, True)
    t, h, w = dataclasses.replace(sampling, time_length=1).latent_size
    assert (t, h, w) == (7, 16, 24) and t * (h // 2) * (w // 2) == 672
    assert sampling.scale_factor == (1.0, 1.0, 1.0)


def test_the_scorer_recognises_what_it_judges():
    """On rendered videos, whose scenes are known, it is right about every attribute in nearly all of them."""
    scenes = all_scenes()[::97]
    videos = render(scenes, 2 * FPS + 1, torch.Generator("cpu").manual_seed(5), 128, 192, fps=FPS)
    with torch.no_grad():
        shares = score(load_scorer(ROOT / "assets" / "weights" / "mini" / "scorer.safetensors"), videos, scenes)
    assert len(scenes) == 6 and min(shares.values()) > 0.8, shares
