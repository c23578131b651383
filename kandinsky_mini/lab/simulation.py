"""Ranks that live in one process: every shard can be looked at, and the results are deterministic.

PyTorch's LocalTensorMode is private (torch.distributed._local_tensor, since 2.10), so only this file uses it.
Build the model and its inputs outside of the block: they are the same on all ranks then.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed._local_tensor import LocalTensor, LocalTensorMode, enabled_local_tensor_mode
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.utils import _pytree as pytree

from .local import local_value

# It logs a traceback of every shape that does not fit, beside raising the error: for a lesson's mistakes one is enough.
logging.getLogger("torch._subclasses.fake_tensor").setLevel(logging.CRITICAL)


@contextmanager
def simulated_ranks(count: int, name: str = "tensor_parallel", device_type: str = "cpu") -> Iterator[DeviceMesh]:
    """In the block, operations run on `count` ranks, all on one device; gives their mesh, of one dimension."""
    dist.init_process_group("fake", rank=0, world_size=count)
    try:
        with LocalTensorMode(count):
            yield init_device_mesh(device_type, (count,), mesh_dim_names=(name,))[name]
    finally:
        dist.destroy_process_group()


def per_rank(value: torch.Tensor) -> list[torch.Tensor]:
    """What each simulated rank holds of a tensor that was made on them."""
    value = local_value(value)
    if not isinstance(value, LocalTensor):
        raise TypeError(f"not a tensor of simulated ranks, but {type(value).__name__}")
    return list(value._local_tensors.values())


def own_tensor(make: Callable[[int], torch.Tensor]) -> torch.Tensor:
    """A tensor that differs between ranks, make(rank) on each; on simulated ranks and on real ones."""
    mode = enabled_local_tensor_mode()
    return mode.rank_map(make) if mode else make(dist.get_rank())


class SimulatedRanks:
    """See `lab.ranks`. A run is on a mesh of its own, and nothing is left after it."""

    def __init__(self, count: int):
        self.count = count

    def __repr__(self) -> str:
        return f"{self.count} simulated ranks, in this process"

    def run(self, function: Callable, *inputs: Any) -> list:
        """function(mesh, *inputs) on every rank, without gradients: one output for each.

        Tensors in the output are the rank's own, of a DTensor its shard; anything else is the same for all ranks.
        """
        with simulated_ranks(self.count) as mesh, torch.no_grad():
            leaves, structure = pytree.tree_flatten(function(mesh, *inputs))
            columns = [self._of_each(leaf) for leaf in leaves]
        return [pytree.tree_unflatten(row, structure) for row in zip(*columns, strict=True)] or [None] * self.count

    def _of_each(self, leaf: Any) -> list:
        leaf = local_value(leaf)
        return per_rank(leaf) if isinstance(leaf, LocalTensor) else [leaf] * self.count

    def stop(self) -> None:
        """Nothing runs between runs; real ranks must be stopped."""

    def __enter__(self) -> "SimulatedRanks":
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()
