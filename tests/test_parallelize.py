"""The plans are exact, and cost what their comments say. Ranks are simulated here. test_on_ranks.py uses real ones."""

import copy
import dataclasses

import pytest
import torch
from helpers import MODEL_BAR, SMALL, random_inputs, random_model, relative_difference
from torch.distributed.tensor import Partial
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, SequenceParallel

from kandinsky_mini.models import parallelize
from kandinsky_mini.models.dit import DiffusionTransformer3D
from kandinsky_mini.models.parallelize import PLANS, parallelize_dit
from kandinsky_mini.parallel.layout import ParallelLayout
from kandinsky_mini.parallel.simulation import per_rank, simulated_ranks

BLOCKS, HEADS = SMALL.num_visual_blocks, SMALL.num_heads


@torch.no_grad()
def run_sharded(model: DiffusionTransformer3D, inputs: tuple, ranks: ParallelLayout | int, plan: str, after=None):
    """Return what every rank gets, and how many collectives of each kind run. `after` may spoil the sharded model."""
    model = copy.deepcopy(model)
    with simulated_ranks(ranks) as mesh:
        parallelize_dit(model, mesh, plan)
        if after is not None:
            after(model)
        with CommDebugMode() as comm:
            outputs = per_rank(model(*inputs))
    counts = {str(op).split(".")[-1]: count for op, count in comm.get_comm_counts().items()}
    return outputs, counts


@torch.no_grad()
def difference(outputs: list[torch.Tensor], model: DiffusionTransformer3D, inputs: tuple) -> float:
    reference = model(*inputs)
    return max(relative_difference(output, reference) for output in outputs)


# How many collectives of each kind one forward makes. A tensor-parallel block makes 3 all-reduces, and 1 all-gather of
# its modulation. The time embedding makes 1 more all-reduce. The text, pooled text and visual embeddings and the output
# layer make 1 all-gather each. With sequence parallelism a block has an all-gather and a reduce-scatter for each
# all-reduce, and the visual embeddings gather nothing.
TENSOR_PARALLEL = {"all_reduce": 3 * BLOCKS + 1, "all_gather_into_tensor": BLOCKS + 4}
EXPECTED = {
    "talk": TENSOR_PARALLEL,
    "minimal": TENSOR_PARALLEL,
    "tp_sp": {"all_reduce": 1, "all_gather_into_tensor": 4 * BLOCKS + 3, "reduce_scatter_tensor": 3 * BLOCKS},
    "ulysses": {"all_to_all_single": 2 * BLOCKS, "all_gather_into_tensor": 1},
}


@pytest.mark.parametrize("ranks", [2, 4, 8])
@pytest.mark.parametrize("plan", PLANS)
def test_every_rank_gets_what_the_whole_model_gives(ranks, plan):
    model = random_model()
    inputs = random_inputs(model)
    outputs, counts = run_sharded(model, inputs, ranks, plan)
    assert len(outputs) == ranks
    assert difference(outputs, model, inputs) < MODEL_BAR
    assert counts == EXPECTED[plan]


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_ulysses_gives_the_very_same_numbers(ranks):
    """No sum is split, so nothing is added in another order."""
    model = random_model()
    inputs = random_inputs(model)
    outputs, _ = run_sharded(model, inputs, ranks, "ulysses")
    assert difference(outputs, model, inputs) == 0


SPLIT_QUERIES = ParallelLayout("ulysses", 2, queries=2)
# Ulysses' collectives, keys and values gathered in each block, and one more all-gather at the end.
EXPECTED_QUERIES = {"all_to_all_single": 2 * BLOCKS, "all_gather_into_tensor": 2 * BLOCKS + 2}


def test_split_queries_give_the_very_same_numbers():
    model = random_model()
    inputs = random_inputs(model)
    outputs, counts = run_sharded(model, inputs, SPLIT_QUERIES, "ulysses")
    assert len(outputs) == 4 and difference(outputs, model, inputs) == 0
    assert counts == EXPECTED_QUERIES


@pytest.mark.parametrize(
    ("part", "name"), [(i, name) for i, plan in enumerate(parallelize.query_plans()) for name in plan]
)
def test_no_entry_of_the_plans_of_queries_can_be_left_out(monkeypatch, part, name):
    plans, model = parallelize.query_plans(), random_model()
    del plans[part][name]
    monkeypatch.setattr(parallelize, "query_plans", lambda: plans)
    inputs = random_inputs(model)
    try:
        outputs, _ = run_sharded(model, inputs, SPLIT_QUERIES, "ulysses")
    except RuntimeError:
        return
    assert not difference(outputs, model, inputs) < MODEL_BAR


def test_a_mesh_of_one_changes_nothing():
    model = random_model()
    with simulated_ranks(1) as mesh:
        sharded = parallelize_dit(copy.deepcopy(model), mesh)
    assert all(type(p) is torch.nn.Parameter for p in sharded.parameters())
    assert sharded.visual_transformer_blocks[0].self_attention.num_heads == HEADS


# The functions that the entries of each plan come from.
MODULE_PLANS = {
    "minimal": ("time_plan", "embedding_plan", "block_plan", "out_plan"),
    "tp_sp": ("token_plan", "sequence_parallel_entries"),
    "ulysses": ("token_plan", "ulysses_plan"),
}
ENTRIES = [
    (plan, function, name)
    for plan, functions in MODULE_PLANS.items()
    for function in functions
    for name in getattr(parallelize, function)()
]


