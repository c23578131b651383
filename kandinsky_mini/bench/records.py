"""Benchmark records: one JSON file for each run, with everything as it was measured. Figures are drawn from them."""

import json
import platform
import re
import shlex
import statistics
import sys
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from pathlib import Path

import torch

from ..config import ROOT
from ..files import write_json
from ..limits import check_real, check_whole
from ..parallel.groups import world_size
from ..parallel.layout import ParallelLayout

SCHEMA = 2
PUBLISHED = ROOT / "assets" / "benchmarks"  # what the figures and the pages are made from
FOLDER = ROOT / "runs" / "benchmarks"  # where your own records go


@dataclass(frozen=True)
class Record:
    """One run of launch/benchmark.py or launch/whole_run.py. Times are in seconds, sizes in bytes.

    layout: how the CrossDiT was spread over the ranks.
    attention: the preferred kernel, as models/attention.py names it.
    text_tokens: the numbers of tokens in the prompt and, if guided, in the negative prompt. It is empty if real prompts
        were encoded.
    step_seconds: every step of every rank, [rank][step]. warmup_seconds: the steps before; the first one compiles.
    breakdown: how many seconds rank 0's device spent on each kind of work, in one extra step. Communication includes
        waiting for the other ranks.
    wire_bytes: what the rank that sends most sends in one step, in a ring.
    peak_bytes: the peak memory of each rank or, in a whole run, of each device.
    weight_bytes: the bytes of CrossDiT weights that each rank holds.
    parts: the seconds of what a whole run does once: "expand" (the prompt), "text", "vae" and "save". None means not
        measured.
    offload: in a whole run, whether models that did not work waited in the CPU's memory.
    sparse: in a whole run, whether self-attention was NABLA's, with the configuration's P.
    capacity: on a CPU, how many one-thread processes' worth of work the machine did at once, before the run.
    density: the share of the blocks that NABLA was to keep, or None with full attention. Its self-attention runs on
        flex_attention. kept: the share that it kept on each rank in the first forward.
    engine: whose model it was, "ours" or another library's. plan: which of our plans, or "own" for another engine's.
    """

    command: str
    config: str
    device: str
    gpus: int
    interconnect: str
    layout: ParallelLayout
    seconds_of_video: int
    guided: bool
    compiled: bool
    attention: str
    step_seconds: list[list[float]]
    warmup_seconds: list[list[float]]
    peak_bytes: list[int]
    text_tokens: list[int] = field(default_factory=list)
    breakdown: dict[str, float] = field(default_factory=dict)
    wire_bytes: float = 0.0
    weight_bytes: list[int] = field(default_factory=list)
    parts: dict[str, float | None] = field(default_factory=dict)
    device_map: dict[str, str] = field(default_factory=dict)
    offload: bool = False
    sparse: bool = False
    threads: int = 1
    capacity: float | None = None
    density: float | None = None
    kept: list[float] = field(default_factory=list)
    engine: str = "ours"
    plan: str = "talk"
    date: str = field(default_factory=lambda: date.today().isoformat())
    versions: dict[str, str] = field(default_factory=lambda: versions())
    schema: int = SCHEMA

    @property
    def ranks(self) -> int:
        return self.layout.ranks

    @property
    def series(self) -> tuple[str, ...]:
        """What two runs must have in common to be compared across numbers of ranks and threads."""
        measured = "step" if not self.parts else "whole" if any(self.step_seconds) else "save"
        return (
            measured,
            slug(self.device.removeprefix("NVIDIA ")),
            self.config,
            f"{self.seconds_of_video}s",
            "guided" if self.guided else "unguided",
            "compiled" if self.compiled else "eager",
            self.attention,
            self.engine,
            self.plan,
            *([f"tokens_{'_'.join(map(str, self.text_tokens))}"] if self.text_tokens else []),
            *([f"{self.gpus}gpus"] if self.parts else []),
            *(["offload"] if self.offload else []),
            *(["nabla"] if self.sparse else []),
            *([f"nabla_{self.density:g}"] if self.density else []),
            *(["cfg"] if self.layout.cfg > 1 else []),
            self.layout.kind,
        )

    @property
    def workload(self) -> tuple[str, ...]:
        """What two runs must have in common to be compared across layouts."""
        return replace(self, layout=ParallelLayout(), plan="any").series

    @property
    def name(self) -> str:
        """The series with the numbers of ranks and threads, as a file name. `save` replaces a record of this name."""
        *series, _ = [part for part in self.series if part != "cfg"]
        threads = [] if self.gpus else [f"{self.threads}threads"]
        return "-".join(["speed", *series, str(self.layout), *threads])

    @property
    def step(self) -> float:
        """The median of all steps. A step lasts until its slowest rank is done."""
        return statistics.median(self.slowest())

    def slowest(self) -> list[float]:
        """Return for each step the time of its slowest rank."""
        return [max(times) for times in zip(*self.step_seconds, strict=True)]

    def save(self, folder: Path) -> Path:
        """Write folder/NAME.json. It replaces an earlier record of the same run.

        Raises:
            ValueError: a time or another number is not finite.
        """
        path = folder / f"{self.name}.json"
        write_json(path, asdict(self))
        return path


