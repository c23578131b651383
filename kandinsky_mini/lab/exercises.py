"""Exercises that grade themselves: right values on every rank, and no more communication than it takes."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from .ledger import Entry, Ledger, summary
from .simulation import SimulatedRanks


def grade(
    function: Callable,
    *inputs: Any,
    ranks: int,
    expected: Sequence[torch.Tensor],
    target: Sequence[tuple[str, int]],
    hint: str = "",
) -> None:
    """Run function(mesh, *inputs) on simulated ranks, and print what is right or still wrong. It never raises.

    expected: what each rank should give. target: the collectives it should take, as (name, payload in bytes).
    A function that gives `...` has not been tried yet.
    """
    goal = summary([Entry("", *collective) for collective in target])
    ledger = Ledger(ranks)

    def counted(mesh, *inputs):
        with ledger:
            return function(mesh, *inputs)

    try:
        outputs = SimulatedRanks(ranks).run(counted, *inputs)
    except Exception as error:  # any mistake of a learner's is for the learner to read
        print(f"not yet: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
        return
    if all(output is ... for output in outputs):
        print(f"not tried yet; target: {goal}")
        return
    for rank, (output, right) in enumerate(zip(outputs, expected, strict=True)):
        if problem := _difference(output, right):
            print(f"not yet: rank {rank} {problem}")
            return
    if sorted((entry.collective, entry.payload) for entry in ledger.entries) != sorted(target):
        print(f"right values, but they took {summary(ledger.entries)}; target: {goal}. {hint}".rstrip())
        return
    print(f"right: {goal}")


def _difference(output: Any, right: torch.Tensor) -> str:
    """What is wrong with a rank's output; nothing if it is right."""
    if not isinstance(output, torch.Tensor):
        return f"gives {type(output).__name__}, not a tensor"
    if output.shape != right.shape:
        return f"has shape {tuple(output.shape)}, not {tuple(right.shape)}"
    if not torch.allclose(output, right, rtol=1e-4, atol=1e-5 * right.abs().max().item()):
        if right.numel() <= 8:
            return f"has {output.tolist()}, not {right.tolist()}"
        return f"is up to {(output - right).abs().max():.2g} away from the right values"
    return ""
