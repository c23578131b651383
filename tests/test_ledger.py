"""The ledger counts what a run really communicates, and the formula predicts it."""

from collections import Counter

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
from helpers import SMALL, TEXT_TOKENS, TOKENS, random_inputs, random_model
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from kandinsky_mini.models.parallelize import PLANS, parallelize_dit
from kandinsky_mini.parallel.cost import predict_collectives
from kandinsky_mini.parallel.layout import ParallelLayout
from kandinsky_mini.parallel.ledger import COLLECTIVES, Entry, Ledger, compare
from kandinsky_mini.parallel.simulation import own_tensor, simulated_ranks
from kandinsky_mini.parallel.tensors import local_value


@torch.no_grad()
def count(model, inputs, ranks: ParallelLayout | int, plan: str = "talk") -> list[Entry]:
    with simulated_ranks(ranks) as mesh:
        parallelize_dit(model, mesh, plan)
        with Ledger(model) as ledger:
            model(*inputs)
    return ledger.entries


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("plan", PLANS)
def test_every_collective_is_where_the_formula_has_it(ranks, plan):
    model = random_model()
    inputs = random_inputs(model)
    predicted = predict_collectives(SMALL, TOKENS, TEXT_TOKENS, 4, ranks, plan)
    counted = count(model, inputs, ranks, plan)
    assert Counter(counted) == Counter(predicted), "\n" + compare(predicted, counted)


@pytest.mark.parametrize("text", ["ulysses8x2", "ulysses2x2", "ulysses1x4"])
def test_the_formula_has_what_split_queries_send(text):
    model, layout = random_model(), ParallelLayout.parse(text)
    predicted = predict_collectives(SMALL, TOKENS, TEXT_TOKENS, 4, layout.size, "ulysses", layout.queries)
    counted = count(model, random_inputs(model), layout, "ulysses")
    assert Counter(counted) == Counter(predicted), "\n" + compare(predicted, counted)


def test_after_an_error_collectives_belong_to_no_module_that_failed():
    """A person may catch the error of a module, and communicate elsewhere."""

    def fail(*_):
        raise RuntimeError("bad")

    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    model[0].register_forward_hook(fail)
    with simulated_ranks(2) as mesh, Ledger(model) as ledger:
        with pytest.raises(RuntimeError, match="bad"):
            model(torch.ones(2))
        functional.all_reduce(torch.ones(2), "sum", mesh).wait()
    assert [entry.module for entry in ledger.entries] == [""]


def test_wire_bytes_of_a_block_are_those_of_the_ring():
    """A block has three all-reduces of X bytes, so each rank sends 6 (P - 1) / P X bytes."""
    x = 1000
    block = [Entry("", "all_reduce", x, ranks=4)] * 3
    assert sum(entry.wire for entry in block) == pytest.approx(6 * 3 / 4 * x)
    assert Entry("", "all_gather", x, ranks=4).wire == pytest.approx(3 / 4 * x)
    assert Entry("", "all_to_all", x, ranks=4).wire == pytest.approx(3 / 16 * x)


def test_the_table_shows_a_collective_that_nobody_predicted():
    predicted = [Entry("a", "all_reduce", 2048, ranks=4)]
    table = compare(predicted, [*predicted, Entry("b", "all_gather", 1024, ranks=4)])
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


def test_an_entry_has_the_size_of_its_own_group():
    """A collective along one dimension of a mesh spans that dimension only."""
    with simulated_ranks(ParallelLayout("ulysses", 4, cfg=2)) as mesh, Ledger() as ledger:
        for dimension in mesh.mesh_dim_names:
            x = DTensor.from_local(torch.ones(3), mesh[dimension], [Shard(0)])
            x.full_tensor()
            y = torch.ones(5)
            dist.all_reduce(y, group=mesh[dimension].get_group())
    counted = [(entry.collective, entry.payload, entry.ranks) for entry in ledger.entries]
    assert counted == [
        *(("all_gather", 2 * 3 * 4, 2), ("all_reduce", 5 * 4, 2)),
        *(("all_gather", 4 * 3 * 4, 4), ("all_reduce", 5 * 4, 4)),
    ]


def test_collectives_inside_operations_on_dtensors_are_counted():
    with simulated_ranks(4) as mesh:
        x = DTensor.from_local(torch.ones(2, 3), mesh, [Shard(0)])
        with Ledger() as ledger:
            (x / x.norm()).to_local()
    assert [(entry.collective, entry.ranks) for entry in ledger.entries] == [("all_reduce", 4)]


def test_handing_out_the_shards_of_a_tensor_is_counted():
    """Rank 0 sends each other rank its part: three quarters of the whole, or 3 / 16 for each rank on average."""
    with simulated_ranks(4) as mesh, Ledger() as ledger:
        distribute_tensor(torch.ones(8, 2), mesh, [Shard(0)])
    assert ledger.entries == [Entry("", "scatter", 8 * 2 * 4, ranks=4)]
    assert ledger.entries[0].wire == pytest.approx(3 / 16 * 64)


CALLS = {
    "all_to_all": (lambda x, mesh: dist.all_to_all([torch.empty(2), torch.empty(2)], list(x.split(2))), 2 * 16),
    "all_gather": (lambda x, mesh: functional.all_gather_into_tensor_coalesced([x, x], mesh), 2 * 2 * 16),
    "all_reduce": (lambda x, mesh: functional.all_reduce_coalesced([x, x], "sum", mesh), 2 * 16),
    "broadcast": (lambda x, mesh: functional.broadcast(x, 0, mesh), 16),
}


@pytest.mark.parametrize("name", CALLS)
def test_every_way_to_call_a_collective_is_counted(name):
    call, payload = CALLS[name]
    with simulated_ranks(2) as mesh, Ledger() as ledger:
        outputs = call(own_tensor(lambda rank: torch.ones(4)), mesh)
        for output in outputs if isinstance(outputs, list) else [outputs]:
            local_value(output)
    assert [(entry.collective, entry.payload) for entry in ledger.entries] == [(name, payload)]


def test_a_collective_that_the_ledger_does_not_know_is_refused_by_name(monkeypatch):
    monkeypatch.delitem(COLLECTIVES, "c10d::allreduce_")
    with simulated_ranks(2), Ledger(), pytest.raises(NotImplementedError, match="cannot count c10d::allreduce_"):
        dist.all_reduce(torch.ones(1))


def test_parts_that_differ_in_size_are_refused():
    with simulated_ranks(2) as mesh, Ledger(), pytest.raises(NotImplementedError, match="parts that differ in size"):
        functional.all_gather_tensor(own_tensor(lambda rank: torch.ones(rank + 1)), 0, mesh)
