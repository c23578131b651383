"""The layers that decode quickly give what diffusers' layers give."""

import copy

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl_hunyuan_video import HunyuanVideoCausalConv3d
from helpers import relative_difference
from torch import nn

from kandinsky_mini.bench.random_models import draw_weights
from kandinsky_mini.build import build_decoder, find_weights
from kandinsky_mini.config import load_config
from kandinsky_mini.models import vae_layers
from kandinsky_mini.models.vae import decode, load_vae
from kandinsky_mini.models.vae_layers import CausalConv3d, GroupNorm, quicken_decoder, repeat_borders
from kandinsky_mini.training.fresh_models import new_vae


@pytest.mark.parametrize("padding", [(1, 1, 1, 1, 2, 0), (0, 2, 3, 0, 0, 1), (0, 0, 0, 0, 2, 0), (0,) * 6])
@pytest.mark.parametrize("contiguous", [True, False])
def test_borders_are_repeated_as_pytorch_does(padding, contiguous):
    x = torch.randn(2, 3, 4, 5, 6)
    x = x if contiguous else x.transpose(-1, -2)
    assert torch.equal(repeat_borders(x, padding), F.pad(x, padding, mode="replicate"))


@pytest.mark.parametrize("shape", [(1, 8, 3, 4, 5), (3, 8, 3, 4, 5), (2, 8, 7)])
@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_a_group_is_normalized_as_in_pytorch(shape, offset):
    """An offset of 30 standard deviations is far more than a VAE has."""
    plain = draw_weights(nn.GroupNorm(4, 8, eps=1e-6), torch.device("cpu"))
    nn.init.normal_(plain.weight)
    quick = copy.deepcopy(plain)
    quick.__class__ = GroupNorm
    x = torch.randn(shape) * torch.arange(1, 9).view(8, *[1] * (len(shape) - 2)) + offset
    assert relative_difference(quick(x), plain(x)) < 1e-4
    half = plain.bfloat16(), quick.bfloat16()
    exact = copy.deepcopy(plain).float()(x.bfloat16().float())
    plain_error, quick_error = (relative_difference(layer(x.bfloat16()), exact) for layer in half)
    assert quick_error < 1.1 * plain_error


def test_constant_values_do_not_become_nan():
    """For many of them, rounding would make the variance negative."""
    quick = GroupNorm(2, 4, eps=1e-6)
    for value in range(1, 2000, 7):
        assert torch.isfinite(quick(torch.full((1, 4, 3, 5, 5), value / 100))).all()


@torch.no_grad()
@pytest.mark.parametrize("frames", [1, 2, 3, 7, 8])
@pytest.mark.parametrize("kernel", [3, 1])
def test_a_convolution_in_parts_gives_the_whole(monkeypatch, frames, kernel):
    """A part takes two frames at least, because a kernel of three looks back at two. The last part can be shorter."""
    plain = draw_weights(HunyuanVideoCausalConv3d(4, 6, kernel), torch.device("cpu"))
    quick = copy.deepcopy(plain)
    quick.__class__ = CausalConv3d
    x, parts = torch.randn(2, 4, 7, 5, 6), []
    monkeypatch.setattr(vae_layers, "VALUES_AT_ONCE", frames * x[:, :, 0].numel())
    quick.conv.register_forward_pre_hook(lambda module, inputs: parts.append(inputs[0].shape[2] - (kernel - 1)))
    assert relative_difference(quick(x), plain(x)) < 1e-6
    size = max(frames, kernel - 1)
    assert parts == [min(size, 7 - start) for start in range(0, 7, size)]


@torch.no_grad()
def test_all_layers_of_a_decoder_are_replaced_and_its_weights_are_not():
    plain = draw_weights(new_vae(16), torch.device("cpu"))
    quick = quicken_decoder(copy.deepcopy(plain))
    assert {type(m) for m in quick.decoder.modules()}.isdisjoint({nn.GroupNorm, HunyuanVideoCausalConv3d})
    assert {type(m) for m in quick.encoder.modules()}.isdisjoint({GroupNorm, CausalConv3d})
    assert all(torch.equal(quick.state_dict()[name], value) for name, value in plain.state_dict().items())
    z = torch.randn(1, 16, 3, 4, 6)
    assert relative_difference(quick.decoder(z), plain.decoder(z)) < 1e-5


@torch.no_grad()
def test_mini_decodes_the_same_video():
    config = load_config()
    plain = load_vae(find_weights(config, ("vae",))["vae"], config.vae.tiling, torch.float32)
    quick = build_decoder("cpu").vae
    assert any(isinstance(module, GroupNorm) for module in quick.decoder.modules())
    latents = torch.randn(1, 3, 16, 16, 16)
    difference = (decode(quick, latents).int() - decode(plain, latents).int()).abs()
    assert difference.max() <= 1 and difference.float().mean() < 1e-3
