"""End the processes of real ranks once their notebook is gone: python watchdog.py FOLDER NOTEBOOK START

A notebook that is killed cannot clean up, and ipyparallel's processes would run on for ever. This program waits until
the process NOTEBOOK, which started at START, is gone. It then kills the processes of the folder, and removes it.

Process ids alone are not enough, because the system gives the number of an ended process to a new one. So the notebook
is known by its start time as well, and the processes of the ranks by the folder, which their environment names.

It runs as a file of its own, because importing the package would cost it seconds and hundreds of megabytes.
"""

import contextlib
import shutil
import sys
import time

import psutil

MARK = "IPP_PROFILE_DIR"  # ipyparallel sets it to the folder; all that its processes start inherit it
SECONDS_TO_END = 20


def alive(process: psutil.Process) -> bool:
    """Return whether the process still runs. One that has ended but is not yet reaped does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def processes_of(folder: str) -> list[psutil.Process]:
    """Return the processes whose environment names the folder, and all their children."""
    found = set()
    for process in psutil.process_iter(["environ"]):
        if (process.info["environ"] or {}).get(MARK) == folder:
            found.add(process)
            with contextlib.suppress(psutil.NoSuchProcess):  # it ended first
                found.update(process.children(recursive=True))
    return [process for process in found if alive(process)]


def end_all(folder: str) -> None:
    """Kill the processes of a folder, and remove the folder."""
    end = time.monotonic() + SECONDS_TO_END
    while (processes := processes_of(folder)) and time.monotonic() < end:  # anew, since they start others
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(processes, timeout=1)
    shutil.rmtree(folder, ignore_errors=True)


def main(folder: str, notebook: int, start: float) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(notebook)
        while abs(process.create_time() - start) < 1 and alive(process):
            time.sleep(0.5)
    end_all(folder)
    time.sleep(1)  # a process that was just being started did not have its environment yet
    end_all(folder)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
