"""What each rank sends in a collective, as lessons and pages state it: a share of the payload X on P ranks."""

from fractions import Fraction

import pytest
import torch
import torch.distributed as dist
from torch.distributed._functional_collectives import all_to_all_single
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

from kandinsky_mini.parallel.ledger import Entry, Ledger

# Ring formulas (Patarasuk and Yuan 2009). Where ranks send different amounts, the mean over the ranks counts.
SHARES = {
    "all_reduce": lambda p: Fraction(2 * (p - 1), p),  # a reduce-scatter and an all-gather
    "all_gather": lambda p: Fraction(p - 1, p),  # P - 1 rounds, with one part in each
    "reduce_scatter": lambda p: Fraction(p - 1, p),
    "all_to_all": lambda p: Fraction(p - 1, p * p),  # a P-th of the own part to each other rank
    "broadcast": lambda p: Fraction(p - 1, p),  # all of it, from each rank but the last
    "reduce": lambda p: Fraction(p - 1, p),  # all of it, to each rank but the first
    "scatter": lambda p: Fraction(p - 1, p * p),  # one rank sends each other rank its part
    "gather": lambda p: Fraction(p - 1, p * p),  # each other rank sends one rank its part
    "send": lambda p: Fraction(1),
}


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
@pytest.mark.parametrize("collective", SHARES)
def test_a_rank_sends_this_share_of_the_payload(collective, ranks):
    payload = 64 * 1024
    assert Entry("", collective, payload, ranks).wire == pytest.approx(float(SHARES[collective](ranks) * payload))


RANKS, ROWS, COLUMNS = 4, 8, 12
BYTES = ROWS * COLUMNS * 4  # of a logical matrix in float32


@pytest.fixture
def mesh():
    """Be rank 1 of 4 without any other process: a group that sends nothing, but takes every collective."""
    dist.init_process_group("fake", rank=1, world_size=RANKS)
    yield init_device_mesh("cpu", (RANKS,))
    dist.destroy_process_group()


def redistribute(source, goal):
    shape = [ROWS, COLUMNS]
    if isinstance(source, Shard):
        shape[source.dim] //= RANKS
    return lambda mesh: DTensor.from_local(torch.ones(shape), mesh, [source]).redistribute(placements=[goal]).to_local()


def whole() -> torch.Tensor:
    return torch.ones(ROWS, COLUMNS)


def part() -> torch.Tensor:
    return torch.ones(ROWS // RANKS, COLUMNS)


def parts() -> list[torch.Tensor]:
    return [part() for _ in range(RANKS)]


# A name, whether DTensor or torch.distributed's own function makes it, and a function that makes it.
CALLS = {
    ("all_reduce", "DTensor"): redistribute(Partial(), Replicate()),
    ("all_gather", "DTensor"): redistribute(Shard(0), Replicate()),
    ("reduce_scatter", "DTensor"): redistribute(Partial(), Shard(0)),
    ("all_to_all", "functional"): lambda mesh: all_to_all_single(part().view(RANKS, -1), None, None, mesh).wait(),
    ("all_reduce", "dist"): lambda mesh: dist.all_reduce(whole()),
    ("all_gather", "dist"): lambda mesh: dist.all_gather(parts(), part()),
    ("all_gather", "into a tensor"): lambda mesh: dist.all_gather_into_tensor(whole(), part()),
    ("reduce_scatter", "dist"): lambda mesh: dist.reduce_scatter(part(), parts()),
    ("reduce_scatter", "of a tensor"): lambda mesh: dist.reduce_scatter_tensor(part(), whole()),
    ("broadcast", "dist"): lambda mesh: dist.broadcast(whole(), 0),
    ("reduce", "dist"): lambda mesh: dist.reduce(whole(), 1),
    ("scatter", "dist"): lambda mesh: dist.scatter(part(), parts(), src=1),
    ("gather", "dist"): lambda mesh: dist.gather(part(), parts(), dst=1),
    ("send", "dist"): lambda mesh: dist.send(whole(), 0),
}


@pytest.mark.parametrize("call", CALLS, ids="-".join)
@pytest.mark.filterwarnings("ignore:.*deprecated")
def test_the_payload_is_the_whole_logical_tensor(call, mesh):
    """Lessons let readers predict it, so it must not depend on who makes the collective, nor on what a rank passes."""
    with Ledger() as ledger:
        CALLS[call](mesh)
    assert ledger.entries == [Entry("", call[0], BYTES, RANKS)]
