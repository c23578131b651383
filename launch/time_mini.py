"""How long the default video takes on this computer, loading included, as whoever waits for it sees it.

python launch/time_mini.py --out assets/benchmarks/time_mini.json

Processes are run for each number of threads. Beside them stands the parallel capacity: as many one-thread processes
as there are cores, all at once, against one alone. On an idle machine it is the number of cores; beside other work it
is less, and the times say little.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from kandinsky_mini.lab.capacity import parallel_capacity, processor  # noqa: E402
from kandinsky_mini.lab.check import effective_cores  # noqa: E402


def generate_seconds(threads: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(HERE / "generate.py"), "--device", "cpu", "--path", f"{folder}/video.mp4"]
        started = time.perf_counter()
        subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": str(threads)}, check=True, capture_output=True)
        return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="write the record as JSON")
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
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
