"""Ranks that are real processes, started from a notebook: ipyparallel's engines, joined as torchrun's workers are."""

import atexit
import logging
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import cloudpickle
import ipyparallel
import torch
import torch.distributed as dist
from torch.utils import _pytree as pytree

from .local import local_value

START_SECONDS = 120  # engines import torch first
RUN_SECONDS = 120  # a run that takes longer is given up


class RanksError(RuntimeError):
    """What went wrong on which rank."""


class ProcessRanks:
    """See `lab.ranks`. Started by the constructor; one set at a time, so starting again stops the one before.

    wait_seconds is how long a rank waits for the others in a collective before it gives up.
    """

    _running: "ProcessRanks | None" = None

    def __init__(self, count: int, wait_seconds: float = 15):
        if ProcessRanks._running:
            ProcessRanks._running.stop()
        self.count, self.wait_seconds = count, wait_seconds
        self._joined = False
        folder = tempfile.mkdtemp(prefix="ranks-")
        self._watchdog = subprocess.Popen(
            [sys.executable, "-m", "kandinsky_mini.lab.watchdog", folder],
            stdin=subprocess.PIPE,
            text=True,
            start_new_session=True,  # whoever kills or interrupts the notebook's group spares it
        )
        self._cluster = ipyparallel.Cluster(n=count, profile_dir=folder, log_level=logging.ERROR)
        ProcessRanks._running = self
        atexit.register(self.stop)
        try:
            self._cluster.start_controller_sync()
            self._watch(self._cluster.controller.pid)
            self._cluster.start_engines_sync()
            self._watch(*(engine.pid for engine in self._cluster.engine_set.launchers.values()))
            self._client = self._cluster.connect_client_sync()
            self._client.wait_for_engines(count, timeout=START_SECONDS, interactive=False)
            self._join()
        except BaseException:
            self.stop()
            raise

    def __repr__(self) -> str:
        return f"{self.count} ranks, each a process of its own, which talk through gloo"

    def run(self, function: Callable, *inputs: Any) -> list:
        """function(mesh, *inputs) on every rank, without gradients: one output for each. What ranks print follows.

        Tensors in the output are the rank's own, of a DTensor its shard.

        Raises:
            RanksError: the function failed or waited in vain on some rank. The ranks can be used again.
        """
        if ProcessRanks._running is not self:
            raise RanksError("these ranks are stopped: start some with lab.ranks")
        if not self._joined:  # an earlier run ended in the middle
            self._join()
        self._joined = False
        outputs = self._on_all(_run, [cloudpickle.dumps((function, inputs))] * self.count)
        self._joined = True
        return [cloudpickle.loads(output) for output in outputs]

    def stop(self) -> None:
        """End the processes and remove their files; nothing happens the second time."""
        if ProcessRanks._running is not self:
            return
        ProcessRanks._running = None
        atexit.unregister(self.stop)
        self._cluster.stop_cluster_sync()
        self._watchdog.communicate()  # ends whatever is left

    def __enter__(self) -> "ProcessRanks":
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def _watch(self, *pids: int) -> None:
        print(*pids, sep="\n", file=self._watchdog.stdin, flush=True)

    def _join(self) -> None:
        """Make the ranks a group, as a launcher does: it holds the store, on a port that is surely free."""
        self._store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        common = {
            "WORLD_SIZE": self.count,
            "LOCAL_WORLD_SIZE": self.count,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": self._store.port,
            "TORCHELASTIC_USE_AGENT_STORE": True,
            "KANDINSKY_TIMEOUT_SECONDS": self.wait_seconds,
        }
        self._on_all(_join, [common | {"RANK": rank, "LOCAL_RANK": rank} for rank in range(self.count)])
        self._joined = True

    def _on_all(self, function: Callable, values: list) -> list:
        """function(value) on each rank, and what the ranks printed, in their order."""
        engines = sorted(self._client.ids)
        pending = [self._client[i].apply_async(function, value) for i, value in zip(engines, values, strict=True)]
        self._client.wait(pending, timeout=RUN_SECONDS)
        if not all(result.done() for result in pending):
            waiting = [rank for rank, result in enumerate(pending) if not result.done()]
            self.stop()
            raise RanksError(f"no answer from {named(waiting)} within {RUN_SECONDS} s: all ranks are stopped")
        for rank, result in enumerate(pending):
            result.wait_for_output(10)  # it comes by another way than the result
            for line in result.stdout.splitlines():
                print(f"rank {rank}: {line}")
        errors = {rank: result.exception() for rank, result in enumerate(pending) if result.exception()}
        if errors:
            raise RanksError(describe(self.count, errors, self.wait_seconds)) from None
        return [result.get() for result in pending]


def describe(count: int, errors: dict[int, Exception], wait_seconds: float) -> str:
    """One line for each rank; first, whether some waited for others that never came."""
    ends = [_first_line(errors[rank]) if rank in errors else "returned" for rank in range(count)]
    lines = [f"rank {rank}: {end}" for rank, end in enumerate(ends)]
    if any(re.search(r"[Tt]imed out", str(error)) for error in errors.values()):
        # When one gives up, another that waits may lose the connection to it first.
        missing = [rank for rank in range(count) if rank not in errors]
        whom = named(missing) if missing else "one another"
        lines.insert(0, f"a hang: {named(list(errors))} waited {wait_seconds:g} s for {whom}")
    return "\n".join(lines)


def named(ranks: list[int]) -> str:
    """rank 2; ranks 0, 1 and 3."""
    *most, last = map(str, ranks)
    return f"ranks {', '.join(most)} and {last}" if most else f"rank {last}"


def _first_line(error: Exception) -> str:
    """Without the engine's number and the line of C++ that ipyparallel and gloo put before it."""
    return re.sub(r"\[(?:\d+:\w+|/\S+:\d+)\] ", "", str(error).strip().splitlines()[0])


def _join(environment: dict[str, Any]) -> None:
    """On a rank: leave the group before, if any, and join the new one."""
    os.environ.update({name: str(value) for name, value in environment.items()})
    from ..distributed import join_group  # only now: it reads its timeout from the environment

    torch.set_num_threads(1)
    if dist.is_initialized():
        dist.destroy_process_group()
    join_group("cpu")


def _run(payload: bytes) -> bytes:
    """On a rank: call the function, and give back what it gave."""
    from ..distributed import tensor_parallel_mesh

    function, inputs = cloudpickle.loads(payload)
    with torch.no_grad():
        output = function(tensor_parallel_mesh("cpu")["tensor_parallel"], *inputs)
        return cloudpickle.dumps(pytree.tree_map(local_value, output))
