"""What a call and its configuration ask for reaches the model: times, positions, scales, and an empty condition.

A setting that is lost on the way raises no error. The video is only worse, or another one than was asked for.
"""

import dataclasses

import pytest
import torch
from helpers import SMALL, random_model
from torch.nn.attention import SDPBackend, _cur_sdpa_kernel_backends

from kandinsky_mini.models import attention
from kandinsky_mini.models.attention import set_kernel
from kandinsky_mini.models.dit import set_dtype
from kandinsky_mini.models.text_embeds import TextEmbeds
from kandinsky_mini.sampling import predict_velocity

pytestmark = pytest.mark.usefixtures("one_thread")

PROMPT = "a cat in a red hat"


def times(forwards: list[tuple]) -> list[float]:
    return [args[3].item() for args in forwards]


@pytest.mark.parametrize(
    ("scale", "expected"),
    [
        (1.0, [1000, 750, 500, 250]),
        (10.0, [1000, 30_000 / 31, 10_000 / 11, 10_000 / 13]),
        (None, [1000, 900, 750, 500]),
    ],
)
def test_the_scheduler_scale_of_a_call_or_of_the_configuration(tiny_pipe, forwards, monkeypatch, scale, expected):
    """The model counts time from 1000, which is noise, down to 0. A scale of 3 puts the middle step at 750."""
    sampling = dataclasses.replace(tiny_pipe.config.sampling, scheduler_scale=3.0)
    monkeypatch.setattr(tiny_pipe, "config", dataclasses.replace(tiny_pipe.config, sampling=sampling))
    tiny_pipe(PROMPT, time_length=0, num_steps=4, guidance_weight=1, scheduler_scale=scale, progress=False)
    assert times(forwards) == pytest.approx(expected)


def test_both_branches_of_a_step_are_at_the_same_time(tiny_pipe, forwards):
    tiny_pipe(PROMPT, time_length=0, num_steps=2, guidance_weight=2, scheduler_scale=1, progress=False)
    assert times(forwards) == pytest.approx([1000, 1000, 500, 500])


def test_the_configuration_s_scale_factor(tiny_pipe, forwards, monkeypatch):
    sampling = dataclasses.replace(tiny_pipe.config.sampling, scale_factor=(1.0, 2.0, 3.0))
    monkeypatch.setattr(tiny_pipe, "config", dataclasses.replace(tiny_pipe.config, sampling=sampling))
    tiny_pipe(PROMPT, time_length=0, num_steps=1, guidance_weight=2, progress=False)
    assert [args[6] for args in forwards] == [(1.0, 2.0, 3.0)] * 2


def test_every_patch_and_every_word_has_its_position(tiny_pipe, forwards):
    tiny_pipe(PROMPT, time_length=1, width=64, height=48, num_steps=1, guidance_weight=1, progress=False)
    (_, text, pooled, _, positions, text_positions, _) = forwards[0]
    assert [position.tolist() for position in positions] == [list(range(size)) for size in (7, 3, 4)]
    assert text_positions.tolist() == list(range(len(text))) and len(text) == len(PROMPT.split()) + 2
    assert pooled.shape == (1, tiny_pipe.config.dit.in_text_dim2)


@torch.no_grad()
def test_a_model_that_could_continue_a_video_is_told_that_there_is_none():
    """The released model is given the latent, an empty latent, and a mask of zeros, for nothing is there."""
    model, seen = random_model(visual_cond=True), []
    model.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    x, text = torch.randn(3, 4, 6, SMALL.in_visual_dim), torch.randn(5, SMALL.in_text_dim)
    predict_velocity(model, x, torch.rand(1), TextEmbeds(text, torch.randn(1, SMALL.in_text_dim2)))
    assert torch.equal(seen[0], torch.cat([x, torch.zeros(3, 4, 6, SMALL.in_visual_dim + 1)], dim=-1))


@torch.no_grad()
def test_embeddings_of_both_encoders_reach_the_model_in_its_dtype():
    """On a GPU the model computes in bfloat16, and CLIP in float32."""
    model, seen = random_model(), []
    set_dtype(model, torch.bfloat16)
    model.register_forward_pre_hook(lambda module, args: seen.append(args[1:3]))
    x, text = torch.randn(3, 4, 6, SMALL.in_visual_dim), torch.randn(5, SMALL.in_text_dim)
    embeds = TextEmbeds(text.bfloat16(), torch.randn(1, SMALL.in_text_dim2))
    velocity = predict_velocity(model, x.bfloat16(), torch.rand(1), embeds)
    assert [given.dtype for given in seen[0]] == [torch.bfloat16] * 2 and torch.isfinite(velocity).all()
    assert torch.equal(seen[0][1], embeds.pooled.bfloat16())


