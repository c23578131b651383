"""What a CPU is, and how much it does at once: without that, times of several processes on it say little."""

import platform
import subprocess
import sys
from pathlib import Path

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
    """How many of `copies` independent one-thread processes' work the machine does at once; the best of three tries."""

    def slowest(count: int) -> float:
        running = [subprocess.Popen([sys.executable, "-c", BUSY], stdout=subprocess.PIPE) for _ in range(count)]
        return max(float(process.communicate()[0]) for process in running)

    alone, together = (min(slowest(count) for _ in range(3)) for count in (1, copies))
    return min(float(copies), copies * alone / together)


def processor() -> str:
    """Its name."""
    info = Path("/proc/cpuinfo")  # Linux; elsewhere Python knows
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.processor())
