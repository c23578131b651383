"""What the notebooks, the benchmark and `make check` share; in notebooks `lab.ranks(...)`, `lab.predict(...)`."""

from __future__ import annotations

import typing

if typing.TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch

    from .predictions import Prediction
    from .processes import ProcessRanks
    from .simulation import SimulatedRanks

# Imported where they are used, so that `make check` can say what is missing.


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


def own_tensor(make: Callable[[int], torch.Tensor]) -> torch.Tensor:
    """A tensor that differs between ranks, make(rank) on each; on simulated ranks and on real ones."""
    from .simulation import own_tensor

    return own_tensor(make)


def predict(question: str, choices: Sequence[str]) -> Prediction:
    """Ask, with a button for each choice; `reveal(measured)` of what it returns shows guess and answer."""
    from .predictions import Prediction

    return Prediction(question, choices)


def grade(function: Callable, *inputs: object, **goal: object) -> None:
    """Grade an exercise on simulated ranks: see `kandinsky_mini.lab.exercises.grade`."""
    from .exercises import grade

    grade(function, *inputs, **goal)


def grade_plan(plan: object, model: torch.nn.Module, *inputs: object, **goal: object) -> None:
    """Grade a plan for the model on simulated ranks: see `kandinsky_mini.lab.exercises.grade_plan`."""
    from .exercises import grade_plan

    grade_plan(plan, model, *inputs, **goal)
