"""A long video is decoded in pieces, which are independent until they are blended."""

import pytest
import torch

from kandinsky_mini.models.vae import blend, set_tiling, split
from kandinsky_mini.training.fresh_models import new_vae


@pytest.fixture(scope="module")
def vae():
    return set_tiling(new_vae(16), True).eval()


@pytest.mark.parametrize(("latents", "pieces"), [(1, 1), (4, 1), (5, 2), (7, 3), (8, 4), (10, 5), (13, 6), (31, 15)])
@torch.no_grad()
def test_blended_pieces_are_bit_for_bit_what_diffusers_decodes(vae, latents, pieces):
    x = torch.randn(1, 16, latents, 2, 3)
    parts = split(vae, x)
    assert len(parts) == pieces
    video = blend(vae, [vae.decoder(vae.post_quant_conv(part)) for part in parts])
    assert video.shape == (1, 3, 4 * (latents - 1) + 1, 16, 24)
    assert torch.equal(video, vae.decode(x).sample)


def test_without_tiling_there_is_one_piece():
    untiled = set_tiling(new_vae(16), False)
    x = torch.randn(1, 16, 13, 2, 3)
    (piece,) = split(untiled, x)
    assert torch.equal(piece, x)
