"""The plans of the CrossDiT, module by module.

"talk" is the talk's tensor parallelism, and "minimal" leaves out those of its entries that change nothing. "tp_sp" adds
sequence parallelism: between the layers that are split, each rank keeps only its own share of the tokens. "ulysses"
splits tokens alone, and no weights. On a mesh of two dimensions, it can use a number of ranks that does not divide the
heads.

A plan maps the name of a submodule to a style. The comment beside each entry says what comes in, what goes out, and
what one forward costs on P ranks. S is the number of visual tokens, D is model_dim.
"""

from math import prod

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    PrepareModuleOutput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from ..config import DiTConfig
from .dit import DiffusionTransformer3D
from .exchange import ExchangeTokensForHeads

Plan = dict[str, ParallelStyle]

TP_PLANS = ("talk", "minimal")
PLANS = (*TP_PLANS, "tp_sp", "ulysses")
QUERY_MESH = ("query_parallel", "context_parallel")  # the dimensions of a mesh on which queries are split
WHOLE = Replicate()  # every rank has the whole tensor
TOKENS = Shard(0)  # each rank has its share of the tokens, in (S, D) and in (S, heads, head_dim)


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


def token_plan() -> Plan:
    """For the model, where tokens are split: each rank takes its share before the blocks, and gathers at the end.

    The layers before and after the blocks are not split. Every rank embeds all tokens and keeps its own. At the end
    each rank computes the velocity of its own tokens, which are narrow there, and gathers those of the others.
    """
    return {
        "visual_embeddings": PrepareModuleOutput(output_layouts=WHOLE, desired_output_layouts=TOKENS),  # free
        "out_layer.out_layer": PrepareModuleOutput(  # tokens -> whole; 1 all-gather
            output_layouts=TOKENS, desired_output_layouts=WHOLE
        ),
    }


def sequence_parallel_entries() -> Plan:
    """Return what replaces entries of a block's plan if the tokens are split between its three parts.

    Each part gathers its tokens at its start. The sums at its end are not completed on every rank: a reduce-scatter
    gives each rank the sums of its own tokens. Both together send what one all-reduce does.
    """
    gather = PrepareModuleInput(
        input_layouts=(TOKENS, None), desired_input_layouts=(WHOLE, None), use_local_output=True
    )
    return {
        "self_attention": gather,  # tokens -> whole; 1 all-gather (S x D)
        "out_layer_self": RowwiseParallel(output_layouts=TOKENS),  # heads -> tokens; 1 reduce-scatter (S x D)
        "cross_attention": gather,  # tokens -> whole; 1 all-gather (S x D)
        "out_layer_cross": RowwiseParallel(output_layouts=TOKENS),  # heads -> tokens; 1 reduce-scatter (S x D)
        "feed_forward.in_layer": ColwiseParallel(input_layouts=TOKENS),  # tokens -> columns; 1 all-gather (S x D)
        "feed_forward.out_layer": RowwiseParallel(output_layouts=TOKENS),  # columns -> tokens; 1 reduce-scatter (S x D)
    }


def ulysses_plan() -> Plan:
    """For the model: tokens are split, but self-attention needs all tokens of a head, so there heads are split instead.

    Everything else handles each token by itself. Cross-attention, too: every rank has the whole text.
    """
    return {
        "visual_rope_embeddings": PrepareModuleOutput(output_layouts=WHOLE, desired_output_layouts=TOKENS),  # free
        # tokens -> heads -> tokens; 2 all-to-alls: queries, keys and values (3 S x D), and the result (S x D)
        "visual_transformer_blocks.*.self_attention.attention": ExchangeTokensForHeads(),
    }


def query_plans() -> tuple[Plan, Plan]:
    """For the model, on a mesh of two dimensions: what comes before Ulysses' plan and what comes after it.

    Ulysses' plan runs along "context_parallel", as on a mesh of one dimension. These two run along "query_parallel".
    The ranks along it have the same heads in self-attention, and each of them has the queries of a different part of
    the tokens: of those that all ranks in its row of the mesh hold together.
    Hooks run in the order in which they are added: tokens are cut along "query_parallel" first, and gathered last.
    """
    cut = PrepareModuleOutput(output_layouts=WHOLE, desired_output_layouts=TOKENS)
    before = {
        "visual_embeddings": cut,  # whole -> tokens; free
        "visual_rope_embeddings": cut,  # whole -> tokens; free
    }
    after = {
        # queries stay as they are, keys and values become whole; 2 all-gathers (S x D / context_parallel)
        "visual_transformer_blocks.*.self_attention.attention": PrepareModuleInput(
            input_layouts=(TOKENS,) * 3, desired_input_layouts=(TOKENS, WHOLE, WHOLE), use_local_output=True
        ),
        "out_layer.out_layer": PrepareModuleOutput(  # tokens -> whole; 1 all-gather
            output_layouts=TOKENS, desired_output_layouts=WHOLE
        ),
    }
    return before, after


