"""From the launcher's environment to a group of ranks.

torchrun and torch.distributed.launch start one process for each rank. Environment variables tell each process which
rank it is.
"""

import os
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")


def world_size() -> int:
    """Return the number of ranks that the launcher started, or 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Return the number of this rank, or 0 without a launcher."""
    return int(os.environ.get("RANK", "0"))


def local_device(device: str | torch.device) -> str | torch.device:
    """Return the device that this rank uses.

    Under a launcher, "cuda" becomes the GPU with this rank's local number, which also becomes the current device. In
    all other cases the given device is returned.

    Call it before anything else touches CUDA, because whatever touches it first would take GPU 0 on every rank.
    """
    if world_size() == 1 or not str(device).startswith("cuda"):
        return device
    own = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(own)
    return own


def join_group(device_type: str) -> None:
    """Join the group of all ranks, unless this rank has joined already: NCCL between GPUs, gloo between CPUs.

    A rank that waits for the others gives up after KANDINSKY_TIMEOUT_SECONDS, by default 120. That is longer than any
    step or any loading takes, and short enough for a person to notice.
    """
    if dist.is_initialized():
        return
    timeout = timedelta(seconds=float(os.environ.get("KANDINSKY_TIMEOUT_SECONDS", "120")))
    if device_type == "cuda":
        dist.init_process_group("nccl", timeout=timeout)
        return
    from . import gloo

    gloo.join(timeout)


def leave_group() -> None:
    """Leave the group. This is the last call of a rank's program: over gloo it ends the process.

    It waits for nobody. Ranks that have done their part may leave while rank 0 is still decoding. Without a launcher
    there is no group, and nothing happens.
    """
    if not dist.is_initialized():
        return
    over_nccl = dist.get_backend() == "nccl"
    dist.destroy_process_group()
    if not over_nccl:
        from . import gloo

        gloo.end_process()


def from_rank_0(make: Callable[[], T]) -> T:
    """Call make() on rank 0 only, and return its result on every rank."""
    if world_size() == 1:
        return make()
    box = [make() if rank() == 0 else None]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def gather_from_all(value: T) -> list[T]:
    """Return the values of all ranks, in the order of the ranks, on every rank."""
    values = [value] * world_size()
    if world_size() > 1:
        dist.all_gather_object(values, value)
    return values
