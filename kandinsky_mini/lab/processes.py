"""Ranks that are real processes, started from a notebook: ipyparallel's engines, joined like torchrun's workers."""

import atexit
import logging
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import ipyparallel
import torch
import torch.distributed as dist
from torch.utils import _pytree as pytree

from ..parallel.groups import join_group
from ..parallel.layout import ParallelLayout
from ..parallel.tensors import local_value

START_SECONDS = 120  # for the engines, which import torch first
RUN_SECONDS = 120  # for a run; one that takes longer is given up
WATCHDOG = Path(__file__).with_name("watchdog.py")


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
        folder = tempfile.mkdtemp(prefix="ranks-")
        self._watchdog = subprocess.Popen(
            [sys.executable, str(WATCHDOG), folder],
            stdin=subprocess.PIPE,
            text=True,
            start_new_session=True,  # so that it survives when the notebook's group is killed or interrupted
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
        """Call function(mesh, *inputs) on every rank, without gradients, and return one output for each rank.

        Each tensor in an output is that rank's own data; a DTensor is replaced by the rank's local shard. What the
        ranks print appears in the order of the ranks.

        Raises:
            RanksError: on some rank the function failed or waited in vain; these ranks can be used again. It is also
                raised if the ranks are stopped, or do not answer within RUN_SECONDS, which stops them.
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
        """End the processes and remove their files. A second call does nothing."""
        if ProcessRanks._running is not self:
            return
        ProcessRanks._running = None
        atexit.unregister(self.stop)
        self._cluster.stop_cluster_sync()
        self._watchdog.communicate()  # it ends whatever is left

    def __enter__(self) -> "ProcessRanks":
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def _watch(self, *pids: int) -> None:
        print(*pids, sep="\n", file=self._watchdog.stdin, flush=True)

    def _join(self) -> None:
        """Join the ranks into one process group. As a launcher does, this process runs the store, on a free port."""
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
        """Call function(value) on each rank, and print what the ranks print, in their order."""
        engines = sorted(self._client.ids)
        pending = [self._client[i].apply_async(function, value) for i, value in zip(engines, values, strict=True)]
        self._client.wait(pending, timeout=RUN_SECONDS)
        if not all(result.done() for result in pending):
            waiting = [rank for rank, result in enumerate(pending) if not result.done()]
            self.stop()
            raise RanksError(f"no answer from {named(waiting)} within {RUN_SECONDS} s: all ranks are stopped")
        for rank, result in enumerate(pending):
            result.wait_for_output(10)  # it travels separately from the result
            for line in result.stdout.splitlines():
                print(f"rank {rank}: {line}")
        errors = {rank: result.exception() for rank, result in enumerate(pending) if result.exception()}
        if errors:
            raise RanksError(describe(self.count, errors, self.wait_seconds)) from None
        return [result.get() for result in pending]


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


def _join(environment: dict[str, Any]) -> None:
    """Run on a rank: leave an earlier group, and join the new one."""
    os.environ.update({name: str(value) for name, value in environment.items()})
    torch.set_num_threads(1)
    if dist.is_initialized():
        dist.destroy_process_group()
    join_group("cpu")


def _run(payload: bytes) -> bytes:
    """Run on a rank: call the function, and return its output."""
    function, inputs = cloudpickle.loads(payload)
    with torch.no_grad():
        output = function(ParallelLayout("tp", dist.get_world_size()).device_mesh("cpu"), *inputs)
        return cloudpickle.dumps(pytree.tree_map(local_value, output))