def near_plan() -> Plan:
    """For a model with NABLA, where queries are split: of the blocks nearby, a rank needs the rows of its queries."""
    return {
        "visual_transformer_blocks.*.self_attention.attention": PrepareModuleInput(  # whole -> rows; free
            input_kwarg_layouts={"near": WHOLE}, desired_input_kwarg_layouts={"near": TOKENS}, use_local_output=True
        ),
    }


def parallelize_dit(dit: DiffusionTransformer3D, mesh: DeviceMesh, plan: str = "talk") -> DiffusionTransformer3D:
    """Shard the model in place over a mesh. On a mesh of one rank nothing changes.

    The mesh has one dimension. For "ulysses" it may also have two, "query_parallel" and "context_parallel". The text
    blocks stay whole, because a caption has few tokens.

    Raises:
        ValueError: the plan is unknown or cannot use the mesh, or the number of heads or a width is not divisible by
            the number of ranks. The model is then unchanged.
    """
    if mesh.ndim > 1:
        return _parallelize_queries(dit, mesh, plan)
    check_divisible(dit.config, mesh.size(), plan)
    if mesh.size() == 1:
        return dit
    for module, entries in plans_of(dit, plan):
        parallelize_module(module, mesh, entries)
    if plan != "ulysses":
        for block in dit.visual_transformer_blocks:
            # A rank has only its share of the heads, all of them complete, so split_heads must count just these.
            block.self_attention.num_heads //= mesh.size()
            block.cross_attention.num_heads //= mesh.size()
    return dit


def _parallelize_queries(dit: DiffusionTransformer3D, mesh: DeviceMesh, plan: str) -> DiffusionTransformer3D:
    if plan != "ulysses" or mesh.mesh_dim_names != QUERY_MESH:
        raise ValueError(f"the plan {plan!r} cannot use a mesh with the dimensions {mesh.mesh_dim_names}")
    before, after = query_plans()
    check_divisible(dit.config, mesh["context_parallel"].size(), plan)
    parallelize_module(dit, mesh["query_parallel"], before)
    parallelize_dit(dit, mesh["context_parallel"], plan)
    if dit.config.nabla:
        parallelize_module(dit, mesh["query_parallel"], near_plan())
    return parallelize_module(dit, mesh["query_parallel"], after)


def plans_of(dit: DiffusionTransformer3D, plan: str) -> list[tuple[nn.Module, Plan]]:
    """Return each part of the model that is split, with its plan."""
    if plan == "ulysses":
        return [(dit, token_plan() | ulysses_plan())]
    additions = {"talk": talk_entries, "minimal": dict, "tp_sp": sequence_parallel_entries}[plan]
    parts = [
        (dit.time_embeddings, time_plan()),
        (dit.text_embeddings, embedding_plan()),
        (dit.pooled_text_embeddings, embedding_plan()),
        *((block, block_plan() | additions()) for block in dit.visual_transformer_blocks),
    ]
    if plan == "tp_sp":
        return [*parts, (dit, token_plan())]
    return [*parts, (dit.visual_embeddings, embedding_plan()), (dit.out_layer, out_plan())]


def check_divisible(config: DiTConfig, ranks: int, plan: str = "talk") -> None:
    """Refuse a number of ranks unless it divides the heads and every width that the plan splits.

    Raises:
        ValueError: the plan is unknown, or the message names the first width that does not divide, and the numbers of
            ranks that do.
    """
    if plan not in PLANS:
        raise ValueError(f"unknown plan {plan!r}: choose one of {', '.join(PLANS)}")
    widths = {"heads": config.num_heads}
    if plan != "ulysses":
        widths |= {"ff_dim": config.ff_dim, "time_dim": config.time_dim, "model_dim": config.model_dim}
    if plan in TP_PLANS:
        widths["visual output width"] = prod(config.patch_size) * config.out_visual_dim
    kind = "Ulysses" if plan == "ulysses" else "tensor parallelism"
    for name, width in widths.items():
        if width % ranks:
            fits = [n for n in range(1, width + 1) if all(w % n == 0 for w in widths.values())]
            numbers = f"{', '.join(map(str, fits[:-1]))} or {fits[-1]} ranks" if fits[1:] else "1 rank, and no more"
            raise ValueError(
                f"{kind} over {ranks} ranks: {width} {name} are not divisible by {ranks}; "
                f"it can split this model over {numbers}"
            )
