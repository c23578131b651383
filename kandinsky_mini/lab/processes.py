"""Ranks that are real processes, started from a notebook: ipyparallel's engines, joined like torchrun's workers."""

import atexit
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import cloudpickle
import ipyparallel
import psutil
import torch
import torch.distributed as dist
from torch.utils import _pytree as pytree

from ..parallel.groups import join_group
from ..parallel.layout import ParallelLayout
from ..parallel.tensors import local_value
from . import watchdog

START_SECONDS = 120  # for the engines, which import torch first
RUN_SECONDS = 120  # for a run; one that takes longer is given up


class RanksError(RuntimeError):
    """The message says what went wrong on which rank."""


class ProcessRanks:
    """The real processes of `lab.ranks`. There is one set of them at a time: starting a new one stops the one before.

    wait_seconds is how long a rank waits for the others in a collective before it gives up.
    """

    _running: "ProcessRanks | None" = None

    def __init__(self, count: int, wait_seconds: float = 15):
        if ProcessRanks._running:
            ProcessRanks._running.stop()
        self.count, self.wait_seconds = count, wait_seconds
        self._joined = False
        self._engines: list[int] = []
        self._processes: list[psutil.Process] = []  # in the order of the ranks
        self._ended = "these ranks are stopped"
        self._folder = tempfile.mkdtemp(prefix="ranks-")
        self._notebook = psutil.Process()
        self._watchdog = subprocess.Popen(
            [
                *(sys.executable, watchdog.__file__, self._folder),
                *(str(self._notebook.pid), repr(self._notebook.create_time())),
            ],
            start_new_session=True,  # so that it survives when the notebook's group is killed or interrupted
        )
        self._cluster = ipyparallel.Cluster(
            n=count,
            profile_dir=self._folder,
            log_level=logging.ERROR,
            shutdown_atexit=False,  # a fork of the notebook would do it as well
        )
        ProcessRanks._running = self
        atexit.register(self.stop)
        try:
            self._cluster.start_controller_sync()
            self._cluster.start_engines_sync()
            self._client = self._cluster.connect_client_sync()
            self._client.wait_for_engines(count, timeout=START_SECONDS, interactive=False)
            self._engines = sorted(self._client.ids)
            self._join()
        except BaseException:
            self.stop()
            raise

    def __repr__(self) -> str:
        return f"{self.count} ranks, each a process of its own, which talk through gloo"

    def run(self, function: Callable, *inputs: Any) -> list:
        """Call function(mesh, *inputs) on every rank, without gradients, and return one output for each rank.

        Each tensor in an output is that rank's own data; a DTensor is replaced by the rank's local shard. What the
        ranks print appears in the order of the ranks.

        After an error or an interrupt, the ranks leave their group, and join a new one at the next run. A rank that is
        still waiting in a collective goes on to the end of wait_seconds first.

        Raises:
            RanksError: on some rank the function failed or waited in vain; these ranks can be used again. It is also
                raised if the ranks are stopped, if one of them has died, or if they do not answer within RUN_SECONDS.
                The last two stop all ranks.
        """
        if ProcessRanks._running is not self:
            raise RanksError(f"{self._ended}: start them anew with lab.ranks")
        payload = cloudpickle.dumps((function, inputs))
        if not self._joined:  # an earlier run ended in the middle, or left the group
            self._join()
        self._joined = False
        outputs, in_group = zip(*self._on_all(_run, [payload] * self.count), strict=True)
        self._joined = all(in_group)
        return [cloudpickle.loads(output) for output in outputs]

    def stop(self) -> None:
        """End the processes and remove their files. A second call does nothing."""
        if ProcessRanks._running is not self or self._notebook.pid != os.getpid():  # a fork has copies of both
            return
        ProcessRanks._running = None
        atexit.unregister(self.stop)
        try:
            watchdog.end_all(self._folder)  # at once: the cluster by itself waits a second for each rank
            self._cluster.stop_cluster_sync()
        finally:
            watchdog.end_all(self._folder)  # whatever is left, also after an interrupt
            self._watchdog.kill()
            self._watchdog.wait()

    def __enter__(self) -> "ProcessRanks":
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def _join(self) -> None:
        """Join the ranks into one process group. As a launcher does, this process runs the store, on a free port.

        The store is a new one each time, since an old one has the addresses of an earlier group. It listens on a socket
        that is bound to 127.0.0.1. Its own socket would let other machines read and write.
        """
        server = socket.create_server(("127.0.0.1", 0))
        port = server.getsockname()[1]
        self._store = dist.TCPStore(
            "127.0.0.1", port, is_master=True, wait_for_workers=False, master_listen_fd=server.detach()
        )
        common = {
            "WORLD_SIZE": self.count,
            "LOCAL_WORLD_SIZE": self.count,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "TORCHELASTIC_USE_AGENT_STORE": True,
            "KANDINSKY_TIMEOUT_SECONDS": self.wait_seconds,
        }
        pids = self._on_all(_join, [common | {"RANK": rank, "LOCAL_RANK": rank} for rank in range(self.count)])
        self._processes = [psutil.Process(pid) for pid in pids]
        self._joined = True

    def _on_all(self, function: Callable, values: list) -> list:
        """Call function(value) on each rank, and print what the ranks print, in their order."""
        self._refuse_dead()
        pending = [self._client[i].apply_async(function, value) for i, value in zip(self._engines, values, strict=True)]
        try:
            self._wait(pending)
        except KeyboardInterrupt:
            self._cluster.signal_engines_sync(signal.SIGINT)  # the ranks have sessions of their own
            raise
        for rank, result in enumerate(pending):
            result.wait_for_output(10)  # it travels separately from the result
            for line in result.stdout.splitlines():
                print(f"rank {rank}: {line}")
        errors = {rank: result.exception() for rank, result in enumerate(pending) if result.exception()}
        if errors:
            raise RanksError(describe(self.count, errors, self.wait_seconds)) from None
        return [result.get() for result in pending]

    def _wait(self, pending: list[ipyparallel.AsyncResult]) -> None:
        """Wait until every rank has answered."""
        end = time.monotonic() + RUN_SECONDS
        while not all(result.done() for result in pending):
            self._client.wait(pending, timeout=0.5)
            self._refuse_dead()
            if time.monotonic() > end:
                waiting = [rank for rank, result in enumerate(pending) if not result.done()]
                self._give_up(f"no answer from {named(waiting)} within {RUN_SECONDS} s, so all of them were stopped")

    def _refuse_dead(self) -> None:
        if dead := [rank for rank, process in enumerate(self._processes) if not watchdog.alive(process)]:
            self._give_up(f"{named(dead)} {'is' if len(dead) == 1 else 'are'} dead")

    def _give_up(self, reason: str) -> None:
        """Stop all ranks, and say why, now and at each later run."""
        self._ended = reason
        self.stop()
        raise RanksError(f"{reason}: start them anew with lab.ranks")


