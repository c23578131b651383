"""Why an answer is wrong, in words that help a learner: from the answer, from the error, from what ranks returned."""

import contextlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ..parallel.ledger import Entry, summary

# A part of an error's text, and what to write instead.
ERRORS = {
    "Process group DeviceMesh": "a mesh stands where a group is needed: write group=mesh.get_group()",
    "unsupported placements <class": "a placement needs brackets: write Shard(0), Replicate() or Partial()",
    "OpaqueBaseMeta": "a placement needs brackets: write Shard(0), Replicate() or Partial()",
    "is_partial(): incompatible": "a placement needs brackets: write Shard(0), Replicate() or Partial()",
    "has no len()": "placements are a list with one entry for each dimension of the mesh: write [Shard(0)]",
    "non-nested SymInt": "the ranks have parts of different sizes: a width does not divide by their number",
    "Cannot access data pointer": "the ranks have parts of different sizes: a width does not divide by their number",
    "expected input with shape [*": "a rank has a part where the next step needs all: check num_heads, output_layouts",
}


def of_plan(plan: Any, model: nn.Module) -> str:
    """Return what is wrong with a plan before it is applied, or "" if nothing is."""
    if not isinstance(plan, dict):
        return ""
    names = [name for name, _ in model.named_modules() if name]
    for name, style in plan.items():
        if not isinstance(name, str):
            return f'the key {name!r} is a number, but submodules have names: write "{name}"'
        if isinstance(style, type):
            return f'"{name}" has a class for its style: write {style.__name__}()'
        if "*" not in name and name not in names:
            known = ", ".join(names)
            return (
                f'there is no submodule "{name}", so PyTorch would warn and split nothing. The submodules are {known}'
            )
    return ""


def of_error(error: BaseException) -> str:
    """Return what caused an error, or its own first line."""
    text = str(error).strip()
    known = next((cause for part, cause in ERRORS.items() if part in text), None)
    return known or f"{type(error).__name__}: {(text.splitlines() or [''])[0].rstrip('.')}"


def of_values(outputs: Sequence[torch.Tensor], expected: Sequence[torch.Tensor], asked: set[str]) -> str:
    """Return why ranks have wrong values, or "" if that cannot be told. `asked` has the questions in vain."""
    if asked:
        call = sorted(asked)[0]
        return (
            f"the call {call} does not tell simulated ranks apart, though on real ranks it would. "
            "Here, lab.own_tensor(lambda rank: ...) gives each rank its own tensor"
        )
    whole, ranks = expected[0], len(outputs)
    if not all(isinstance(output, torch.Tensor) and output.dtype == whole.dtype for output in outputs):
        return ""
    if any(not torch.equal(other, whole) for other in expected):
        return ""
    if all(output.shape == whole.shape for output in outputs):
        if close(sum(outputs), whole):
            return "the ranks' values add up to the right ones: the sum is not finished, each rank has a Partial() term"
        if all(close(output, ranks * whole) for output in outputs):
            return f"this is {ranks} times too much: every rank adds all of it, or a division is missing"
    for dim in range(whole.ndim):
        with contextlib.suppress(RuntimeError):  # shapes that do not fit together
            if close(torch.cat(list(outputs), dim), whole):
                return f"the ranks' values side by side are the right ones: each rank has a part, Shard({dim})"
    return ""


def of_communication(entries: Sequence[Entry], target: Sequence[Entry]) -> str:
    """Return what was communicated besides the target, or "" if it was exactly the target."""
    took, wanted = (Counter((entry.collective, entry.payload) for entry in each) for each in (entries, target))
    if took == wanted:
        return ""
    if not wanted - took:
        more = [Entry("", *collective, ranks=1) for collective in (took - wanted).elements()]
        return f"{summary(more)} more than needed"
    return f"they took {summary(list(entries))}"


def close(output: torch.Tensor, right: torch.Tensor) -> bool:
    """Say whether two tensors are the same, apart from rounding in float32."""
    if output.shape != right.shape or output.dtype != right.dtype:
        return False
    if not (right.is_floating_point() or right.is_complex()):
        return torch.equal(output, right)
    return torch.allclose(output, right, rtol=1e-4, atol=1e-5 * right.abs().max().item())
