"""Two layers of the VAE's decoder. Their results are those of diffusers' layers up to rounding, and they suit GPUs.

For the statistics of a group, PyTorch's group normalization uses one multiprocessor. There are 32 groups, and an H100
has 132 multiprocessors. PyTorch's kernel for padding computes the source of every single value, and it copies the whole
video. Do not train with these layers: batch_norm passes no gradient to the statistics that it is given.
"""

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLHunyuanVideo
from diffusers.models.autoencoders.autoencoder_kl_hunyuan_video import HunyuanVideoCausalConv3d
from torch import nn

# A convolution takes as many frames at once as have about this many values, which are 1 GB in bfloat16.
VALUES_AT_ONCE = 2**29


def quicken_decoder(vae: AutoencoderKLHunyuanVideo) -> AutoencoderKLHunyuanVideo:
    """Let the VAE decode with the layers of this file, and return it. Its weights and their names stay as they are."""
    layers = {nn.GroupNorm: GroupNorm, HunyuanVideoCausalConv3d: CausalConv3d}
    for module in vae.decoder.modules():
        module.__class__ = layers.get(type(module), type(module))
        if isinstance(module, nn.SiLU):
            module.inplace = True  # its input is the result of a normalization, which nothing else uses
    return vae


class GroupNorm(nn.GroupNorm):
    """Group normalization of x (B, C, ...), with statistics in float32."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        places = tuple(range(2, x.dim()))
        count = x[0, 0].numel()
        mean = x.sum(places, dtype=torch.float32) / count
        square = torch.linalg.vector_norm(x, dim=places, dtype=torch.float32).square() / count
        mean, square = self._over_groups(mean), self._over_groups(square)
        # What remains is a scale and a shift for each channel. Batch normalization with given statistics is just that,
        # and it reads and writes x once.
        weight, bias = (parameter.float().repeat(len(x)) for parameter in (self.weight, self.bias))
        variance = (square - mean.square()).clamp_min(0.0)
        channels = x.flatten(0, 1)[None]
        normalized = F.batch_norm(channels, mean.flatten(), variance.flatten(), weight, bias, eps=self.eps)
        return normalized.view(x.shape)

    def _over_groups(self, x: torch.Tensor) -> torch.Tensor:
        """Give each channel of x (B, C) the mean over its group."""
        groups = x.unflatten(1, (self.num_groups, -1))
        return groups.mean(-1, keepdim=True).expand_as(groups).flatten(1)


class CausalConv3d(HunyuanVideoCausalConv3d):
    """A convolution of x (B, C, T, H, W). It pads by repeating the borders of the frames, and the first frame.

    It goes through a long video in parts, because a padded copy of the whole video takes much memory.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        *borders, before, after = self.time_causal_padding
        frames = max(before, 1, VALUES_AT_ONCE // x[:, :, 0].numel())
        if x.shape[2] <= frames:
            return self.conv(repeat_borders(x, self.time_causal_padding))
        out = x.new_empty(len(x), self.conv.out_channels, *x.shape[2:])
        for start in range(0, x.shape[2], frames):
            # A part needs the frames before it, too. Only the first part has none, and repeats its first frame.
            part = x[:, :, max(0, start - before) : start + frames]
            padding = (*borders, before if start == 0 else 0, after)
            out[:, :, start : start + frames] = self.conv(repeat_borders(part, padding))
        return out


def repeat_borders(x: torch.Tensor, padding: tuple[int, ...]) -> torch.Tensor:
    """Pad the last axes of x by repeating its borders, as F.pad(x, padding, mode="replicate") does."""
    if not any(padding):
        return x
    margins = [(-1 - axis // 2, *padding[axis : axis + 2]) for axis in range(0, len(padding), 2)]
    shape = list(x.shape)
    for axis, before, after in margins:
        shape[axis] += before + after
    padded = inside = x.new_empty(shape)
    for axis, before, _ in margins:
        inside = inside.narrow(axis, before, x.shape[axis])
    inside.copy_(x)
    # Each axis repeats what the ones before it have filled, so the corners come out right, too.
    for axis, before, after in margins:
        end = shape[axis] - after
        padded.narrow(axis, 0, before).copy_(padded.narrow(axis, before, 1))
        padded.narrow(axis, end, after).copy_(padded.narrow(axis, end - 1, 1))
    return padded