def test_a_model_that_was_distilled_without_guidance_gets_none(tiny_pipe, monkeypatch):
    sampling = dataclasses.replace(tiny_pipe.config.sampling, guidance_weight=1.0)
    monkeypatch.setattr(tiny_pipe, "config", dataclasses.replace(tiny_pipe.config, sampling=sampling))
    with pytest.raises(ValueError, match="tiny is a model without guidance: leave its guidance weight at 1, because 5"):
        tiny_pipe(PROMPT, time_length=0, guidance_weight=5, progress=False)


@pytest.mark.parametrize(("seconds", "tokens"), [(0, 9), (1, 11)])
def test_both_texts_of_an_image_are_put_in_the_template_of_images(tiny_pipe, forwards, monkeypatch, seconds, tokens):
    """The released model has learnt images with a template of their own."""
    templates = {"prompt_template": "the dog dances {}", "image_template": "red {}"}
    text = dataclasses.replace(tiny_pipe.config.text, **templates, negative_prompt=PROMPT)
    monkeypatch.setattr(tiny_pipe.text_embedder, "config", text)
    monkeypatch.setattr(tiny_pipe, "config", dataclasses.replace(tiny_pipe.config, text=text))
    tiny_pipe(PROMPT, time_length=seconds, num_steps=1, guidance_weight=2, progress=False)
    assert [len(args[1]) for args in forwards] == [tokens] * 2


def test_a_configuration_s_negative_prompt_is_what_the_guidance_moves_away_from(tiny_pipe, forwards, monkeypatch):
    """Without an argument the call takes it from the configuration, as lite's is needed for good videos."""
    text = dataclasses.replace(tiny_pipe.config.text, negative_prompt="a pig in the snow")
    monkeypatch.setattr(tiny_pipe, "config", dataclasses.replace(tiny_pipe.config, text=text))
    for caption in (None, "a pig in the snow", "a pig"):
        tiny_pipe(PROMPT, time_length=0, num_steps=1, guidance_weight=2, negative_caption=caption, progress=False)
    configured, given, other = (args[1] for args in forwards[1::2])
    assert torch.equal(configured, given) and configured.shape != other.shape


def test_the_model_runs_without_gradients_but_not_in_inference_mode(tiny_pipe, forwards):
    """Gradients would keep every step in memory. Inference mode would change the collectives of a sharded model."""
    latents, modes = [], []
    hook = tiny_pipe.dit.register_forward_hook(
        lambda *_: modes.append((torch.is_grad_enabled(), torch.is_inference_mode_enabled()))
    )
    tiny_pipe(PROMPT, time_length=0, progress=False, callback=lambda step, latent: latents.append(latent))
    hook.remove()
    assert set(modes) == {(False, False)}
    assert not any(latent.requires_grad or latent.is_inference() for latent in latents)


@pytest.mark.parametrize("kernel", ["cudnn", "flash4", "sdpa"])
def test_the_kernel_is_preferred_in_every_forward(tiny_pipe, kernel, monkeypatch):
    """PyTorch itself would choose a kernel that is slower on an H100. Pages say that cuDNN's was used."""
    preferred, default = [], _cur_sdpa_kernel_backends(with_priority=True)
    monkeypatch.setattr(attention, "flash4", lambda q, k, v: q)
    set_kernel(tiny_pipe.dit, kernel)
    hook = tiny_pipe.dit.register_forward_hook(
        lambda *_: preferred.append(_cur_sdpa_kernel_backends(with_priority=True))
    )
    tiny_pipe(PROMPT, time_length=0, progress=False)
    hook.remove()
    set_kernel(tiny_pipe.dit, "sdpa")
    assert len(preferred) == 2 * tiny_pipe.config.sampling.num_steps
    assert all(found == (default if kernel == "sdpa" else attention.CUDNN_FIRST) for found in preferred)
    assert attention.CUDNN_FIRST[0] == SDPBackend.CUDNN_ATTENTION
