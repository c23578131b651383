"""Ranks that live in one process: every shard can be looked at, and the results are deterministic.

PyTorch's LocalTensorMode is private (torch.distributed._local_tensor, since 2.10), so only this file uses it.
Build the model and its inputs outside of the block: they are the same on all ranks then.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch.distributed._local_tensor import LocalTensor, LocalTensorMode
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh


@contextmanager
def simulated_ranks(count: int, name: str = "tensor_parallel") -> Iterator[DeviceMesh]:
    """In the block, operations run on `count` ranks; gives their mesh, of one dimension."""
    dist.init_process_group("fake", rank=0, world_size=count)
    try:
        with LocalTensorMode(count):
            yield init_device_mesh("cpu", (count,), mesh_dim_names=(name,))[name]
    finally:
        dist.destroy_process_group()


def per_rank(value: torch.Tensor) -> list[torch.Tensor]:
    """What each simulated rank holds of a tensor that was made on them."""
    value = value.wait() if hasattr(value, "wait") else value  # a collective may still be under way
    if not isinstance(value, LocalTensor):
        raise TypeError(f"not a tensor of simulated ranks, but {type(value).__name__}")
    return list(value._local_tensors.values())