def is_noticed(model: DiffusionTransformer3D, ranks: int = 4, after=None, plan: str = "minimal") -> bool:
    """Return whether a spoilt plan or model raises, or gives other numbers or collectives than a right one."""
    inputs = random_inputs(model)
    try:
        outputs, counts = run_sharded(model, inputs, ranks, plan, after)
    except (RuntimeError, AssertionError, ValueError):
        return True
    return not (counts == EXPECTED[plan] and difference(outputs, model, inputs) < MODEL_BAR)


@pytest.mark.parametrize("plan", MODULE_PLANS)
def test_a_right_plan_is_not_noticed(plan):
    assert not is_noticed(random_model(), plan=plan)


@pytest.mark.parametrize(("plan", "function", "name"), ENTRIES)
def test_no_entry_of_a_plan_can_be_left_out(monkeypatch, plan, function, name):
    entries = getattr(parallelize, function)()
    del entries[name]
    monkeypatch.setattr(parallelize, function, lambda: entries)
    assert is_noticed(random_model(), plan=plan)


@pytest.mark.parametrize(
    ("name", "style"),
    [
        ("feed_forward.in_layer", RowwiseParallel()),
        ("feed_forward.out_layer", ColwiseParallel()),
        ("out_layer_self", RowwiseParallel(output_layouts=Partial(), use_local_output=True)),
        ("self_attention_norm", SequenceParallel(sequence_dim=0, use_local_output=False)),
    ],
    ids=["row-wise for column-wise", "column-wise for row-wise", "output left partial", "output left a shard"],
)
def test_a_wrong_style_is_noticed(monkeypatch, name, style):
    plan = parallelize.block_plan() | {name: style}
    monkeypatch.setattr(parallelize, "block_plan", lambda: plan)
    assert is_noticed(random_model())


def shard_what_a_norm_sees(model):
    """Give a norm a true shard of the tokens, which nobody gathers again."""
    norm = model.visual_transformer_blocks[0].feed_forward_norm
    norm.register_forward_pre_hook(lambda module, args: args[0][: len(args[0]) // 2])


def test_a_norm_on_true_shards_without_a_gather_is_noticed():
    assert is_noticed(random_model(), after=shard_what_a_norm_sees)


def keep_all_heads(model):
    for block in model.visual_transformer_blocks:
        block.self_attention.num_heads = HEADS


def test_forgetting_to_reduce_the_heads_is_an_error():
    model = random_model()
    with pytest.raises(RuntimeError, match="normalized_shape"):
        run_sharded(model, random_inputs(model), 4, "minimal", after=keep_all_heads)


def test_a_row_wise_bias_added_by_every_rank_is_noticed():
    """A hand-written row-wise layer goes wrong like this: each of 4 ranks adds the bias before the sum."""
    model = random_model()
    bias = model.visual_transformer_blocks[0].out_layer_self.bias

    def add_bias_three_times_more(sharded):
        layer = sharded.visual_transformer_blocks[0].out_layer_self
        layer.register_forward_hook(lambda module, args, out: out + 3 * bias)

    assert is_noticed(model, after=add_bias_three_times_more)


@pytest.mark.parametrize(
    ("sizes", "ranks", "message"),
    [
        ({}, 3, "3 ranks: 8 heads are not divisible by 3; it can split this model over 1, 2, 4 or 8 ranks"),
        ({"ff_dim": 130}, 4, "130 ff_dim are not divisible by 4; it can split this model over 1 or 2 ranks"),
        ({"time_dim": 36}, 8, "36 time_dim are not divisible by 8; it can split this model over 1, 2 or 4 ranks"),
    ],
)
def test_ranks_that_do_not_divide_are_refused_before_anything_is_sharded(sizes, ranks, message):
    model = random_model(**sizes)
    with simulated_ranks(ranks) as mesh, pytest.raises(ValueError, match=message):
        parallelize_dit(model, mesh)
    assert all(type(p) is torch.nn.Parameter for p in model.parameters())
    assert model.visual_transformer_blocks[0].self_attention.num_heads == HEADS


def test_ranks_that_do_not_divide_are_refused_on_a_mesh_for_split_queries_too():
    """Not even the hooks that cut the tokens are left on the model."""
    model = random_model()
    layout = ParallelLayout("ulysses", size=3, queries=2)
    with simulated_ranks(layout) as mesh, pytest.raises(ValueError, match="8 heads are not divisible by 3"):
        parallelize_dit(model, mesh, "ulysses")
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_an_unknown_plan_is_refused():
    with (
        simulated_ranks(2) as mesh,
        pytest.raises(ValueError, match="unknown plan 'best': choose one of talk, minimal"),
    ):
        parallelize_dit(random_model(), mesh, "best")


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"axes_dims": (8, 12, 12)}, "4 heads"),
        ({"ff_dim": 260}, "260 ff_dim"),
        ({"time_dim": 36}, "36 time_dim"),
        ({"out_visual_dim": 1}, "4 visual output width"),
    ],
)
def test_each_width_that_a_plan_splits_must_be_divisible(change, name):
    """model_dim needs no row: it holds whole heads, so it is divisible whenever their number is."""
    config = dataclasses.replace(SMALL, **change)
    with pytest.raises(
        ValueError, match=f"{name} are not divisible by 8; it can split this model over 1, 2 or 4 ranks"
    ):
        parallelize.check_divisible(config, 8)
    parallelize.check_divisible(config, 4)
