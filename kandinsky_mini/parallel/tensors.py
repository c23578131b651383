"""Get at one rank's part of a distributed tensor: its data, its placement and its slices."""

from collections.abc import Callable
from typing import Any

import torch
from torch.distributed._functional_collectives import AsyncCollectiveTensor
from torch.distributed.tensor import DTensor, Placement, Shard

Slices = tuple[slice, ...]


def local_value(value: Any) -> Any:
    """Return the rank's own data: the local shard of a DTensor, or the finished tensor of a collective.

    A tensor that a collective is still filling is waited for. Other values pass through unchanged.
    """
    if isinstance(value, DTensor):
        value = value.to_local()
    return value.wait() if isinstance(value, AsyncCollectiveTensor) else value


def placement_of(tensor: torch.Tensor) -> Placement | None:
    """Return a DTensor's placement on its one-dimensional mesh, or None for a plain tensor."""
    return tensor.placements[0] if isinstance(tensor, DTensor) else None


def slices_of_ranks(tensor: DTensor) -> list[Slices]:
    """Return, for each rank of a one-dimensional mesh, the slices of the whole tensor that the rank holds.

    If the tensor is not sharded, every rank has slices over all of it.
    """
    (placement,) = tensor.placements
    ranks = tensor.device_mesh.size()
    parts = [[slice(0, length) for length in tensor.shape] for _ in range(ranks)]
    if isinstance(placement, Shard):
        length = tensor.shape[placement.dim]
        most = -(-length // ranks)  # as torch.chunk does it: the last ranks may have less, or nothing
        for rank, part in enumerate(parts):
            part[placement.dim] = slice(min(rank * most, length), min((rank + 1) * most, length))
    return [tuple(part) for part in parts]


def place(parameter: torch.Tensor, read: Callable[[Slices], torch.Tensor], device: torch.device) -> torch.Tensor:
    """Make a tensor on the device, sharded like the parameter, from the slices that this rank holds.

    read(slices) returns these slices of the whole tensor. They are cast to the parameter's dtype.
    """
    if not isinstance(parameter, DTensor):
        return read(tuple(slice(0, length) for length in parameter.shape)).to(device, parameter.dtype)
    mesh = parameter.device_mesh
    local = read(slices_of_ranks(parameter)[mesh.get_local_rank()]).to(device, parameter.dtype)
    whole = {"shape": parameter.shape, "stride": parameter.stride()}
    return DTensor.from_local(local, mesh, parameter.placements, run_check=False, **whole)
