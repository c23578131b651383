"""Ends processes once their notebook is gone: python -m kandinsky_mini.lab.watchdog FOLDER, process ids on stdin.

A killed notebook cannot tidy up, and ipyparallel's processes would run on for ever. The end of stdin says that it is
gone, however that came. Then the processes with all their children are killed, and the folder is removed.
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
    pids = sys.stdin.read().split()  # waits
    for process in [process for pid in pids for process in with_children(int(pid))]:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            pass  # its end was quicker
    shutil.rmtree(sys.argv[1], ignore_errors=True)
