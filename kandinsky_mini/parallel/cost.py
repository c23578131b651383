"""The cost model: what a layout sends, how long a step takes, and how much memory a rank needs.

The communication is exact. Times come from the ceilings of a GPU, and leave out what no ceiling shows: the gaps between
kernels, and how much ranks wait for one another. They are good for models as large as Lite. In mini, launching a kernel
takes longer than the kernel. Attention is predicted in full, even if the model's is sparse.
"""

import functools
from collections import Counter
from dataclasses import dataclass
from math import prod

import torch
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel

from ..config import DiTConfig, SamplingConfig
from ..models.dit import FLOAT32_MODULES, DiffusionTransformer3D, set_dtype
from ..models.parallelize import TP_PLANS, plans_of
from .ceilings import Ceilings
from .layout import SPLITS_TOKENS, ParallelLayout
from .ledger import Entry

BYTES = 2  # of a number in bfloat16, in which GPUs compute
LIBRARIES = 0.2e9  # bytes that cuBLAS, cuDNN and small tensors take besides, as records on an H200 show


def predict_collectives(
    config: DiTConfig,
    tokens: int,
    text_tokens: int,
    bytes_each: int,
    ranks: int,
    plan: str = "talk",
    queries: int = 1,
) -> list[Entry]:
    """Predict the collectives of one forward under a plan of models/parallelize.py.

    Args:
        tokens, text_tokens: the number of visual tokens, S, and of text tokens, L.
        bytes_each: bytes per number of the tokens, 4 for float32 and 2 for bfloat16.
        ranks: the number of ranks that share the heads or the weights, P.
        plan: the name of the plan.
        queries: for "ulysses", how many times as many ranks there are, each with a part of the queries.
    """
    if plan == "ulysses":
        return _collectives_of_ulysses(config, tokens, bytes_each, ranks, queries)
    if ranks == 1:
        return []
    activation = tokens * config.model_dim  # S x D
    collectives = [
        ("time_embeddings.out_layer", "all_reduce", config.time_dim),
        ("pooled_text_embeddings.in_layer", "all_gather", config.time_dim),
        ("text_embeddings.in_layer", "all_gather", text_tokens * config.model_dim),
    ]
    if plan in TP_PLANS:
        collectives.append(("visual_embeddings.in_layer", "all_gather", activation))
    for i in range(config.num_visual_blocks):
        in_block = _collectives_of_block(plan, activation, config.model_dim)
        collectives += [(f"visual_transformer_blocks.{i}.{name}", *rest) for name, *rest in in_block]
    collectives.append(("out_layer.out_layer", "all_gather", tokens * _out_width(config)))
    return [
        Entry(module, kind, numbers * _bytes_in(module, bytes_each), ranks) for module, kind, numbers in collectives
    ]


