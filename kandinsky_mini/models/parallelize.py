"""The tensor-parallel plans of the CrossDiT, module by module.

There are two: "talk" is the talk's plan, and "minimal" leaves out the entries that change nothing.

A plan maps the name of a submodule to a style. The comment beside each entry says what comes in, what goes out, and
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
    """For the time embedding: a pair of layers, split by columns and then by rows."""
    return {
        "in_layer": ColwiseParallel(),  # whole -> columns; free
        "out_layer": RowwiseParallel(output_layouts=WHOLE),  # columns -> whole; 1 all-reduce (time_dim)
    }


def embedding_plan() -> Plan:
    """For the text, pooled text and visual embeddings: the next modules need whole vectors, so columns are gathered."""
    return {
        "in_layer": ColwiseParallel(output_layouts=WHOLE),  # whole -> whole; 1 all-gather
    }


def block_plan() -> Plan:
    """For a visual block: each of its three parts is split by columns, then by rows.

    One all-reduce at the end of each part completes the sum.
    """
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
    """Return the entries that the talk's plan adds for a visual block. None of them sends a byte or saves any work.

    Each rank gives SequenceParallel a plain tensor with all tokens. SequenceParallel treats it as one shard of a tensor
    P times as long, and gives the rank its own tensor back. This is correct, because a norm handles each token by
    itself, but every rank still normalises every token. PrepareModuleInput declares the modulation's input replicated,
    which it already is.
    """
    norms = ("self_attention_norm", "cross_attention_norm", "feed_forward_norm")
    of_heads = [f"{kind}_attention.{norm}" for kind in ("self", "cross") for norm in ("query_norm", "key_norm")]
    relabel = {name: SequenceParallel(sequence_dim=0, use_local_output=True) for name in (*norms, *of_heads)}
    modulation = PrepareModuleInput(input_layouts=WHOLE, desired_input_layouts=WHOLE, use_local_output=True)
    return {"visual_modulation": modulation} | relabel


def out_plan() -> Plan:
    """For the output layer: the columns are gathered, because every rank needs the whole velocity."""
    return {
        "out_layer": ColwiseParallel(output_layouts=WHOLE),  # whole -> whole; 1 all-gather
    }


def parallelize_dit(dit: DiffusionTransformer3D, tp_mesh: DeviceMesh, plan: str = "talk") -> DiffusionTransformer3D:
    """Shard the model in place over a one-dimensional mesh. On a mesh of one rank nothing changes.

    The text blocks stay whole, because a caption has few tokens.

    Raises:
        ValueError: the plan is unknown, or the number of heads or a width is not divisible by the number of ranks.
            The model is then unchanged.
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
        # A rank has only its share of the heads, all of them complete, so split_heads must count just these.
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