def describe(count: int, errors: dict[int, Exception], wait_seconds: float) -> str:
    """Describe in one line per rank how it ended. If ranks waited in vain for others, the first line says so."""
    ends = [_first_line(errors[rank]) if rank in errors else "returned" for rank in range(count)]
    lines = [f"rank {rank}: {end}" for rank, end in enumerate(ends)]
    if any(re.search(r"[Tt]imed out", str(error)) for error in errors.values()):
        # When one rank gives up, another one that waits may lose its connection before its own time is over.
        missing = [rank for rank in range(count) if rank not in errors]
        whom = named(missing) if missing else "one another"
        lines.insert(0, f"a hang: {named(list(errors))} waited {wait_seconds:g} s for {whom}")
    return "\n".join(lines)


def named(ranks: list[int]) -> str:
    """Put ranks into words: "rank 2", or "ranks 0, 1 and 3"."""
    *most, last = map(str, ranks)
    return f"ranks {', '.join(most)} and {last}" if most else f"rank {last}"


def _first_line(error: Exception) -> str:
    """Return the error's first line, without the prefixes of ipyparallel (engine number) and gloo (C++ source line)."""
    return re.sub(r"\[(?:\d+:\w+|/\S+:\d+)\] ", "", str(error).strip().splitlines()[0])


def _join(environment: dict[str, Any]) -> int:
    """Run on a rank: leave an earlier group, join the new one, and return the process id."""
    global _group
    os.environ.update({name: str(value) for name, value in environment.items()})
    torch.set_num_threads(1)
    if dist.is_initialized():
        dist.destroy_process_group()
    join_group("cpu")
    _group = dist.group.WORLD
    return os.getpid()


def _run(payload: bytes) -> tuple[bytes, bool]:
    """Run on a rank: call the function. Return its output, and whether the rank is still in its group."""
    function, inputs = cloudpickle.loads(payload)
    with torch.no_grad():
        output = function(ParallelLayout("tp", dist.get_world_size()).device_mesh("cpu"), *inputs)
        output = cloudpickle.dumps(pytree.tree_map(local_value, output))
    return output, dist.is_initialized() and dist.group.WORLD is _group


_group: dist.ProcessGroup | None = None  # on a rank: the group that it has joined