def load_records(folder: Path = PUBLISHED) -> list[Record]:
    """Read all records of a folder, in the order of in_order.

    Raises:
        ValueError: there is no such folder, or a file is no record. The message names it.
    """
    return in_order([read_record(path) for path in record_files(folder)])


def in_order(records: list[Record]) -> list[Record]:
    """Sort records: shorter videos first, then series after series, by number of ranks."""
    return sorted(records, key=lambda r: (r.seconds_of_video, r.series, r.ranks, r.threads))


def record_files(folder: Path) -> list[Path]:
    """Return the files of a folder that are named like records.

    Raises:
        ValueError: there is no such folder.
    """
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}: name the folder that launch/sweep.py wrote to")
    return sorted(folder.glob("speed-*.json"))


def read_record(path: Path) -> Record:
    """Read a record.

    Raises:
        ValueError: the file is not JSON, has another schema, or other fields. The message names the file.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(values, dict) or values.get("schema") != SCHEMA:
        raise ValueError(f"{path} is no record of schema {SCHEMA}, which this code reads")
    try:
        record = Record(**values | {"layout": ParallelLayout(**values["layout"])})
        check_record(record)
    except (TypeError, KeyError, ValueError, AttributeError, OverflowError) as error:
        raise ValueError(f"{path} is no whole record: {error}") from error
    return record


def check_record(record: Record) -> None:
    """Raise unless a record holds numbers where figures and tables need them."""
    for each in (record.seconds_of_video, record.gpus, record.threads, *record.peak_bytes, *record.weight_bytes):
        check_whole("a number of the record", each, "a whole number", 0, 2**62)
    times = [time for steps in (*record.step_seconds, *record.warmup_seconds) for time in steps]
    for each in (*times, *record.breakdown.values(), record.wire_bytes):
        check_real("a number of the record", each, 0, 1e18)
    if record.step_seconds and len({len(steps) for steps in record.step_seconds}) > 1:
        raise ValueError("its ranks have different numbers of steps")


def slug(text: str) -> str:
    """Turn text into a part of a file's name."""
    return re.sub(r"\W+", "_", text).strip("_").lower()


def versions() -> dict[str, str]:
    """Return the versions of what the times depend on."""
    found = {"python": platform.python_version(), "torch": torch.__version__}
    if torch.cuda.is_available():
        found |= {"cuda": torch.version.cuda, "cudnn": str(torch.backends.cudnn.version())}
        found |= {"nccl": ".".join(map(str, torch.cuda.nccl.version()))}
    return found


def command_line() -> str:
    """Return this run's command as a reader can repeat it, without the folder that it wrote to."""
    script, options = Path(sys.argv[0]), sys.argv[1:]
    options = [option for option in options if not option.startswith("--out=")]
    if "--out" in options:
        place = options.index("--out")
        del options[place : place + 2]
    launcher = f"torchrun --nproc-per-node {world_size()}" if world_size() > 1 else "python"
    return f"{launcher} {shlex.join([f'{script.parent.name}/{script.name}', *options])}"
