"""Ranks that live in one process: every shard can be looked at, and the results are deterministic.

PyTorch's LocalTensorMode is a private API, in torch.distributed._local_tensor since 2.10, so only this file uses it.
Build the model and its inputs before you simulate ranks, so that every rank gets the same ones.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed._local_tensor import LocalTensor, LocalTensorMode, enabled_local_tensor_mode
from torch.distributed.device_mesh import DeviceMesh
from torch.utils import _pytree as pytree

from .layout import ParallelLayout
from .tensors import local_value

# The mode logs a traceback for every shape that does not fit, and raises the error as well. One of them is enough.
logging.getLogger("torch._subclasses.fake_tensor").setLevel(logging.CRITICAL)


@contextmanager
def simulated_ranks(layout: ParallelLayout | int, device_type: str = "cpu") -> Iterator[DeviceMesh]:
    """Run the block on all ranks of a layout at once, on one device, and yield the layout's mesh.

    layout may be a number of tensor-parallel ranks.
    """
    if isinstance(layout, int):
        layout = ParallelLayout("tp", layout)
    dist.init_process_group("fake", rank=0, world_size=layout.ranks)
    try:
        with LocalTensorMode(layout.ranks):
            yield layout.device_mesh(device_type)
    finally:
        dist.destroy_process_group()


def per_rank(value: torch.Tensor) -> list[torch.Tensor]:
    """Return each simulated rank's own data of a tensor.

    Raises:
        TypeError: the tensor was not made under simulated ranks.
    """
    value = local_value(value)
    if not isinstance(value, LocalTensor):
        raise TypeError(f"not a tensor of simulated ranks, but {type(value).__name__}")
    return list(value._local_tensors.values())


def own_tensor(make: Callable[[int], torch.Tensor]) -> torch.Tensor:
    """Make a tensor that differs between ranks, make(rank) on each. It works on simulated ranks and on real ones."""
    mode = enabled_local_tensor_mode()
    return mode.rank_map(make) if mode else make(dist.get_rank())


class SimulatedRanks:
    """The simulated ranks of `lab.ranks`. Each run has a mesh of its own, and nothing is left after it."""

    def __init__(self, count: int):
        self.count = count

    def __repr__(self) -> str:
        return f"{self.count} simulated ranks, in this process"

    def run(self, function: Callable, *inputs: Any) -> list:
        """Call function(mesh, *inputs) on every rank, without gradients, and return one output for each rank.

        Each tensor in an output is that rank's own data; a DTensor is replaced by the rank's local shard. Any other
        value is the same for all ranks.
        """
        with simulated_ranks(self.count) as mesh, torch.no_grad():
            leaves, structure = pytree.tree_flatten(function(mesh, *inputs))
            columns = [self._of_each_rank(leaf) for leaf in leaves]
        return [pytree.tree_unflatten(row, structure) for row in zip(*columns, strict=True)] or [None] * self.count

    def _of_each_rank(self, leaf: Any) -> list:
        leaf = local_value(leaf)
        return per_rank(leaf) if isinstance(leaf, LocalTensor) else [leaf] * self.count

    def stop(self) -> None:
        """Do nothing: only real ranks have to be stopped."""

    def __enter__(self) -> "SimulatedRanks":
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()
