"""The tensor-parallel plans of the CrossDiT, one for each module: the talk's, and the least that does the same.

A plan maps the name of a submodule to a style. A comment behind each entry says what comes in, what goes out, and
what it costs per forward on P ranks. S: visual tokens, L: text tokens, D: model_dim.
"""

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

from .dit import DiffusionTransformer3D

Plan = dict[str, ParallelStyle]

VARIANTS = ("talk", "minimal")
WHOLE = Replicate()  # every rank has all of it


def time_plan() -> Plan:
    return {
        "in_layer": ColwiseParallel(),  # whole -> columns; free
        "out_layer": RowwiseParallel(output_layouts=WHOLE),  # columns -> whole; 1 all-reduce (time_dim)
    }


def embedding_plan() -> Plan:
    """Of text, pooled text and visual embeddings: what follows needs whole vectors, so the columns are gathered."""
    return {
        "in_layer": ColwiseParallel(output_layouts=WHOLE),  # whole -> whole; 1 all-gather
    }


def block_plan() -> Plan:
    """Of a visual block: split by columns, then by rows, and one all-reduce mends the sum."""
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
    """What the talk's plan has besides. None of it moves a byte or saves any work.

    SequenceParallel takes a plain, whole tensor for a shard of one P times as long, and hands it back: right, since
    a norm works on each token alone, but every rank still norms every token. The modulation's input is whole already.
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


def parallelize_dit(dit: DiffusionTransformer3D, tp_mesh: DeviceMesh, variant: str = "talk") -> DiffusionTransformer3D:
    """Shard the model over a one-dimensional mesh, in place; on a mesh of one rank nothing changes.

    The text blocks stay whole: a caption has few tokens.

    Raises:
        ValueError: a width or the number of heads does not divide by the ranks; nothing is sharded then.
    """
    if variant not in VARIANTS:
        raise ValueError(f"unknown plan {variant!r}: choose one of {', '.join(VARIANTS)}")
    ranks = tp_mesh.size()
    check_divisible(dit, ranks)
    if ranks == 1:
        return dit

    parallelize_module(dit.time_embeddings, tp_mesh, time_plan())
    for embeddings in (dit.text_embeddings, dit.pooled_text_embeddings, dit.visual_embeddings):
        parallelize_module(embeddings, tp_mesh, embedding_plan())
    for block in dit.visual_transformer_blocks:
        parallelize_module(block, tp_mesh, block_plan() | (talk_entries() if variant == "talk" else {}))
        # Each rank has its own part of the heads, whole ones.
        block.self_attention.num_heads //= ranks
        block.cross_attention.num_heads //= ranks
    parallelize_module(dit.out_layer, tp_mesh, out_plan())
    return dit


def check_divisible(dit: DiffusionTransformer3D, ranks: int) -> None:
    """Every width that a plan splits must divide by the number of ranks."""
    block = dit.visual_transformer_blocks[0]
    widths = {
        "heads": block.self_attention.num_heads,
        "ff_dim": block.feed_forward.in_layer.out_features,
        "time_dim": dit.time_embeddings.in_layer.out_features,
        "model_dim": dit.visual_embeddings.in_layer.out_features,
        "visual output width": dit.out_layer.out_layer.out_features,
    }
    for name, width in widths.items():
        if width % ranks:
            fits = [n for n in range(1, width + 1) if all(w % n == 0 for w in widths.values())]
            raise ValueError(
                f"tensor parallelism over {ranks} ranks: {width} {name} are not divisible by {ranks}; "
                f"this model runs on {', '.join(map(str, fits[:-1]))} or {fits[-1]} ranks"
            )
