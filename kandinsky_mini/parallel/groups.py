"""From the launcher's environment to a group of ranks.

torchrun and torch.distributed.launch start one process for each rank. Environment variables tell each process which
rank it is. This module alone reads them, apart from FIRST in command.py, which must not import torch.
"""

import os
import time
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")

SECONDS = "KANDINSKY_TIMEOUT_SECONDS"
# Rank 0 alone loads the text encoders and the VAE, and encodes. The others wait this many times as long for that.
LOADING = 15


class LauncherError(ValueError):
    """What the launcher's environment says cannot be. The message names the variable and a cure."""


def world_size() -> int:
    """Return the number of ranks that the launcher started, or 1 without a launcher.

    Raises:
        LauncherError: the variables of a launcher contradict one another.
    """
    return _place()[1]


def rank() -> int:
    """Return the number of this rank, or 0 without a launcher.

    Raises:
        LauncherError: the variables of a launcher contradict one another.
    """
    return _place()[0]


def timeout() -> timedelta:
    """Return how long a rank waits for the others: KANDINSKY_TIMEOUT_SECONDS, or 120 s.

    Raises:
        LauncherError: the variable is not a number of seconds.
    """
    text = os.environ.get(SECONDS, "120")
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 1 <= seconds <= 10**6:  # false for nan, too
        raise LauncherError(f"{SECONDS} must be a number of seconds, 1 to 1000000, not {text!r}: unset it for 120")
    return timedelta(seconds=seconds)


def _place() -> tuple[int, int]:
    """Return the number of this rank and of all ranks."""
    size = _whole("WORLD_SIZE", 1) if "WORLD_SIZE" in os.environ else 1
    number = _whole("RANK", 0) if "RANK" in os.environ else 0
    alone = "WORLD_SIZE" not in os.environ and "RANK" in os.environ
    if alone or (size > 1 and "RANK" not in os.environ):
        here, missing = ("RANK", "WORLD_SIZE") if alone else ("WORLD_SIZE", "RANK")
        raise LauncherError(f"{here} is set without {missing}: unset {here}, or start the ranks with torchrun")
    if number >= size:
        raise LauncherError(f"RANK is {number}, but WORLD_SIZE {size} has the ranks 0 to {size - 1}: use torchrun")
    return number, size


def _whole(name: str, low: int) -> int:
    """Read a launcher's variable that holds a whole number of at least `low`."""
    text = os.environ.get(name)
    if text is None:
        raise LauncherError(f"{name} is not set, although WORLD_SIZE is: start the ranks with torchrun")
    if not (text.isascii() and text.isdecimal()) or int(text) < low:
        raise LauncherError(f"{name} must be a whole number from {low}, not {text!r}: unset it, or use torchrun")
    return int(text)


def local_device(device: str | torch.device) -> str | torch.device:
    """Return the device that this rank uses.

    Under a launcher, "cuda" becomes the GPU with this rank's local number, which also becomes the current device. In
    all other cases the given device is returned.

    Call it before anything else touches CUDA, because whatever touches it first would take GPU 0 on every rank.

    Raises:
        LauncherError: this rank has no GPU, or LOCAL_RANK does not say which.
    """
    if world_size() == 1 or not str(device).startswith("cuda"):
        return device
    gpus, number = torch.cuda.device_count(), _whole("LOCAL_RANK", 0)
    if gpus == 0:
        raise LauncherError(f"{str(device)!r} does not work here, because PyTorch finds no GPU: choose the device cpu")
    if number >= gpus:
        raise LauncherError(
            f"no GPU is left for rank {rank()}: LOCAL_RANK is {number}, and this machine has {gpus}. "
            f"Start at most {gpus} ranks on it: torchrun --nproc-per-node {gpus}"
        )
    own = torch.device("cuda", number)
    torch.cuda.set_device(own)
    return own


def join_group(device_type: str) -> None:
    """Join the group of all ranks, unless this rank has joined already: NCCL between GPUs, gloo between CPUs.

    A rank that waits for the others gives up after KANDINSKY_TIMEOUT_SECONDS, by default 120. That is longer than any
    step takes, and short enough for a person to notice.

    Raises:
        LauncherError: a variable that the ranks need in order to meet is missing or wrong.
    """
    if dist.is_initialized():
        return
    _whole("RANK", 0)
    _whole("MASTER_PORT", 1)
    if not os.environ.get("MASTER_ADDR"):
        raise LauncherError("MASTER_ADDR is not set, although WORLD_SIZE is: start the ranks with torchrun")
    if device_type == "cuda":
        dist.init_process_group("nccl", timeout=timeout())
        return
    from . import gloo

    gloo.join(timeout(), on_one_machine=os.environ.get("LOCAL_WORLD_SIZE") == str(world_size()))


def wait_until_loaded(work: str = "loading") -> None:
    """Wait until every rank has called this. It is for work that takes some ranks much longer than others.

    A collective would give up too early, so the ranks meet in the launcher's store. They may wait 15 times as long
    there, by default half an hour. Without a launcher nothing happens.

    Raises:
        RuntimeError: some ranks did not come. The message names them and the work.
    """
    if not dist.is_initialized():
        return
    store, seconds = dist.distributed_c10d._get_default_store(), LOADING * timeout().total_seconds()
    meeting = f"kandinsky/loaded/{store.add(f'kandinsky/loads/{rank()}', 1)}"
    store.set(f"{meeting}/{rank()}", "")
    missing, end = list(range(world_size())), time.monotonic() + seconds
    while missing := [each for each in missing if not store.check([f"{meeting}/{each}"])]:
        if time.monotonic() > end:
            raise RuntimeError(
                f"ranks {missing} did not finish {work} within {seconds:g} s: "
                f"if they need longer, set {SECONDS}, of which this is {LOADING} times as much"
            )
        time.sleep(0.05)  # in Python, so that Ctrl-C works


def is_first_to_fail() -> bool:
    """Say whether no other rank has asked this before, so that one of several ranks reports an error.

    All ranks meet most errors, but a folder, a GPU or a variable may be wrong on a single one. Without the store of a
    launcher nobody can tell, and every rank reports.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return True
    try:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = dist.TCPStore(address, port, is_master=False, timeout=timedelta(seconds=10))
        run = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        return store.add(f"kandinsky/failed/{run}", 1) == 1
    except (RuntimeError, ValueError, KeyError):  # the launcher is gone, or its variables are wrong
        return True


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


def from_rank_0(make: Callable[[], T], long_work: str | None = None) -> T:
    """Call make() on rank 0 only, and return its result on every rank.

    long_work says what make() does if that may take long. The others then wait as in wait_until_loaded.
    """
    if world_size() == 1:
        return make()
    box = [make() if rank() == 0 else None]
    if long_work:
        wait_until_loaded(long_work)
    dist.broadcast_object_list(box, src=0)
    return box[0]


def gather_from_all(value: T) -> list[T]:
    """Return the values of all ranks, in the order of the ranks, on every rank."""
    values = [value] * world_size()
    if world_size() > 1:
        dist.all_gather_object(values, value)
    return values
