"""From the launcher's environment to a device mesh.

torchrun and torch.distributed.launch start one process a rank and tell each who it is in environment variables.
"""

import os
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

T = TypeVar("T")

# How long a rank waits for the others before it gives up: longer than any step or loading, short enough to notice.
TIMEOUT = timedelta(seconds=float(os.environ.get("KANDINSKY_TIMEOUT_SECONDS", "120")))


def gloo_of_one_worker(store: dist.Store, rank: int, size: int, timeout: timedelta) -> dist.ProcessGroupGloo:
    """gloo, with one worker thread instead of two.

    Two workers of torch 2.13 that end at the same time both replace the name of the work last done
    (ProcessGroupGloo::runLoop), without a lock. That damages the heap, and a rank crashes: seen twice in about 200
    short runs, once with a core dump that shows it.
    """
    options = dist.ProcessGroupGloo._Options()
    names = os.environ.get("GLOO_SOCKET_IFNAME")
    if names:
        options._devices = [dist.ProcessGroupGloo.create_device(interface=name) for name in names.split(",")]
    else:
        options._devices = [dist.ProcessGroupGloo.create_default_device()]
    options._threads = 1
    options._timeout = timeout
    return dist.ProcessGroupGloo(store, rank, size, options)


GLOO = "gloo_of_one_worker"
dist.Backend.register_backend(GLOO, gloo_of_one_worker, devices="cpu")


def world_size() -> int:
    """Number of ranks that the launcher started; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """This process's place among all ranks; 0 without a launcher."""
    return int(os.environ.get("RANK", "0"))


def local_device(device: str | torch.device) -> str | torch.device:
    """This rank's own device: for any GPU the one with the rank's place on this machine, else what was given.

    Without a launcher it is what was given.

    Called before anything else touches CUDA: whatever comes first would otherwise take GPU 0 on every rank.
    """
    if world_size() == 1 or not str(device).startswith("cuda"):
        return device
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)
    return device


def join_group(device_type: str) -> None:
    """Join the group of all ranks, once: NCCL between GPUs, gloo between CPUs."""
    if not dist.is_initialized():
        if os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]:
            # All ranks on this machine: the loopback always works, whatever the machine's name resolves to.
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
        dist.init_process_group("nccl" if device_type == "cuda" else GLOO, timeout=TIMEOUT)


def tensor_parallel_mesh(device_type: str) -> DeviceMesh:
    """A mesh of all ranks, of one dimension, "tensor_parallel"."""
    join_group(device_type)
    return init_device_mesh(device_type, (world_size(),), mesh_dim_names=("tensor_parallel",))


def leave() -> None:
    """The last call of a rank's program: leave the group and end the process; nothing happens without a launcher.

    It waits for nobody: the ranks that have done their part may go while rank 0 still decodes. The process ends
    without Python's own tidying up, since a thread of gloo that asks for Python's lock during it aborts the process
    (seen in 4 of 70 runs with torch 2.13).
    """
    if not dist.is_initialized():
        return
    dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def from_rank_0(make: Callable[[], T]) -> T:
    """What make() gives on rank 0, on every rank; make is called on rank 0 only."""
    if world_size() == 1:
        return make()
    box = [make() if rank() == 0 else None]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def innermost_module(error: BaseException, model: nn.Module) -> str:
    """The name of the model's module that an error came from, found in the error's traceback."""
    names = {id(module): name for name, module in model.named_modules()}
    found = ""
    traceback = error.__traceback__
    while traceback is not None:
        found = names.get(id(traceback.tb_frame.f_locals.get("self")), found)
        traceback = traceback.tb_next
    return found
