"""Start and leave gloo, PyTorch's backend for CPUs, so that two of its bugs cannot crash a rank."""

import os
import socket
import sys
from datetime import timedelta

import torch.distributed as dist

from .groups import LauncherError

NAME = "gloo_of_one_worker"


def join(timeout: timedelta, on_one_machine: bool) -> None:
    """Join the group of all ranks, over the loopback interface if all of them run on this machine.

    Raises:
        LauncherError: GLOO_SOCKET_IFNAME names a network interface that this machine lacks.
    """
    if on_one_machine:
        # The loopback always works, whatever the name of the machine resolves to.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    given, known = os.environ.get("GLOO_SOCKET_IFNAME", ""), [name for _, name in socket.if_nameindex()]
    if given and not set(given.split(",")) <= set(known):
        raise LauncherError(f"GLOO_SOCKET_IFNAME is {given!r}, but the network interfaces here are {known}: unset it")
    if NAME not in dist.Backend.backend_list:
        dist.Backend.register_backend(NAME, _one_worker, devices="cpu")
    dist.init_process_group(NAME, timeout=timeout)


def _one_worker(store: dist.Store, rank: int, size: int, timeout: timedelta) -> dist.ProcessGroupGloo:
    """Make a gloo group with one worker thread instead of two.

    In torch 2.13, two workers that finish at the same time both replace the name of the last finished operation
    (ProcessGroupGloo::runLoop) without a lock. This damages the heap, and a rank crashes. It happened twice in about
    200 short runs, once with a core dump that shows it.
    """
    options = dist.ProcessGroupGloo._Options()
    if names := os.environ.get("GLOO_SOCKET_IFNAME"):
        options._devices = [dist.ProcessGroupGloo.create_device(interface=name) for name in names.split(",")]
    else:
        options._devices = [dist.ProcessGroupGloo.create_default_device()]
    options._threads = 1
    options._timeout = timeout
    return dist.ProcessGroupGloo(store, rank, size, options)


def end_process() -> None:
    """End the process at once with exit status 0, without Python's own clean-up.

    During that clean-up a gloo thread may ask for the GIL, which aborts the process. This happened in 4 of 70 runs with
    torch 2.13.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
