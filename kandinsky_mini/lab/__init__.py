"""What the notebooks, the benchmark and `make check` share; in notebooks `lab.ranks(...)`, `lab.predict(...)`."""

from __future__ import annotations

import importlib
import typing

if typing.TYPE_CHECKING:
    from .processes import ProcessRanks
    from .simulation import SimulatedRanks

# What notebooks use, and where it is. Imported at its first use, so that `make check` can say what is missing.
HOMES = {"own_tensor": "simulation", "predict": "predictions", "grade": "exercises", "grade_plan": "exercises"}


def __getattr__(name: str) -> object:
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *HOMES])


def ranks(count: int, kind: str = "simulated") -> SimulatedRanks | ProcessRanks:
    """Ranks to run a function on: `run(function, *inputs)` calls function(mesh, *inputs) on each.

    simulated: they live in this process, so that every shard can be looked at, and results are deterministic.
    processes: they are real ones on this machine, which talk through gloo, as under torchrun.

    Raises:
        ValueError: no such kind, or a count below 1.
    """
    if kind not in ("simulated", "processes"):
        raise ValueError(f"unknown kind of ranks {kind!r}: choose simulated or processes")
    if not isinstance(count, int) or count < 1:
        raise ValueError(f"the number of ranks must be a whole number from 1, not {count!r}")
    if kind == "simulated":
        from .simulation import SimulatedRanks

        return SimulatedRanks(count)
    from .processes import ProcessRanks

    return ProcessRanks(count)
