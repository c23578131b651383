"""Simulated ranks behave as lessons say: no gradients, one mesh for each run, and nothing is left behind."""

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor, Shard

from kandinsky_mini import lab
from kandinsky_mini.parallel.simulation import own_tensor, per_rank, simulated_ranks

LAYER = torch.nn.Linear(3, 3)


def test_simulated_ranks_compute_without_gradients():
    """As in the pipeline. With gradients, every lesson would keep each rank's graph, and outputs could not be shown."""
    x = torch.ones(2, 3, requires_grad=True)
    outputs = lab.ranks(2).run(lambda mesh, x: (LAYER(x), torch.tensor(torch.is_grad_enabled())), x)
    assert [(y.requires_grad, bool(enabled)) for y, enabled in outputs] == [(False, False)] * 2
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("ranks", [2, 8])
def test_each_run_has_its_own_mesh_over_all_ranks(ranks):
    sizes = lab.ranks(ranks).run(lambda mesh: (mesh.size(), mesh.mesh_dim_names))
    assert sizes == [(ranks, ("tensor_parallel",))] * ranks
    assert not dist.is_initialized()


def test_a_run_that_fails_leaves_nothing_behind():
    with pytest.raises(ZeroDivisionError):
        lab.ranks(2).run(lambda mesh: 1 / 0)
    assert not dist.is_initialized()
    assert [int(output) for output in lab.ranks(3).run(lambda mesh: own_tensor(torch.tensor))] == [0, 1, 2]


@pytest.mark.parametrize("compute", [lambda x: x.full_tensor(), lambda x: x * 2], ids=["full_tensor", "product"])
def test_parts_of_different_sizes_are_said_in_words(compute):
    def run(mesh):
        part = own_tensor(lambda rank: torch.arange(5.0).chunk(2)[rank].clone())
        return compute(DTensor.from_local(part, mesh, [Shard(0)]))

    with pytest.raises((TypeError, RuntimeError)) as caught:
        lab.ranks(2).run(run)
    assert caught.value.__notes__ == ["The ranks have parts of different sizes: a width does not divide by 2."]


def test_each_rank_s_own_data_comes_back_in_order():
    def total_and_mine(mesh):
        mine = own_tensor(lambda rank: torch.tensor([2.0**rank]))
        total = mine.clone()
        dist.all_reduce(total)
        return {"mine": mine, "total": total, "name": "same for all"}

    outputs = lab.ranks(4).run(total_and_mine)
    assert [(o["mine"].item(), o["total"].item(), o["name"]) for o in outputs] == [
        (2.0**rank, 15.0, "same for all") for rank in range(4)
    ]


def test_a_tensor_of_no_rank_is_refused():
    with simulated_ranks(2), pytest.raises(TypeError, match="not a tensor of simulated ranks, but int"):
        per_rank(5)
