"""End processes once their notebook is gone: python watchdog.py FOLDER, with process ids on stdin.

A notebook that is killed cannot clean up, and ipyparallel's processes would run on for ever. When the notebook ends, in
whatever way, stdin ends too. This program then kills the processes with all their children, and removes the folder.

It runs as a file of its own, because importing the package would cost it seconds and hundreds of megabytes.
"""

import shutil
import sys

import psutil


def with_children(pid: int) -> list[psutil.Process]:
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


if __name__ == "__main__":
    pids = sys.stdin.read().split()  # waits for the end
    for process in [process for pid in pids for process in with_children(int(pid))]:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            pass  # it ended first
    shutil.rmtree(sys.argv[1], ignore_errors=True)
