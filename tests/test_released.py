"""The lite configurations have the values that were published with Kandinsky 5 Lite.

Wrong ones would go unnoticed here, because the released weights and tokenizers are not part of this repository. A model
that is given another template, or one token more of it, still makes videos, only worse ones.
"""

import dataclasses

import pytest
import torch

from kandinsky_mini.bench.random_models import random_text_embedder, random_vae
from kandinsky_mini.config import CONFIGS, load_config
from kandinsky_mini.models.dit import DiffusionTransformer3D
from kandinsky_mini.models.vae import split

SECONDS = [5, 10]
SIZES = {
    "in_visual_dim": 16,
    "in_text_dim": 3584,
    "in_text_dim2": 768,
    "time_dim": 512,
    "out_visual_dim": 16,
    "patch_size": (1, 2, 2),
    "model_dim": 1792,
    "ff_dim": 7168,
    "num_text_blocks": 2,
    "num_visual_blocks": 32,
    "axes_dims": (16, 24, 24),
    "visual_cond": True,
}
# The spelling is the published one.
TEMPLATE = [
    "<|im_start|>system",
    "You are a promt engineer. Describe the video in detail.",
    "Describe how the camera moves or shakes, describe the zoom and view angle, whether it follows the objects.",
    "Describe the location of the video, main characters or objects and their action.",
    "Describe the dynamism of the video and presented actions.",
    "Name the visual style of the video: whether it is a professional footage, user generated content, "
    "some kind of animation, video game or scren content.",
    "Describe the visual effects, postprocessing and transitions if they are presented in the video.",
    "Pay attention to the order of key actions shown in the scene.<|im_end|>",
    "<|im_start|>user",
    "{}<|im_end|>",
]
IMAGE_TEMPLATE = [
    "<|im_start|>system",
    "You are a promt engineer. Describe the image by detailing the color, shape, size, texture, quantity, text, "
    "spatial relationships of the objects and background:<|im_end|>",
    "<|im_start|>user",
    "{}<|im_end|>",
]
NEGATIVE = (
    "Static, 2D cartoon, cartoon, 2d animation, paintings, images, "
    "worst quality, low quality, ugly, deformed, walking backwards"
)


@pytest.fixture(params=SECONDS)
def lite(request):
    return load_config(CONFIGS / f"lite_{request.param}s.yaml")


def test_the_sizes(lite):
    nabla = {"P": 0.9, "window": (11, 3, 3), "block": (8, 8)} if lite.sampling.time_length == 10 else None
    assert dataclasses.asdict(lite.dit) == SIZES | {"nabla": nabla}
    assert (lite.dit.num_heads, lite.dit.head_dim) == (28, 64)


def test_the_template_and_how_many_of_its_tokens_are_cut_off(lite):
    assert lite.text.prompt_template.split("\n") == TEMPLATE
    assert lite.text.crop_start == 129
    assert lite.text.image_template.split("\n") == IMAGE_TEMPLATE
    assert lite.text.image_crop_start == 41
    assert lite.text.negative_prompt == NEGATIVE


def test_how_long_a_prompt_may_be(lite):
    assert (lite.text.max_length, lite.text.pooled_max_length) == (256, 77)


def test_how_the_talk_samples(lite):
    sampling = dataclasses.asdict(lite.sampling)
    assert sampling.pop("time_length") == int(lite.name.removeprefix("lite_").removesuffix("s"))
    assert sampling == {
        "width": 768,
        "height": 512,
        "num_steps": 50,
        "guidance_weight": 5.0,
        "scheduler_scale": 10.0,
        "scale_factor": (1.0, 2.0, 2.0),
    }


@pytest.mark.parametrize(
    ("variant", "changes"),
    [
        ("pretrain", {}),
        ("nocfg", {"guidance_weight": 1.0}),
        ("distilled16steps", {"num_steps": 16, "guidance_weight": 1.0, "scheduler_scale": 5.0}),
    ],
)
def test_other_variants_differ_in_how_they_sample_and_in_their_weights(variant, changes):
    base, config = load_config("lite_5s"), load_config(f"lite_{variant}_5s")
    assert config.sampling == dataclasses.replace(base.sampling, **changes)
    assert config.weights.dit == f"weights/lite/kandinsky5lite_t2v_{variant}_5s.safetensors"
    same = {"sampling": base.sampling, "name": base.name, "weights": base.weights}
    assert dataclasses.replace(config, **same) == base


@pytest.mark.parametrize(("seconds", "frames", "tokens"), [(5, 31, 47_616), (10, 61, 93_696)])
def test_a_video_has_so_many_tokens(seconds, frames, tokens):
    config = load_config(CONFIGS / f"lite_{seconds}s.yaml")
    t, h, w = config.sampling.latent_size
    assert (t, h, w) == (frames, 64, 96)
    _, ph, pw = config.dit.patch_size
    assert t * (h // ph) * (w // pw) == tokens


def test_the_weights_have_their_published_names(lite):
    seconds = lite.sampling.time_length
    assert vars(lite.weights) == {
        "dit": f"weights/lite/kandinsky5lite_t2v_sft_{seconds}s.safetensors",
        "vae": "weights/lite/vae",
        "text_encoder": "weights/lite/text_encoder",
        "text_encoder2": "weights/lite/text_encoder2",
    }


def test_the_vae_is_hunyuanvideo_s():
    """Its latents are scaled, unlike mini's, and long videos are decoded in pieces, one every 8 frames."""
    vae = random_vae(True, torch.device("meta"), torch.bfloat16)
    config = vae.config
    assert [piece.shape[2] for piece in split(vae, torch.empty(1, 16, 31, 1, 1))][:2] == [5, 5]  # 17 frames each
    assert vae.tile_sample_stride_num_frames == 8
    assert config.scaling_factor == 0.476986
    assert (config.spatial_compression_ratio, config.temporal_compression_ratio) == (8, 4)
    assert all(load_config(CONFIGS / f"lite_{seconds}s.yaml").vae.tiling for seconds in SECONDS)


def test_norms_divide_by_what_the_released_ones_do(lite):
    """The talk's cells print eps=1e-05 for each LayerNorm, and eps=None for the RMSNorm of queries and keys."""
    with torch.device("meta"):
        model = DiffusionTransformer3D(lite.dit)
    names = {name: module for name, module in model.named_modules() if name.endswith("norm")}
    layer_norms = {name: module for name, module in names.items() if isinstance(module, torch.nn.LayerNorm)}
    assert len(layer_norms) == 2 + 2 * 2 + 32 * 3 + 1 and {norm.eps for norm in layer_norms.values()} == {1e-5}
    assert {name for name, norm in layer_norms.items() if norm.elementwise_affine} == {
        "text_embeddings.norm",
        "pooled_text_embeddings.norm",
    }
    heads = [module for name, module in names.items() if name not in layer_norms]
    assert len(heads) == 2 * 2 + 32 * 4 and {(type(norm), norm.eps) for norm in heads} == {(torch.nn.RMSNorm, None)}


def test_random_encoders_cut_off_the_template_and_nothing_of_the_prompt(lite):
    """A benchmark with them must encode as many tokens as the prompt has, as with the released ones."""
    embedder = random_text_embedder(lite, torch.device("meta"))
    for image in (False, True):
        ids, _ = embedder.tokenize(["a cat in a red hat"], image)
        _, crop_start = embedder.config.template(image)
        tokens = embedder.tokenizer.convert_ids_to_tokens(ids[0, crop_start:].tolist())
        assert tokens[:6] == "a cat in a red hat".split()
