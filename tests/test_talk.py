"""The plan that a whole model gets is the talk's, entry by entry, and the minimal plan leaves out what the talk added.

The entries are written here as the talk and the released code write them.
"""

import pytest
from helpers import random_model
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
)

from kandinsky_mini.models import parallelize
from kandinsky_mini.models.parallelize import parallelize_dit
from kandinsky_mini.parallel.simulation import simulated_ranks

RANKS = 4


def embedding() -> dict[str, ParallelStyle]:
    return {"in_layer": ColwiseParallel(output_layouts=Replicate())}


def attention(kind: str) -> dict[str, ParallelStyle]:
    return {
        f"{kind}_attention_norm": SequenceParallel(sequence_dim=0, use_local_output=True),
        f"{kind}_attention.to_query": ColwiseParallel(input_layouts=Replicate()),
        f"{kind}_attention.to_key": ColwiseParallel(input_layouts=Replicate()),
        f"{kind}_attention.to_value": ColwiseParallel(input_layouts=Replicate()),
        f"{kind}_attention.query_norm": SequenceParallel(sequence_dim=0, use_local_output=True),
        f"{kind}_attention.key_norm": SequenceParallel(sequence_dim=0, use_local_output=True),
        f"out_layer_{kind}": RowwiseParallel(output_layouts=Replicate()),
    }


def block() -> dict[str, ParallelStyle]:
    # The released code says input_layouts=(None), with which PyTorch prepares nothing. Ours says what the input is.
    whole = {"input_layouts": Replicate(), "desired_input_layouts": Replicate()}
    return {
        "visual_modulation": PrepareModuleInput(**whole, use_local_output=True),
        "visual_modulation.out_layer": ColwiseParallel(output_layouts=Replicate()),
        **attention("self"),
        **attention("cross"),
        "feed_forward_norm": SequenceParallel(sequence_dim=0, use_local_output=True),
        "feed_forward.in_layer": ColwiseParallel(),
        "feed_forward.out_layer": RowwiseParallel(),
    }


TALK = {
    "time_embeddings": {"in_layer": ColwiseParallel(), "out_layer": RowwiseParallel(output_layouts=Replicate())},
    "text_embeddings": embedding(),
    "pooled_text_embeddings": embedding(),
    "visual_embeddings": embedding(),
    "visual_transformer_blocks.0": block(),
    "visual_transformer_blocks.1": block(),
    "out_layer": {"out_layer": ColwiseParallel(output_layouts=Replicate())},
}
ADDED = (PrepareModuleInput, SequenceParallel)  # the minimal plan has none of these


def described(plans: dict[str, dict[str, ParallelStyle]]) -> dict[str, str]:
    """Return every entry in words: the full name of a module, and its style with all of its settings."""
    return {
        f"{module}.{name}": f"{type(style).__name__} {sorted(vars(style).items(), key=str)}"
        for module, plan in plans.items()
        for name, style in plan.items()
    }


@pytest.fixture
def applied(monkeypatch):
    """A function that gives a model and a mesh to parallelize_dit, and returns the plan that each module gets."""

    def apply(*plan: str) -> dict[str, dict[str, ParallelStyle]]:
        model, given = random_model(), {}
        names = {module: name for name, module in model.named_modules()}

        def record(module, mesh, entries):
            assert mesh.size() == RANKS
            given[names[module]] = entries

        monkeypatch.setattr(parallelize, "parallelize_module", record)
        with simulated_ranks(RANKS) as mesh:
            parallelize_dit(model, mesh["tensor_parallel"], *plan)
        return given

    return apply


@pytest.mark.parametrize("plan", [(), ("talk",)], ids=["by default", "by name"])
def test_every_module_gets_the_entries_of_the_talk(applied, plan):
    assert described(applied(*plan)) == described(TALK)


def test_the_minimal_plan_is_the_talk_s_without_the_entries_that_do_nothing(applied):
    kept = {
        module: {name: style for name, style in plan.items() if not isinstance(style, ADDED)}
        for module, plan in TALK.items()
    }
    assert described(applied("minimal")) == described(kept)
    assert len(described(TALK)) - len(described(kept)) == 2 * (
        1 + 3 + 4
    )  # of 2 blocks: modulation, norms, heads' norms


def test_every_entry_names_a_module():
    """PyTorch only warns about a name that fits no module, and the layer would stay whole."""
    names = dict(random_model().named_modules())
    assert [name for name in described(TALK) if name not in names] == []


@pytest.mark.parametrize(("plan", "share"), [("talk", RANKS), ("minimal", RANKS), ("tp_sp", RANKS), ("ulysses", 1)])
def test_a_rank_counts_its_share_of_the_heads_of_visual_blocks_only(plan, share):
    """Ulysses splits heads only within the attention, so that every rank projects all of them."""
    model = random_model()
    heads = model.config.num_heads
    with simulated_ranks(RANKS) as mesh:
        parallelize_dit(model, mesh, plan)
    for visual in model.visual_transformer_blocks:
        assert visual.self_attention.num_heads == visual.cross_attention.num_heads == heads // share
    assert [text.self_attention.num_heads for text in model.text_transformer_blocks] == [heads]
