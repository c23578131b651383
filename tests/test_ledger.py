"""The ledger counts what a run really communicated, and the formula knows it beforehand."""

from collections import Counter

import pytest
import torch
from test_parallelize import random_inputs, random_model

from kandinsky_mini.lab.ledger import Entry, Ledger, compare, predict_tensor_parallel
from kandinsky_mini.lab.simulation import simulated_ranks
from kandinsky_mini.models.parallelize import VARIANTS, parallelize_dit


@torch.no_grad()
def count(model, inputs, ranks: int, variant: str = "talk") -> list[Entry]:
    with simulated_ranks(ranks) as mesh:
        parallelize_dit(model, mesh, variant)
        with Ledger(ranks, model) as ledger:
            model(*inputs)
    return ledger.entries


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_collective_is_where_the_formula_has_it(ranks, variant):
    model = random_model()
    inputs = random_inputs(model)
    predicted = predict_tensor_parallel(model, tokens=3 * 2 * 3, text_tokens=7, bytes_each=4)
    counted = count(model, inputs, ranks, variant)
    assert Counter(counted) == Counter(predicted), "\n" + compare(predicted, counted, ranks)


def test_wire_bytes_of_a_block_are_those_of_the_ring():
    """Three all-reduces of X bytes: 6 (P - 1) / P X."""
    x = 1000
    block = [Entry("", "all_reduce", x)] * 3
    assert sum(entry.wire(4) for entry in block) == pytest.approx(6 * 3 / 4 * x)
    assert Entry("", "all_gather", x).wire(4) == pytest.approx(3 / 4 * x)
    assert Entry("", "all_to_all", x).wire(4) == pytest.approx(3 / 16 * x)


def test_the_table_shows_a_collective_that_nobody_predicted():
    predicted = [Entry("a", "all_reduce", 2048)]
    table = compare(predicted, [*predicted, Entry("b", "all_gather", 1024)], ranks=4)
    assert table.splitlines() == [
        "module             predicted              counted",
        "a                  1 all_reduce of 2 KiB  1 all_reduce of 2 KiB",
        "b                  -                      1 all_gather of 1 KiB",
        "sent by each rank  3 KiB                  3.8 KiB",
    ]


def test_the_ledger_leaves_no_hook_behind():
    model = random_model()
    count(model, random_inputs(model), 2)
    mine = [hook for m in model.modules() for hook in m._forward_hooks.values() if "Ledger" in repr(hook)]
    assert mine == []
