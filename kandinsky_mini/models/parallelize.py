"""The tensor-parallel plans of the CrossDiT, one for each module: the talk's, and the smallest one that does the same.

A plan maps the name of a submodule to a style. The comment behind each entry says what comes in, what goes out, and
what one forward costs on P ranks. S is the number of visual tokens, D is model_dim.
"""

from math import prod

from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from ..config import DiTConfig
from .dit import DiffusionTransformer3D

Plan = dict[str, ParallelStyle]

PLANS = ("talk", "minimal")
WHOLE = Replicate()  # every rank has the whole tensor


def time_plan() -> Plan:
    return {
        "in_layer": ColwiseParallel(),  # whole -> columns; free
        "out_layer": RowwiseParallel(output_layouts=WHOLE),  # columns -> whole; 1 all-reduce (time_dim)
    }


def embedding_plan() -> Plan:
    """For text, pooled text and visual embeddings. What follows needs whole vectors, so the columns are gathered."""
    return {
        "in_layer": ColwiseParallel(output_layouts=WHOLE),  # whole -> whole; 1 all-gather
    }


def block_plan() -> Plan:
    """For a visual block: split by columns, then by rows, and one all-reduce completes the sum."""
    return {
        "visual_modulation.out_layer": ColwiseParallel(output_layouts=WHOLE),  # whole -> whole; 1 all-gather (9 D)
        "self_attention.to_query": ColwiseParallel(),  # whole -> heads; free
        "self_attention.to_key": ColwiseParallel(),  # whole -> heads; free
        "self_attention.to_value": ColwiseParallel(),  # whole -> heads; free
        "out_layer_self": RowwiseParallel(output_layouts=WHOLE),  # heads -> whole; 1 all-reduce (S x D)
        "cross_attention.to_query": ColwiseParallel(),  # whole -> heads; free
        "cross_attention.to_key": ColwiseParallel(),  # whole -> heads; free
        "cross_attention.to_value": ColwiseParallel(),  # whole -> heads; free
        "out_layer_cross": RowwiseParallel(output_layouts=WHOLE),  # heads -> whole; 1 all-reduce (S x D)
        "feed_forward.in_layer": ColwiseParallel(),  # whole -> columns; free
        "feed_forward.out_layer": RowwiseParallel(output_layouts=WHOLE),  # columns -> whole; 1 all-reduce (S x D)
    }


def talk_entries() -> Plan:
    """What the talk's plan for a visual block has in addition. None of it moves a byte or saves any work.

    SequenceParallel takes a plain, whole tensor for one shard of a tensor P times as long, and hands it back. The
    result is right because a norm works on each token by itself, but every rank still normalises every token. The
    input of the modulation is whole already.
    """
    norms = ("self_attention_norm", "cross_attention_norm", "feed_forward_norm")
    of_heads = [f"{kind}_attention.{norm}" for kind in ("self", "cross") for norm in ("query_norm", "key_norm")]
    relabel = {name: SequenceParallel(sequence_dim=0, use_local_output=True) for name in (*norms, *of_heads)}
    modulation = PrepareModuleInput(input_layouts=WHOLE, desired_input_layouts=WHOLE, use_local_output=True)
    return {"visual_modulation": modulation} | relabel


def out_plan() -> Plan:
    return {
        "out_layer": ColwiseParallel(output_layouts=WHOLE),  # whole -> whole; 1 all-gather
    }


def parallelize_dit(dit: DiffusionTransformer3D, tp_mesh: DeviceMesh, plan: str = "talk") -> DiffusionTransformer3D:
    """Shard the model in place over a one-dimensional mesh. On a mesh of one rank nothing changes.

    The text blocks stay whole, because a caption has few tokens.

    Raises:
        ValueError: the number of heads or a width does not divide by the number of ranks. Nothing is sharded then.
    """
    if plan not in PLANS:
        raise ValueError(f"unknown plan {plan!r}: choose one of {', '.join(PLANS)}")
    ranks = tp_mesh.size()
    check_divisible(dit.config, ranks)
    if ranks == 1:
        return dit

    parallelize_module(dit.time_embeddings, tp_mesh, time_plan())
    for embeddings in (dit.text_embeddings, dit.pooled_text_embeddings, dit.visual_embeddings):
        parallelize_module(embeddings, tp_mesh, embedding_plan())
    for block in dit.visual_transformer_blocks:
        parallelize_module(block, tp_mesh, block_plan() | (talk_entries() if plan == "talk" else {}))
        # Each rank computes its own share of the heads, and whole ones.
        block.self_attention.num_heads //= ranks
        block.cross_attention.num_heads //= ranks
    parallelize_module(dit.out_layer, tp_mesh, out_plan())
    return dit


def check_divisible(config: DiTConfig, ranks: int) -> None:
    """Refuse a number of ranks unless it divides every width that a plan splits.

    Raises:
        ValueError: the message names the first width that does not divide, and the numbers of ranks that do.
    """
    widths = {
        "heads": config.num_heads,
        "ff_dim": config.ff_dim,
        "time_dim": config.time_dim,
        "model_dim": config.model_dim,
        "visual output width": prod(config.patch_size) * config.out_visual_dim,
    }
    for name, width in widths.items():
        if width % ranks:
            fits = [n for n in range(1, width + 1) if all(w % n == 0 for w in widths.values())]
            raise ValueError(
                f"tensor parallelism over {ranks} ranks: {width} {name} are not divisible by {ranks}; "
                f"this model runs on {', '.join(map(str, fits[:-1]))} or {fits[-1]} ranks"
            )
