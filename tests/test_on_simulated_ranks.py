"""On simulated ranks, every module and the trained model give what they give unsharded.

tests/test_on_ranks.py checks the same on real ranks.
"""

import copy

import pytest
import torch
from helpers import (
    MODEL_BAR,
    MODULE_BAR,
    MODULES,
    inputs_and_outputs,
    random_inputs,
    random_model,
    relative_difference,
    share_of_rank,
)

from kandinsky_mini import get_T2V_pipeline
from kandinsky_mini.models.parallelize import PLANS, parallelize_dit
from kandinsky_mini.parallel.layout import ParallelLayout
from kandinsky_mini.parallel.simulation import own_tensor, per_rank, simulated_ranks
from kandinsky_mini.sampling import rope_positions

RANKS = [2, 4, 8]


@torch.no_grad()
def differences(model: torch.nn.Module, inputs: tuple, layout: ParallelLayout, plan: str) -> dict[str, float]:
    """Return how far each sharded module is from the whole one on its worst rank, as a share of the largest value."""
    seen = inputs_and_outputs(copy.deepcopy(model), inputs)
    worst = {}
    ranks = layout.ranks
    with simulated_ranks(layout) as mesh:
        sharded = parallelize_dit(copy.deepcopy(model), mesh[layout.dimensions], plan)
        for name, whole in seen.items():
            rows = [share_of_rank(plan, name, *whole, rank, ranks) for rank in range(ranks)]
            args = [on_each_rank(values) for values in zip(*(args for args, _ in rows), strict=True)]
            outputs = per_rank(sharded.get_submodule(name)(*args))
            references = [reference for _, reference in rows]
            worst[name] = max(map(relative_difference, outputs, references))
    return worst


def on_each_rank(values: tuple) -> object:
    """Return an argument of all ranks, given each rank's. If it is a tensor, the ranks may have different ones."""
    return own_tensor(lambda rank: values[rank]) if isinstance(values[0], torch.Tensor) else values[0]


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("ranks", RANKS)
def test_every_module_gives_what_the_unsharded_one_gives(ranks, plan):
    model = random_model()
    found = differences(model, random_inputs(model), ParallelLayout("tp", ranks), plan)
    assert len(found) == len(MODULES)
    assert found.pop("") < MODEL_BAR
    assert max(found.values()) < MODULE_BAR, found


@pytest.mark.parametrize("layout", ["ulysses1x4", "ulysses2x2", "ulysses4x2", "ulysses2x4"])
def test_split_queries_give_the_very_same_numbers(layout):
    """No sum is split, so nothing is added in another order."""
    model = random_model()
    found = differences(model, random_inputs(model), ParallelLayout.parse(layout), "ulysses")
    assert len(found) == len(MODULES)
    assert max(found.values()) < 1e-6, found


@pytest.mark.parametrize("ranks", RANKS)
def test_the_trained_model_gives_what_the_unsharded_one_gives(ranks):
    mini = get_T2V_pipeline("cpu").dit
    x, time = torch.randn(2, 16, 24, mini.config.in_visual_dim), 1000 * torch.rand(1)
    text = 0.5 * torch.randn(9, mini.config.in_text_dim)
    pooled = torch.randn(1, mini.config.in_text_dim2)
    found = differences(
        mini, (x, text, pooled, time, rope_positions(mini, x), torch.arange(9)), ParallelLayout("tp", ranks), "talk"
    )
    assert found.pop("") < MODEL_BAR
    assert max(found.values()) < MODULE_BAR, found
