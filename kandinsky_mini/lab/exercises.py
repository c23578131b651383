"""Exercises that grade themselves: the values must be right on every rank, with no more communication than needed."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.utils import _pytree as pytree

from ..parallel.ledger import Entry, Ledger, size, summary
from ..parallel.simulation import run_simulated
from . import causes
from .parity import How, shard

Target = Sequence[tuple[str, int]]  # collectives, each as (name, payload in bytes)
UNTRIED = "not tried yet; pass show_target=True to see which collectives a solution needs"


def grade(
    function: Callable,
    *inputs: Any,
    ranks: int,
    expected: Sequence[Any],
    target: Target,
    hint: str = "",
    show_target: bool = False,
) -> None:
    """Run function(mesh, *inputs) on simulated ranks, and print what is right or still wrong.

    An exception in the function is printed, not raised. A function that returns `...` counts as not tried yet. The
    target, which names the collectives, is printed after the first try or on request.

    Args:
        expected: the right output for each rank.
        target: the collectives that a good solution needs, each as (name, payload in bytes).
        hint: printed after a wrong answer whose cause is not known.
    """
    wanted = [Entry("", *collective, ranks) for collective in target]
    ledger = Ledger()

    def counted(mesh, *inputs):
        with ledger:
            return function(mesh, *inputs)

    verdict = _verdict(counted, inputs, ranks, expected, hint)
    if verdict == "" and (excess := causes.of_communication(ledger.entries, wanted)):
        verdict = f"right values, but {excess}"
    _print(verdict, f"target: {summary(wanted)}", summary(wanted), show_target)


def grade_plan(
    how: How | Any,
    model: nn.Module,
    *inputs: Any,
    ranks: int,
    target: Target,
    expected: Sequence[Any] | None = None,
    hint: str = "",
    show_target: bool = False,
) -> None:
    """Shard the model by a plan, and grade its forward as `grade` does. All linear layers must be split.

    Instead of a plan, `how` may be a function that is given the model and the mesh, shards the model and returns it.
    A plan of `...`, or a function that returns `...`, counts as not tried yet.

    Args:
        expected: what each rank should return, by default what the unsharded model returns.
    """
    wanted = [Entry("", *collective, ranks) for collective in target]
    verdict, entries = _run_plan(how, model, inputs, ranks, expected, hint)
    if verdict == "" and (excess := causes.of_communication(entries, wanted)):
        verdict = f"right values, but {excess}"
    _print(verdict, f"target: {summary(wanted)}", summary(wanted), show_target)


def grade_bytes(how: How | Any, model: nn.Module, *inputs: Any, ranks: int, most: float, hint: str = "") -> None:
    """Shard the model, and grade it by its values on every rank and by the bytes that each rank sends, at most `most`.

    It is `grade_plan` without a target that would give the answer away.
    """
    verdict, entries = _run_plan(how, model, inputs, ranks, None, hint)
    sent = sum(entry.wire for entry in entries)
    if verdict == "" and sent > most:
        verdict = f"right values, but each rank sends {size(sent)}: {summary(entries)}. It can be done with less"
    _print(verdict, "", f"each rank sends {size(sent)}", show_target=False)


def _run_plan(
    how: Any, model: nn.Module, inputs: tuple, ranks: int, expected: Sequence[Any] | None, hint: str
) -> tuple[str, list[Entry]]:
    """Return what is wrong with the values, or "", and the collectives of the forward."""
    ledger = Ledger()
    if how is ...:
        return UNTRIED, []
    if problem := causes.of_plan(how, model):
        return f"not yet: {problem}", []
    if expected is None:
        with torch.no_grad():
            expected = [model(*inputs)] * ranks

    def sharded(mesh, *inputs):
        split = shard(model, mesh, how)  # sends the weights to the ranks once, so it is not counted
        if split is ...:
            return ...
        if split is None:
            raise ValueError("your function returns nothing: it must return the sharded module")
        for name, layer in split.named_modules():
            if isinstance(layer, nn.Linear) and not isinstance(layer.weight, DTensor):
                raise ValueError(f"the linear layer {name} is not split")
        with ledger:
            return split(*inputs)

    return _verdict(sharded, inputs, ranks, expected, hint), ledger.entries


def _verdict(function: Callable, inputs: tuple, ranks: int, expected: Sequence[Any], hint: str) -> str:
    """Run the function on every rank. Return "" if all values are right, and else what is wrong and why."""
    try:
        outputs, asked = run_simulated(ranks, function, inputs)
        return _judge(outputs, expected, asked, hint)
    except (Exception, SystemExit) as error:  # whatever it is, it is for the learner to read
        return _sentences(f"not yet: {causes.of_error(error)}", hint)


def _judge(outputs: list, expected: Sequence[Any], asked: set[str], hint: str) -> str:
    """Return "" if the values are right on every rank, and else what is wrong and why."""
    if all(output is ... for output in outputs):
        return UNTRIED
    for rank, (output, right) in enumerate(zip(outputs, expected, strict=True)):
        if problem := _difference(output, right):
            tensors = [isinstance(each, torch.Tensor) for each in (*outputs, *expected)]
            cause = causes.of_values(outputs, expected, asked) if all(tensors) else ""
            return _sentences(f"not yet: rank {rank} {problem}", cause or hint)
    return ""


def _difference(output: Any, right: Any) -> str:
    """Return what is wrong with a rank's output, or "" if it is right."""
    outputs, rights = pytree.tree_leaves(output), pytree.tree_leaves(right)
    if len(outputs) != len(rights):
        return f"returns {len(outputs)} tensors, not {len(rights)}"
    return next(filter(None, map(_tensor_difference, outputs, rights)), "")


def _tensor_difference(output: Any, right: torch.Tensor) -> str:
    if not isinstance(output, torch.Tensor):
        return f"returns {type(output).__name__}, not a tensor"
    if output.shape != right.shape:
        return f"has shape {tuple(output.shape)}, not {tuple(right.shape)}"
    if output.dtype != right.dtype:
        return f"has {str(output.dtype).removeprefix('torch.')}, not {str(right.dtype).removeprefix('torch.')}"
    if not causes.close(output, right):
        if right.numel() <= 8:
            return f"has {output.tolist()}, not {right.tolist()}"
        away = (output.to(torch.complex128) - right.to(torch.complex128)).abs().max()  # of any dtype
        return f"is up to {away:.2g} away from the right values"
    return ""


def _sentences(first: str, *others: str) -> str:
    """Join parts of a verdict, each of which ends with a mark and begins, after the first, with a capital letter."""
    parts = [first, *(other[0].upper() + other[1:] for other in others if other)]
    return " ".join(part if part.endswith((".", "!", "?")) else f"{part}." for part in parts)


def _print(verdict: str, target: str, right: str, show_target: bool) -> None:
    if verdict == UNTRIED:
        verdict = f"not tried yet; {target}" if show_target else UNTRIED if target else "not tried yet"
    elif verdict:
        verdict = _sentences(verdict, target)
    print(verdict or f"right: {right}")
