"""Describe a machine and measure its parallel capacity. Without these two, times measured on it say little.

torch is imported only where it is needed, so that launch/check_machine.py can say when it is missing.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import typing
from pathlib import Path

if typing.TYPE_CHECKING:
    import torch

BUSY = """
import time, torch
torch.set_num_threads(1)
a = torch.randn(512, 512)
started = time.perf_counter()
for _ in range(400):
    a @ a
print(time.perf_counter() - started)
"""


def parallel_capacity(copies: int) -> float:
    """Measure how many one-thread processes the machine can really run in parallel.

    `copies` processes run at once, and are compared with one that runs alone. The best of three tries counts. On an
    idle machine with enough cores the result is `copies`. If other programs are running, it is less.
    """

    def slowest(count: int) -> float:
        running = [subprocess.Popen([sys.executable, "-c", BUSY], stdout=subprocess.PIPE) for _ in range(count)]
        return max(float(process.communicate()[0]) for process in running)

    alone, together = (min(slowest(count) for _ in range(3)) for count in (1, copies))
    return min(float(copies), copies * alone / together)


def effective_cores() -> float:
    """Return the cores that this process may use: those that affinity and the container's quota leave it."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    return min(len(affinity(0)) if affinity else os.cpu_count() or 1, cpu_quota())


def cpu_quota(root: Path = Path("/sys/fs/cgroup")) -> float:
    """Return the control group's limit in cores, for version 2 or 1; infinity if there is no limit."""
    for files in (["cpu.max"], ["cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"]):
        try:
            quota, period = " ".join((root / file).read_text() for file in files).split()
        except OSError:
            continue
        if quota not in ("max", "-1"):
            return int(quota) / int(period)
    return float("inf")


def device_name(device: torch.device) -> str:
    """Return the name of a GPU, or of the processor."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor()


def processor() -> str:
    """Return the name of the processor."""
    info = Path("/proc/cpuinfo")  # Linux; on other systems Python knows the name
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.processor())


def interconnect(gpus: int) -> str:
    """Return how the first GPU reaches the second in nvidia-smi's words, such as NV18 for 18 NVLinks."""
    if gpus < 2:
        return "none"
    try:
        table = subprocess.run(["nvidia-smi", "topo", "-m"], capture_output=True, text=True).stdout
    except OSError:  # some containers have no nvidia-smi
        return "unknown"
    rows = [line.split() for line in table.splitlines() if line.startswith("GPU0")]
    return rows[0][2] if rows and len(rows[0]) > 2 else "unknown"