def _collectives_of_ulysses(config: DiTConfig, tokens: int, bytes_each: int, ranks: int, queries: int) -> list[Entry]:
    """Return the all-to-alls among the ranks that share tokens, and what those with the same heads gather."""
    activation = tokens * config.model_dim * bytes_each
    velocity = tokens * _out_width(config) * bytes_each
    core = [("all_to_all", 3 * activation // queries, ranks)]  # queries, keys and values
    core += [("all_gather", activation // ranks, queries)] * 2  # keys and values
    core += [("all_to_all", activation // queries, ranks)]  # the result
    end = [("all_gather", velocity // queries, ranks), ("all_gather", velocity, queries)]
    modules = {f"visual_transformer_blocks.{i}.self_attention.attention": core for i in range(config.num_visual_blocks)}
    return [
        Entry(module, kind, payload, group)
        for module, collectives in (modules | {"out_layer.out_layer": end}).items()
        for kind, payload, group in collectives
        if group > 1
    ]


def _bytes_in(module: str, bytes_each: int) -> int:
    """Return the bytes of a number that a module sends. Some modules compute in float32 whatever the others do."""
    return 4 if any(part.endswith(FLOAT32_MODULES) for part in module.split(".")) else bytes_each


def _collectives_of_block(plan: str, activation: int, model_dim: int) -> list[tuple[str, str, int]]:
    """Return the module, the kind and the numbers of each collective in a visual block."""
    modulation = ("visual_modulation.out_layer", "all_gather", 9 * model_dim)
    ends = ("out_layer_self", "out_layer_cross", "feed_forward.out_layer")
    if plan in TP_PLANS:
        return [modulation, *((end, "all_reduce", activation) for end in ends)]
    starts = ("self_attention", "cross_attention", "feed_forward.in_layer")
    gathered = [(start, "all_gather", activation) for start in starts]
    return [modulation, *gathered, *((end, "reduce_scatter", activation) for end in ends)]


@dataclass(frozen=True)
class Prediction:
    """What one rank does in a step under a layout.

    seconds: of "attention", "linear", "elementwise" and "communication". Their sum is the step.
    wire_bytes: what the rank sends. weight_bytes, activation_bytes: the memory that it needs for each.
    """

    layout: ParallelLayout
    seconds: dict[str, float]
    wire_bytes: float
    weight_bytes: int
    activation_bytes: int

    @property
    def step(self) -> float:
        return sum(self.seconds.values())

    @property
    def peak_bytes(self) -> float:
        return self.weight_bytes + self.activation_bytes + LIBRARIES


def predict(
    config: DiTConfig,
    sampling: SamplingConfig,
    layout: ParallelLayout,
    ceilings: Ceilings,
    text_tokens: tuple[int, int] = (200, 60),
) -> Prediction:
    """Predict a step in bfloat16, with compiled blocks.

    Args:
        text_tokens: the number of tokens in the prompt and in the negative prompt.
    """
    tokens = prod(size // patch for size, patch in zip(sampling.latent_size, config.patch_size, strict=True))
    texts = text_tokens if sampling.guided else text_tokens[:1]
    if layout.cfg > 1:
        texts = (max(texts),)  # a rank computes one branch, and a step lasts as long as the longer one
    seconds: Counter[str] = Counter()
    entries = []
    for text in texts:
        collectives = predict_collectives(config, tokens, text, BYTES, layout.size, layout.plan, layout.queries)
        entries += collectives
        seconds.update(_arithmetic(config, tokens, text, layout, ceilings))
    if layout.cfg > 1:
        velocity = prod(sampling.latent_size) * config.out_visual_dim * BYTES
        entries.append(Entry("", "all_gather", layout.cfg * velocity, layout.cfg))
    seconds["communication"] = sum(ceilings.collective_seconds(e.collective, e.ranks, e.payload) for e in entries)
    return Prediction(
        layout=layout,
        seconds=dict(seconds),
        wire_bytes=sum(entry.wire for entry in entries),
        weight_bytes=weight_bytes(config, layout),
        activation_bytes=activation_bytes(config, tokens, layout),
    )


def _arithmetic(config: DiTConfig, S: int, L: int, layout: ParallelLayout, ceilings: Ceilings) -> dict[str, float]:
    """Return the seconds of one forward that are not communication. S and L count visual and text tokens.

    The embeddings, the modulation and the matrix of the output layer are left out, because they are small.
    """
    P, D, F = layout.branch_ranks, config.model_dim, config.ff_dim
    split = P if layout.kind != "ulysses" else 1  # into how many parts the weights are cut
    rows = S // P if layout.kind == "ulysses" else S  # the tokens that meet a split layer
    kept = S // P if layout.kind in SPLITS_TOKENS else S  # the tokens of norms and sums between the split layers

    linear = ceilings.linear_seconds
    block = (
        4 * linear(rows, D, D // split)  # queries, keys, values; queries of cross-attention
        + 2 * linear(L, D, D // split)  # keys and values of the text
        + 2 * linear(rows, D // split, D)  # both output projections
        + linear(rows, D, F // split)
        + linear(rows, F // split, D)
    )
    text_block = 4 * linear(L, D, D) + linear(L, D, F) + linear(L, F, D)
    heads = config.num_heads // split
    to_itself = ceilings.attention_seconds(S // layout.queries, S, config.num_heads // layout.size)
    attention = to_itself + ceilings.attention_seconds(rows, L, heads)

    # Numbers read and written, in units of D for each token. A norm reads and writes, a gated sum reads two tensors and
    # writes one, three times each; q and k are normalised and rotated, the query of cross-attention is normalised;
    # GELU reads and writes the hidden columns. Ulysses copies values and results; what it does to queries and keys
    # is part of their rotation.
    passes = kept * 3 * (2 + 3) + S / P * (3 * 2 + 2 * F / D)
    if layout.kind == "ulysses" and P > 1:
        passes += S / P * 2 * 2
    # The output layer's norm is not compiled. For each number it reads and writes 36 bytes, and not 4.
    elementwise = ceilings.elementwise_seconds(BYTES * D * (config.num_visual_blocks * passes + 18 * kept))
    scale = config.head_dim / ceilings.head_dim
    return {
        "attention": config.num_visual_blocks * attention * scale,
        "linear": config.num_visual_blocks * block + config.num_text_blocks * text_block,
        "elementwise": elementwise,
    }


def weight_bytes(config: DiTConfig, layout: ParallelLayout, dtype: torch.dtype = torch.bfloat16) -> int:
    """Return the bytes of the weights that a rank holds, to the byte."""
    whole, split = _whole_and_split(config, layout.plan, dtype)
    return whole + split // layout.size


@functools.cache
def _whole_and_split(config: DiTConfig, plan: str, dtype: torch.dtype) -> tuple[int, int]:
    """Return the bytes of the weights that every rank holds under a plan, and of those that the ranks share."""
    with torch.device("meta"):
        dit = DiffusionTransformer3D(config)
    set_dtype(dit, dtype)
    split = 0
    for module, entries in plans_of(dit, plan):
        for name, style in entries.items():
            if isinstance(style, (ColwiseParallel, RowwiseParallel)):
                layer = module.get_submodule(name)
                # A row-wise layer adds its bias after the sum, so every rank has all of it.
                biased = layer.bias is not None and isinstance(style, ColwiseParallel)
                split += layer.weight.nbytes + (layer.bias.nbytes if biased else 0)
    return sum(parameter.nbytes for parameter in dit.parameters()) - split, split


def activation_bytes(config: DiTConfig, tokens: int, layout: ParallelLayout) -> int:
    """Return the bytes of a rank's activations at the fullest moment of a forward, with compiled blocks.

    X stands for the bytes of all visual tokens. Lesson 06 derives the two moments of tensor parallelism. With split
    queries a rank needs more in self-attention, where it has whole keys and values: 0.08 GB in a record of Lite.
    """
    P, X = layout.branch_ranks, tokens * config.model_dim * BYTES
    hidden = config.ff_dim / config.model_dim * X / P
    stream = X / P if layout.kind in SPLITS_TOKENS else X  # what a rank keeps between the split layers
    entered = X if layout.kind == "tp_sp" else stream  # what goes into a feed-forward
    in_feed_forward = 2 * stream + entered + hidden
    in_output_layer = 5 * stream  # in the norm: the tokens, and two tensors in float32
    embedding = X + stream if layout.kind in SPLITS_TOKENS and P > 1 else X  # all tokens, and the rank's share
    # Queries, keys and values, and a copy of them that is sent, beside the input that they were computed from.
    in_exchange = 2 * stream + 6 * X / P if layout.kind == "ulysses" and P > 1 else 0
    return int(max(in_feed_forward, in_output_layer, embedding, in_exchange))


def _out_width(config: DiTConfig) -> int:
    return prod(config.patch_size) * config.out_visual_dim
