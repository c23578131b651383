"""Predict the communication of tensor parallelism from the model's sizes alone."""

from math import prod

from ..config import DiTConfig
from .ledger import Entry


def predict_tensor_parallel(
    config: DiTConfig, tokens: int, text_tokens: int, bytes_each: int, ranks: int
) -> list[Entry]:
    """Predict the collectives of one forward under the talk's plan.

    Args:
        tokens, text_tokens: the number of visual tokens, S, and of text tokens, L.
        bytes_each: bytes per number, 4 for float32 and 2 for bfloat16.
        ranks: the number of tensor-parallel ranks, P.
    """
    activation = tokens * config.model_dim  # S x D
    out_width = prod(config.patch_size) * config.out_visual_dim
    collectives = [
        ("time_embeddings.out_layer", "all_reduce", config.time_dim),
        ("pooled_text_embeddings.in_layer", "all_gather", config.time_dim),
        ("text_embeddings.in_layer", "all_gather", text_tokens * config.model_dim),
        ("visual_embeddings.in_layer", "all_gather", activation),
    ]
    for i in range(config.num_visual_blocks):
        block = f"visual_transformer_blocks.{i}"
        collectives += [
            (f"{block}.visual_modulation.out_layer", "all_gather", 9 * config.model_dim),
            (f"{block}.out_layer_self", "all_reduce", activation),
            (f"{block}.out_layer_cross", "all_reduce", activation),
            (f"{block}.feed_forward.out_layer", "all_reduce", activation),
        ]
    collectives.append(("out_layer.out_layer", "all_gather", tokens * out_width))
    return [Entry(module, kind, numbers * bytes_each, ranks) for module, kind, numbers in collectives]
