"""Run launch/benchmark.py for each number of ranks that fits, one after the other, and print a table at the end:

python launch/sweep.py --config kandinsky_mini/configs/lite_5s.yaml --random-weights   # 1, 2, 4 and 8 GPUs
python launch/sweep.py --layouts tp tp_sp ulysses cfg2-tp ulysses4x2 ...               # more than the talk's plan
python launch/sweep.py --device cpu                                                    # ranks x threads

Options that sweep.py does not know are passed to benchmark.py. On a CPU the ranks share the cores that threads would
use, so a sweep there shows the bytes and the memory of each rank, but no speedup. It first measures the machine's
parallel capacity, and writes it into each record.
"""

import argparse
import itertools
import subprocess
import sys
from pathlib import Path

import torch
from benchmark import config_of, parse_args, sampling_of

from kandinsky_mini.bench.machine import effective_cores, parallel_capacity
from kandinsky_mini.bench.options import config_file, device, folder
from kandinsky_mini.bench.records import FOLDER, Record, load_records
from kandinsky_mini.command import run, run_program
from kandinsky_mini.config import Config
from kandinsky_mini.parallel.layout import ParallelLayout

BENCHMARK = Path(__file__).resolve().with_name("benchmark.py")
GPUS = (1, 2, 4, 8)


def layouts(run_of: argparse.Namespace, config: Config, counts: list[int], wanted: list[str]) -> list[ParallelLayout]:
    """Return the wanted layouts of a run on so many ranks. Print why others are left out.

    On one rank for each branch there is only one layout, because nothing is left to split.
    """
    sampling = sampling_of(run_of, config)
    kept = [ParallelLayout()] if 1 in counts else []
    for count, text in itertools.product([count for count in counts if count > 1], wanted):
        layout = of_ranks(text, count)
        try:
            if layout.ranks != count:
                if sized(text):
                    continue  # its turn comes with another count
                raise ValueError(f"it has no form for {count} ranks")
            if run_of.engine == "ours" or layout.kind != "ulysses":  # cache-dit's Ulysses splits any number of heads
                layout.check(config.dit, count)
            layout.check_run(sampling, config.dit)
            kept += [layout] if layout not in kept else []
        except ValueError as error:
            print(f"left out: {layout}: {error}", flush=True)
    return kept


def sized(text: str) -> bool:
    return text[-1:].isdecimal()


def of_ranks(text: str, count: int) -> ParallelLayout:
    """Read a layout with its size, such as "ulysses4x2", or give so many ranks to one without, such as "cfg2-tp"."""
    if sized(text):
        return ParallelLayout.parse(text)
    one = ParallelLayout.parse(f"{text}1")
    size = max(1, count // one.cfg)
    return ParallelLayout(one.kind if size > 1 else "tp", size, one.cfg)


def wanted(text: str) -> str:
    """Accept a layout with or without its size."""
    try:
        of_ranks(text, 1)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def benchmark(layout: ParallelLayout, options: list[str]) -> int:
    """Run the benchmark in processes of its own, and return its exit status."""
    ranks, script = layout.ranks, [str(BENCHMARK), "--layout", str(layout), *options]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    try:
        run_program([sys.executable, *launcher, *script])
    except subprocess.CalledProcessError as error:
        return error.returncode
    return 0


def on_gpus(run_of: argparse.Namespace, config: Config, names: list[str], options: list[str]) -> list[int]:
    counts = {*GPUS, *(of_ranks(name, 1).ranks for name in names)}
    counts = sorted(count for count in counts if count <= torch.cuda.device_count())
    return [benchmark(layout, options) for layout in layouts(run_of, config, counts, names)]


def on_cpu(run_of: argparse.Namespace, config: Config, names: list[str], options: list[str]) -> list[int]:
    """Run 1 rank with 1 thread, 1 rank with N threads and N ranks with 1 thread, on N cores."""
    cores = max(1, int(effective_cores()))
    capacity = parallel_capacity(cores)
    print(f"parallel capacity: {capacity:.2f} of {cores} cores", flush=True)
    options = [*options, "--device", "cpu", "--capacity", f"{capacity:.3f}"]
    one, *several = layouts(run_of, config, [1, cores], names)
    # On one core, the first two are the same.
    runs = dict.fromkeys([(one, 1), (one, cores), *((layout, 1) for layout in several)])
    return [benchmark(layout, [*options, "--threads", str(threads)]) for layout, threads in runs]


def table(records: list[Record]) -> str:
    """Return a table of the records. Speedups are over one rank with one thread, where the series has such a record."""
    columns = f"{'layout':15}{'threads':>8}{'s a step':>10}{'speedup':>9}{'GB a rank':>11}{'GB sent':>9}  device"
    lines = [f"{'config':10}{'engine':10}{columns}"]
    alone = {record.workload: record.step for record in records if record.ranks == record.threads == 1}
    for record in records:
        speedup = f"{alone[record.workload] / record.step:8.2f}x" if record.workload in alone else f"{'-':>9}"
        times = f"{record.step:10.3f}{speedup}"
        gigabytes = f"{max(record.peak_bytes) / 1e9:11.2f}{record.wire_bytes / 1e9:9.2f}"
        lines.append(
            f"{record.config:10}{record.engine:10}{record.layout!s:15}{record.threads:8}{times}{gigabytes}"
            f"  {record.device}"
        )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=config_file, nargs="+", help="YAML files; default: mini")
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", type=device, default=default, choices=("cuda", "cpu"))
    which = {"nargs": "+", "type": wanted, "default": ["tp"], "metavar": "LAYOUT"}
    sizes = "without their sizes, for every number of ranks, or with one, such as tp ulysses4x2 (default: tp)"
    parser.add_argument("--layouts", **which, help=sizes)
    parser.add_argument("--out", type=folder, default=str(FOLDER), help="the folder of the records")
    args, others = parser.parse_known_args(argv)

    each = [["--out", str(args.out), *others, *(["--config", path] if path else [])] for path in args.config or [None]]
    # Try the options for benchmark.py here, so that a mistake is reported once and before any run.
    runs = [parse_args(["--device", args.device, *options]) for options in each]
    try:
        load_records(args.out)  # a record that cannot be read would keep the table from being printed at the end
    except ValueError as error:
        parser.error(str(error))
    failed = 0
    for run_of, options in zip(runs, each, strict=True):
        run_all = on_gpus if args.device == "cuda" else on_cpu
        statuses = run_all(run_of, config_of(run_of), args.layouts, options)
        failed += sum(status != 0 for status in statuses)
    gpus = args.device == "cuda"
    print(table([record for record in load_records(args.out) if (record.gpus > 0) == gpus and not record.parts]))
    if failed:
        sys.exit(f"error: a run failed ({failed} in all), see above")


if __name__ == "__main__":
    run(main)
