"""The talk's runs that take too long for a stage: started live, or shown as they were recorded.

The environment variable LIVE chooses. 1, the default, starts them, and 0 shows the recordings of assets/talk. With
"record" they are started, and their recordings are replaced.
"""

import dataclasses
import functools
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

from ..command import run_program
from ..config import ROOT
from ..files import write_json
from .machine import effective_cores, processor

FOLDER = ROOT / "assets" / "talk"
MODES = ("0", "1", "record")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]


@dataclasses.dataclass(frozen=True)
class Recording:
    """What a run printed at its end, and when and where it ran. Its video lies beside it."""

    command: str
    output: list[str]
    seconds: float
    date: str
    machine: str


def mode() -> str:
    """Return what LIVE says.

    Raises:
        ValueError: it is none of MODES.
    """
    wanted = os.environ.get("LIVE", "1")
    if wanted not in MODES:
        raise ValueError(f"the environment variable LIVE is {wanted!r}: set it to one of {', '.join(MODES)}")
    return wanted


def run(command: str, video: str, folder: Path = FOLDER) -> Path:
    """Run a torchrun command that writes a video, print how it ended, and return the path of the video.

    With LIVE=0 nothing is started: the recording is printed, which says so, and the recorded video is returned.

    Args:
        command: starts with "torchrun". The option --path is added.
        video: the name of the file, such as "test.mp4". It also names the recording.
        folder: where recordings are.

    Raises:
        RuntimeError: the command failed. The message ends with what it printed.
        ValueError: there is no recording of this very command.
    """
    recorded = Path(folder, video)
    print(f"$ {command} --path {video}")
    if mode() == "0":
        recording = load(recorded, command)
        print(*recording.output, sep="\n")
        print(f"[recorded on {recording.date} on {recording.machine}: {recording.seconds:.0f} s]")
        return recorded
    path = Path(temporary_folder().name, video)
    recording = start(command, path)
    print(*recording.output, sep="\n")
    if mode() == "record":
        Path(folder).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, recorded)
        write_json(recorded.with_suffix(".json"), dataclasses.asdict(recording))
    return path


@functools.cache
def temporary_folder() -> tempfile.TemporaryDirectory:
    """Return a folder for the videos of this process, which ends with it."""
    return tempfile.TemporaryDirectory(prefix="talk-")


def start(command: str, path: Path) -> Recording:
    """Run the command in the root folder of the repository, and return what it printed last."""
    started = time.perf_counter()
    line = [*TORCHRUN, *shlex.split(command)[1:], "--path", str(path)]
    try:
        printed = run_program(line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    except subprocess.CalledProcessError as error:  # torchrun's own report is long, and comes last
        causes = "\n".join(said for said in error.stderr.splitlines() if said.startswith("error:"))
        raise RuntimeError(f"{command} failed:\n{causes or error.stderr[-2000:]}") from None
    output = printed.replace(str(path.resolve()), path.name).splitlines()[-2:]
    where = f"{processor()} with {effective_cores():.0f} cores"
    return Recording(command, output, time.perf_counter() - started, date.today().isoformat(), where)


def load(video: Path, command: str) -> Recording:
    """Read the recording beside a recorded video."""
    file = video.with_suffix(".json")
    try:
        recording = Recording(**json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        recording = None
    if recording is None or recording.command != command or not video.exists():
        raise ValueError(f"{file} is no recording of {command!r}: run this with LIVE=record")
    return recording
