"""Every module, and the trained model, on simulated ranks; tests/test_on_ranks.py does the same on real ones."""

import copy

import pytest
import torch
from on_ranks import inputs_and_outputs, unsharded_mini
from test_on_ranks import MODEL_BAR, MODULE_BAR
from test_parallelize import random_inputs, random_model

from kandinsky_mini.config import load_config
from kandinsky_mini.lab.simulation import per_rank, simulated_ranks
from kandinsky_mini.models.parallelize import VARIANTS, parallelize_dit

RANKS = [2, 4, 8]


@torch.no_grad()
def differences(model: torch.nn.Module, inputs: tuple, ranks: int, variant: str) -> dict[str, float]:
    """How far each sharded module is from the whole one on its worst rank, as a share of the largest value."""
    seen = inputs_and_outputs(copy.deepcopy(model), inputs)
    worst = {}
    with simulated_ranks(ranks) as mesh:
        sharded = parallelize_dit(copy.deepcopy(model), mesh, variant)
        outputs = {name: per_rank(sharded.get_submodule(name)(*args)) for name, (args, _) in seen.items()}
    for name, (_, reference) in seen.items():
        assert len(outputs[name]) == ranks
        worst[name] = max(((out - reference).abs().max() / reference.abs().max()).item() for out in outputs[name])
    return worst


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("ranks", RANKS)
def test_every_module_gives_what_the_unsharded_one_gives(ranks, variant):
    model = random_model()
    found = differences(model, random_inputs(model), ranks, variant)
    assert len(found) == 8
    assert found.pop("") < MODEL_BAR
    assert max(found.values()) < MODULE_BAR, found


@pytest.mark.parametrize("ranks", RANKS)
def test_the_trained_model_gives_what_the_unsharded_one_gives(ranks):
    from kandinsky_mini.sampling import rope_positions

    mini = unsharded_mini(load_config(None)).eval()
    x, time = torch.randn(2, 16, 24, mini.in_visual_dim), 1000 * torch.rand(1)
    text = 0.5 * torch.randn(9, mini.text_embeddings.in_layer.in_features)
    pooled = torch.randn(1, mini.pooled_text_embeddings.in_layer.in_features)
    found = differences(mini, (x, text, pooled, time, rope_positions(mini, x), torch.arange(9)), ranks, "talk")
    assert found.pop("") < MODEL_BAR
    assert max(found.values()) < MODULE_BAR, found
