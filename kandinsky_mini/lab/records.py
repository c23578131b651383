"""Benchmark records: one JSON file for each run, raw, from which every figure is drawn."""

import json
import platform
import re
import statistics
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path

import torch

from ..config import ROOT
from ..distributed import world_size

SCHEMA = 1
PUBLISHED = ROOT / "assets" / "benchmarks"  # behind the figures and the README
FOLDER = ROOT / "runs" / "benchmarks"  # anyone's own


@dataclass(frozen=True)
class Record:
    """One run of launch/benchmark.py or launch/whole_run.py. Times are in seconds.

    layout: {"cfg": branches side by side, "kind": "tp", "size": ranks of one branch}.
    step_seconds: every step of every rank, [rank][step]; warmup_seconds: the steps before, the first one compiles.
    breakdown: what rank 0's device did in one more step; communication includes waiting for the other ranks.
    wire_bytes: what each rank sends in one step, in a ring.
    peak_bytes: memory of each rank; weight_bytes: of that, the CrossDiT's weights.
    parts: what a whole run does besides, once, such as {"text": , "vae": , "save": }; None: not measured.
    capacity: on a CPU, how many one-thread copies' worth of work the machine did at once, before the run.
    engine: whose model it was, "ours" or another library's; variant: which of our plans.
    """

    command: str
    config: str
    device: str
    gpus: int
    interconnect: str
    layout: dict[str, int | str]
    seconds_of_video: int
    guided: bool
    compiled: bool
    step_seconds: list[list[float]]
    warmup_seconds: list[list[float]]
    peak_bytes: list[int]
    breakdown: dict[str, float] = field(default_factory=dict)
    wire_bytes: float = 0.0
    weight_bytes: list[int] = field(default_factory=list)
    parts: dict[str, float | None] = field(default_factory=dict)
    device_map: dict[str, str] = field(default_factory=dict)
    threads: int = 1
    capacity: float | None = None
    engine: str = "ours"
    variant: str = "talk"
    date: str = field(default_factory=lambda: date.today().isoformat())
    versions: dict[str, str] = field(default_factory=lambda: versions())
    schema: int = SCHEMA

    @property
    def ranks(self) -> int:
        return self.layout["cfg"] * self.layout["size"]

    @property
    def series(self) -> tuple:
        """What must be alike in records whose numbers of ranks are compared."""
        model = (self.engine, self.variant, self.guided, self.compiled)
        return self.seconds_of_video, self.config, self.device, *model

    @property
    def step(self) -> float:
        """A step lasts until its slowest rank is done; the median of all steps."""
        return statistics.median(self.slowest())

    def slowest(self) -> list[float]:
        return [max(times) for times in zip(*self.step_seconds, strict=True)]

    def save(self, folder: Path) -> Path:
        """Write folder/speed-DEVICE-CONFIG-LAYOUT[-ENGINE][-PLAN][-PARTS].json, over a record of the same run."""
        device = re.sub(r"\W+", "_", self.device.removeprefix("NVIDIA ")).strip("_").lower()
        where = f"{self.ranks}x{self.threads}" if not self.gpus else f"{self.layout['kind']}{self.ranks}"
        model = "".join(f"-{name}" for name in (self.engine, self.variant) if name not in ("ours", "talk"))
        parts = ("-whole" if any(self.step_seconds) else "-save") if self.parts else ""
        path = folder / f"speed-{device}-{self.config}-{where}{model}{parts}.json"
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")
        return path


def load_records(folder: Path = PUBLISHED) -> list[Record]:
    """All records of a folder, series after series, by number of ranks.

    Raises:
        ValueError: a file that is no record, or one of another schema, or with other fields; names it.
    """
    records = []
    for path in sorted(folder.glob("speed-*.json")):
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is not JSON: {error}") from error
        if not isinstance(values, dict) or values.get("schema") != SCHEMA:
            raise ValueError(f"{path} is no record of schema {SCHEMA}, which this code reads")
        try:
            records.append(Record(**values))
        except TypeError as error:
            raise ValueError(f"{path}: {error}") from error
    return sorted(records, key=lambda record: (record.series, record.ranks, record.threads))


def versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "torch": torch.__version__}
    if torch.cuda.is_available():
        found |= {"cuda": torch.version.cuda, "cudnn": str(torch.backends.cudnn.version())}
        found |= {"nccl": ".".join(map(str, torch.cuda.nccl.version()))}
    return found


def interconnect(gpus: int) -> str:
    """What nvidia-smi says of the way from the first GPU to the second, such as NV18: 18 NVLinks."""
    if gpus < 2:
        return "none"
    table = subprocess.run(["nvidia-smi", "topo", "-m"], capture_output=True, text=True).stdout
    rows = [line.split() for line in table.splitlines() if line.startswith("GPU0")]
    return rows[0][2] if rows and len(rows[0]) > 2 else "unknown"


def command_line() -> str:
    """This run's command, as a reader of the record can repeat it: where it writes to is the reader's business."""
    script, options = Path(sys.argv[0]), sys.argv[1:]
    options = [option for option in options if not option.startswith("--out=")]
    if "--out" in options:
        place = options.index("--out")
        del options[place : place + 2]
    launcher = f"torchrun --nproc-per-node {world_size()}" if world_size() > 1 else "python"
    return " ".join([launcher, f"{script.parent.name}/{script.name}", *options])
