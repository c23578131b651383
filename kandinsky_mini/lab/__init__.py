"""Tools for the lessons: `lab.ranks(...)`, `lab.predict(...)`, `lab.compare(...)`, `lab.grade(...)`."""

from ..parallel.simulation import SimulatedRanks, own_tensor
from .exercises import grade, grade_bytes, grade_plan
from .parity import compare, run_sharded
from .predictions import predict
from .processes import ProcessRanks

__all__ = ["compare", "grade", "grade_bytes", "grade_plan", "own_tensor", "predict", "ranks", "run_sharded"]


def ranks(count: int, kind: str = "simulated") -> SimulatedRanks | ProcessRanks:
    """Return ranks to run a function on: `run(function, *inputs)` calls function(mesh, *inputs) on each of them.

    Simulated ranks live in this process: every shard can be looked at, and the results are deterministic. With kind
    "processes" they are real processes on this machine, which talk through gloo, as they do under torchrun.

    Raises:
        ValueError: the kind is unknown, or the count is not a whole number of at least 1.
    """
    if kind not in ("simulated", "processes"):
        raise ValueError(f"unknown kind of ranks {kind!r}: choose simulated or processes")
    if not isinstance(count, int) or count < 1:
        raise ValueError(f"the number of ranks must be a whole number from 1, not {count!r}")
    return SimulatedRanks(count) if kind == "simulated" else ProcessRanks(count)
