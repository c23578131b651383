"""From the launcher's environment to a device mesh.

torchrun and torch.distributed.launch start one process a rank and tell each who it is in environment variables.
"""

import atexit
import os
import sys
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

# How long a rank waits for the others before it gives up: longer than any step or loading, short enough to notice.
TIMEOUT = timedelta(seconds=120)


def world_size() -> int:
    """Number of ranks that the launcher started; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """This process's place among all ranks; 0 without a launcher."""
    return int(os.environ.get("RANK", "0"))


def local_device(device_type: str) -> torch.device:
    """This rank's own device: the CPU, or the GPU with its place on this machine.

    Called before anything else touches CUDA: whatever comes first would otherwise take GPU 0 on every rank.
    """
    if device_type != "cuda":
        return torch.device(device_type)
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device


def tensor_parallel_mesh(device_type: str) -> DeviceMesh:
    """A mesh of all ranks, of one dimension, "tensor_parallel": NCCL between GPUs, gloo between CPUs."""
    if not dist.is_initialized():
        if os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]:
            # All ranks on this machine: the loopback always works, whatever the machine's name resolves to.
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
        dist.init_process_group("nccl" if device_type == "cuda" else "gloo", timeout=TIMEOUT)
        atexit.register(dist.destroy_process_group)
    return init_device_mesh(device_type, (world_size(),), mesh_dim_names=("tensor_parallel",))


def from_rank_0(value: torch.Tensor) -> torch.Tensor:
    """Rank 0's tensor on every rank; the others bring one of its shape, type and device."""
    dist.broadcast(value, src=0)
    return value
