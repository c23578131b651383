"""The embeddings of a prompt. They have a file of their own so that ranks need not import the text encoders."""

from typing import NamedTuple

import torch


class TextEmbeds(NamedTuple):
    """text (L, in_text_dim) holds one embedding for each token, pooled (1, in_text_dim2) one for the whole prompt."""

    text: torch.Tensor
    pooled: torch.Tensor

    def to(self, device: torch.device | str) -> "TextEmbeds":
        return TextEmbeds(self.text.to(device), self.pooled.to(device))
