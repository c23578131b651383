"""Exercises that grade themselves: the values must be right on every rank, with no more communication than needed."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import parallelize_module

from ..parallel.ledger import Entry, Ledger, summary
from ..parallel.simulation import SimulatedRanks

Target = Sequence[tuple[str, int]]  # collectives, each as (name, payload in bytes)


def grade(
    function: Callable, *inputs: Any, ranks: int, expected: Sequence[torch.Tensor], target: Target, hint: str = ""
) -> None:
    """Run function(mesh, *inputs) on simulated ranks, and print what is right or still wrong. It never raises.

    A function that returns `...` counts as not tried yet.

    Args:
        expected: what each rank should return.
        target: the collectives that this should take.
        hint: printed behind everything that is wrong.
    """
    ledger = Ledger()

    def counted(mesh, *inputs):
        with ledger:
            return function(mesh, *inputs)

    print(_verdict(counted, inputs, ranks, ledger, expected, target, hint))


def grade_plan(
    plan: Any,
    model: nn.Module,
    *inputs: Any,
    ranks: int,
    target: Target,
    expected: Sequence[torch.Tensor] | None = None,
    hint: str = "",
) -> None:
    """Shard the model by the plan, and grade its forward as `grade` does. All linear layers must be split.

    A plan of `...` counts as not tried yet.

    Args:
        expected: what each rank should return, by default what the unsharded model does.
    """
    ledger = Ledger()
    if expected is None:
        with torch.no_grad():
            expected = [model(*inputs)] * ranks

    def sharded(mesh, *inputs):
        if plan is ...:
            return ...
        split = parallelize_module(
            copy.deepcopy(model), mesh, plan
        )  # this hands out the weights, once, and is not counted
        for name, layer in split.named_modules():
            if isinstance(layer, nn.Linear) and not isinstance(layer.weight, DTensor):
                raise ValueError(f"the linear layer {name} is not split")
        with ledger:
            return split(*inputs)

    print(_verdict(sharded, inputs, ranks, ledger, expected, target, hint))


def _verdict(
    function: Callable,
    inputs: tuple,
    ranks: int,
    ledger: Ledger,
    expected: Sequence[torch.Tensor],
    target: Target,
    hint: str,
) -> str:
    goal = summary([Entry("", *collective, ranks) for collective in target])
    try:
        outputs = SimulatedRanks(ranks).run(function, *inputs)
    except Exception as error:  # whatever it is, it is for the learner to read
        reason = str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else ""
        return f"not yet: {type(error).__name__}: {reason}. {hint}".rstrip()
    if all(output is ... for output in outputs):
        return f"not tried yet; target: {goal}"
    for rank, (output, right) in enumerate(zip(outputs, expected, strict=True)):
        if problem := _difference(output, right):
            return f"not yet: rank {rank} {problem}. {hint}".rstrip()
    if sorted((entry.collective, entry.payload) for entry in ledger.entries) != sorted(target):
        return f"right values, but they took {summary(ledger.entries)}; target: {goal}. {hint}".rstrip()
    return f"right: {goal}"


def _difference(output: Any, right: torch.Tensor) -> str:
    """Return what is wrong with a rank's output, or "" if it is right."""
    if not isinstance(output, torch.Tensor):
        return f"gives {type(output).__name__}, not a tensor"
    if output.shape != right.shape:
        return f"has shape {tuple(output.shape)}, not {tuple(right.shape)}"
    if not torch.allclose(output, right, rtol=1e-4, atol=1e-5 * right.abs().max().item()):
        if right.numel() <= 8:
            return f"has {output.tolist()}, not {right.tolist()}"
        return f"is up to {(output - right).abs().max():.2g} away from the right values"
    return ""
