"""Measure how long you wait for the default video on this computer, loading included.

python launch/time_mini.py --out assets/benchmarks/time_mini.json

A new process generates each video, first with one thread and then with as many threads as there are cores. The record
also holds the machine's parallel capacity. To measure it, as many one-thread processes as there are cores run at once,
and are compared with one that runs alone. On an idle machine the capacity is the number of cores. Beside other work it
is less, and then the times say little.
"""

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import torch

from kandinsky_mini.bench import options
from kandinsky_mini.bench.machine import effective_cores, parallel_capacity, processor
from kandinsky_mini.command import run, run_program
from kandinsky_mini.files import write_json

HERE = Path(__file__).resolve().parent


def generate_seconds(threads: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(HERE / "generate.py"), "--device", "cpu", "--path", f"{folder}/video.mp4"]
        started = time.perf_counter()
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        run_program(command, env=os.environ | {"OMP_NUM_THREADS": str(threads)}, **quiet)
        return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=options.at_least(1), default=3)
    parser.add_argument("--out", type=options.file, help="JSON file to write the record to")
    args = parser.parse_args()

    cores = max(1, int(effective_cores()))
    record = {
        "what": "the default video (2 s, 192 x 128, 25 steps, guided), one process from its start to its end",
        "date": date.today().isoformat(),
        "device": f"{processor()}, {cores} cores",
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "parallel_capacity": [parallel_capacity(cores)],
        "seconds": {},
    }
    for threads in sorted({1, cores}):
        seconds = record["seconds"][f"{threads} threads"] = [generate_seconds(threads) for _ in range(args.repeats)]
        print(f"{threads} threads:", " ".join(f"{s:.1f} s" for s in seconds), flush=True)
    record["parallel_capacity"].append(parallel_capacity(cores))
    print(f"parallel capacity before and after: {record['parallel_capacity']}, of {cores} cores")
    if args.out:
        write_json(args.out, record)


if __name__ == "__main__":
    run(main)
