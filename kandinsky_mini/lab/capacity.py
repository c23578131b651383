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
    """How many one-thread processes' worth of work the machine does at once, of `copies` independent ones."""

    def slowest(count: int) -> float:
        running = [subprocess.Popen([sys.executable, "-c", BUSY], stdout=subprocess.PIPE) for _ in range(count)]
        return max(float(process.communicate()[0]) for process in running)

    return copies * slowest(1) / slowest(copies)


def processor() -> str:
    """Its name."""
    info = Path("/proc/cpuinfo")  # Linux; elsewhere Python knows
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.processor())
