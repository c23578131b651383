"""A sharded module beside the unsharded one: what every simulated rank returns, and what they communicate for it."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Shard
from torch.distributed.tensor.parallel import ParallelStyle, parallelize_module
from torch.utils import _pytree as pytree

from ..parallel.ledger import Entry, Ledger, summary
from ..parallel.simulation import SimulatedRanks
from ..parallel.tensors import placement_of

BAR = 1e-4  # of the largest value, in float32
# How a module is sharded: a style, a plan, or a function that is given the module and the mesh and returns the module.
How = ParallelStyle | dict[str, ParallelStyle] | Callable[[nn.Module, DeviceMesh], nn.Module]


def shard(module: nn.Module, mesh: DeviceMesh, how: How) -> nn.Module:
    """Shard a copy of the module.

    Raises:
        ValueError: a parameter cannot be split into equal parts.
    """
    module = copy.deepcopy(module)
    sharded = parallelize_module(module, mesh, how) if isinstance(how, (ParallelStyle, dict)) else how(module, mesh)
    for name, parameter in sharded.named_parameters() if isinstance(sharded, nn.Module) else ():
        placement = placement_of(parameter)
        if isinstance(placement, Shard) and parameter.shape[placement.dim] % mesh.size():
            raise ValueError(f"{name}: {parameter.shape[placement.dim]} does not divide by {mesh.size()}")
    return sharded


def run_sharded(module: nn.Module, how: How, *inputs: Any, ranks: int = 4) -> tuple[list, list[Entry]]:
    """Return what the sharded module returns on every simulated rank, and the collectives of its forward."""
    ledger = Ledger()

    def forward(mesh: DeviceMesh, *inputs: Any) -> Any:
        sharded = shard(module, mesh, how)  # sends the weights to the ranks once, so it is not counted
        ledger.model = sharded
        with ledger:
            return sharded(*inputs)

    return SimulatedRanks(ranks).run(forward, *inputs), ledger.entries


def compare(module: nn.Module, how: How, *inputs: Any, ranks: int = 4) -> str:
    """Print whether the sharded module returns on every rank what the unsharded one does, and what it communicates.

    Returns:
        The communication in words, such as "1 all_reduce of 8 KiB".
    """
    with torch.no_grad():
        whole = module(*inputs)
    outputs, entries = run_sharded(module, how, *inputs, ranks=ranks)
    away = [difference(output, whole) for output in outputs]
    wrong = [rank for rank, distance in enumerate(away) if not distance < BAR]
    verdict = "yes" if not wrong else f"NO, rank {wrong[0]} differs by {away[wrong[0]]:.1g} x the largest value"
    print(f"as unsharded on every rank: {verdict} | {summary(entries)}")
    return summary(entries)


def difference(output: Any, reference: Any) -> float:
    """Return the largest difference of two outputs as a share of the largest value, or infinity if shapes differ.

    Both may be a tensor or several tensors, as many in the one as in the other.
    """
    outputs, references = pytree.tree_leaves(output), pytree.tree_leaves(reference)
    if [a.shape for a in outputs] != [b.shape for b in references]:
        return float("inf")
    pairs = zip(outputs, references, strict=True)
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in pairs)
