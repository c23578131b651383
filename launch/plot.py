"""Draw the benchmark's figures into assets/figures/, from the records alone:

python launch/plot.py   # make figures
python launch/plot.py --records runs/benchmarks --out runs/figures   # from your own records
"""

import argparse
import itertools
import sys
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from kandinsky_mini.bench import options
from kandinsky_mini.bench.compare import NoRecords, by_video_and_ranks, by_workload, floor, predicted_steps
from kandinsky_mini.bench.records import PUBLISHED, Record, in_order, read_record, record_files
from kandinsky_mini.command import run
from kandinsky_mini.config import CONFIGS, ROOT, load_config
from kandinsky_mini.files import written_aside
from kandinsky_mini.parallel.ceilings import PUBLISHED_CEILINGS

# Okabe and Ito's colours, which colour-blind readers can tell apart.
BLUE, ORANGE, GREEN, PURPLE, GREY = "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#999999"
DOING = {"attention": BLUE, "linear": GREEN, "communication": ORANGE, "rest": PURPLE, "idle": GREY}
OUTSIDE = {"CrossDiT": BLUE, "expand": ORANGE, "text": PURPLE, "vae": GREEN, "save": GREY}
STYLES = (("o-", BLUE), ("s--", ORANGE), ("^:", GREEN))


def on_gpus(records: list[Record]) -> list[list[Record]]:
    """Return our steps on GPUs, grouped by series: those that were measured on one GPU and on several."""
    ours = [record for record in records if record.gpus and record.engine == "ours" and not record.parts]
    groups = [list(group) for _, group in itertools.groupby(ours, lambda record: record.series)]
    groups = [group for group in groups if len(group) > 1 and group[0].ranks == 1]
    if not groups:
        raise NoRecords("a configuration on one GPU and on several. launch/sweep.py writes them")
    return groups


def name_of(record: Record) -> str:
    return f"{record.config.split('_')[0]}, {record.seconds_of_video} s of video, {record.device}"


def gpus_axis(axis: Axes, counts: list[int]) -> None:
    axis.set_xscale("log", base=2)
    axis.set_xticks(counts, map(str, counts))
    axis.minorticks_off()
    axis.set_xlabel("GPUs")
    axis.grid(alpha=0.3)


def speedup(records: list[Record]) -> Figure:
    """Draw how many times faster a step is than on one GPU, with its slowest and fastest step, and the efficiency."""
    groups = on_gpus(records)
    counts = sorted({record.ranks for group in groups for record in group})
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    left.plot(counts, counts, color="black", linewidth=1, label="ideal")
    for number, ((marker, colour), group) in enumerate(zip(itertools.cycle(STYLES), groups, strict=False)):
        x, one = [record.ranks for record in group], group[0].step
        y = [one / record.step for record in group]
        ends = [[one / max(record.slowest()), one / min(record.slowest())] for record in group]
        spread = [[v - low for v, (low, _) in zip(y, ends, strict=True)],
                  [high - v for v, (_, high) in zip(y, ends, strict=True)]]  # fmt: skip
        left.errorbar(x, y, spread, fmt=marker, color=colour, capsize=3, label=name_of(group[0]))
        right.plot(x, [100 * v / n for v, n in zip(y, x, strict=True)], marker, color=colour, label=name_of(group[0]))
        for n, v in zip(x[1:], y[1:], strict=True):
            left.annotate(f"{v:.2f}x", (n, v), (9, -15 + 11 * number), textcoords="offset points", color=colour)
    left.set(title="Speedup of a step", ylabel="times one GPU")
    left.set_yscale("log", base=2)
    left.set_yticks(counts, map(str, counts))
    right.axhline(100, color="black", linewidth=1, label="ideal")
    right.set(title="Efficiency: speedup over GPUs", ylabel="%", ylim=(0, 110))
    right.legend()  # the left one's lines are the same
    for axis in (left, right):
        gpus_axis(axis, counts)
        axis.margins(x=0.2)
    return figure


def stacked(axis: Axes, labels: list[str], rows: list[dict[str, float]], colours: dict[str, str]) -> None:
    """Draw one bar for each label, which stacks the parts of its row."""
    bottoms = [0.0] * len(rows)
    for part, colour in colours.items():
        heights = [row.get(part, 0.0) for row in rows]
        axis.bar(labels, heights, 0.6, bottoms, color=colour, label=part)
        bottoms = [bottom + height for bottom, height in zip(bottoms, heights, strict=True)]
    for label, top in zip(labels, bottoms, strict=True):
        axis.annotate(f"{top:.3g}", (label, top), (0, 3), textcoords="offset points", ha="center")
    axis.set_ylim(0, 1.12 * max(bottoms))


def panels(records: list[Record], draw: Callable[[Axes, list[Record]], None], title: str) -> Figure:
    """Draw one panel for each series, with a legend that they share."""
    groups = on_gpus(records)
    figure, axes = plt.subplots(1, len(groups), figsize=(5.5 * len(groups), 4.2), layout="constrained", squeeze=False)
    for axis, group in zip(axes[0], groups, strict=True):
        draw(axis, group)
        axis.set(title=name_of(group[0]), xlabel="GPUs")
    axes[0, 0].legend(*(reversed(part) for part in axes[0, 0].get_legend_handles_labels()))  # in the order of the stack
    figure.suptitle(title)
    return figure


def step(records: list[Record]) -> Figure:
    """Draw what one step spends its time on. Attention and linear layers are the arithmetic."""

    def draw(axis: Axes, group: list[Record]) -> None:
        stacked(axis, [str(record.ranks) for record in group], [record.breakdown for record in group], DOING)
        axis.set_ylabel("seconds a step (profiled)")

    return panels(records, draw, "One step on rank 0")


def memory(records: list[Record]) -> Figure:
    """Draw the peak memory of a rank."""

    def draw(axis: Axes, group: list[Record]) -> None:
        rows = [{"peak": max(record.peak_bytes) / 1e9} for record in group]
        stacked(axis, [str(record.ranks) for record in group], rows, {"peak": BLUE})
        axis.set_ylabel("GB of each rank, at most")

    return panels(records, draw, "Memory while sampling")


def whole(records: list[Record]) -> Figure:
    """Draw Amdahl's view: with more GPUs the CrossDiT's steps get shorter, but the other parts of a run do not."""

    def video(record: Record) -> tuple[str, int]:
        return record.config, record.seconds_of_video

    runs = [record for record in records if record.parts]
    parts = {(*video(r), r.device): r.parts for r in runs if r.gpus and r.ranks == 1 and not r.offload}
    saving = {video(record): record.parts["save"] for record in runs if record.parts["save"] is not None}
    measured = {"CrossDiT", "save", *(name for each in parts.values() for name, seconds in each.items() if seconds)}
    colours = {name: colour for name, colour in OUTSIDE.items() if name in measured}

    def draw(axis: Axes, group: list[Record]) -> None:
        one = group[0]
        steps = load_config(CONFIGS / f"{one.config}.yaml").sampling.num_steps
        outside = {name: value for name, value in parts[*video(one), one.device].items() if value}
        rows = [{"CrossDiT": steps * record.step} | outside | {"save": saving[video(one)]} for record in group]
        stacked(axis, [str(record.ranks) for record in group], rows, colours)
        all_of_one = sum(rows[0].values())
        for record, row in zip(group[1:], rows[1:], strict=True):
            text = f"{all_of_one / sum(row.values()):.2f}x\n(a step {one.step / record.step:.2f}x)"
            axis.annotate(
                text, (str(record.ranks), sum(row.values())), (0, 16), textcoords="offset points", ha="center"
            )
        axis.set_ylabel(f"seconds: {steps} steps and the rest (computed)")

    known = [record for record in records if (*video(record), record.device) in parts and video(record) in saving]
    if not known:
        raise NoRecords("the parts of a whole run. launch/whole_run.py writes them")
    return panels(known, draw, "A whole run")


def cpu(records: list[Record]) -> Figure:
    """Draw a step's time for ranks x threads on one CPU, beside the ideal for this machine.

    Each rank's weights and the bytes that it sends are drawn too. They are the same on every machine.
    """
    ours = [record for record in records if record.capacity and record.engine == "ours"]
    if not ours:
        raise NoRecords("ranks and threads on a CPU. launch/sweep.py --device cpu writes them")
    series = next((record for record in ours if record.ranks == 1), ours[0]).series  # other layouts have no such run
    group = [record for record in ours if record.series == series]
    labels = [f"{record.ranks} x {record.threads}" for record in group]
    figure, axes = plt.subplots(1, 3, figsize=(12, 4.0), layout="constrained")
    ideal = group[0].step / group[0].capacity
    stacked(axes[0], labels, [{"step": record.step} for record in group], {"step": BLUE})
    axes[0].axhline(ideal, color="black", label=f"ideal: parallel capacity {group[0].capacity:.2f}")
    axes[0].legend(loc="upper center")
    axes[0].set(title="seconds a step", xlabel="ranks x threads", ylim=(0, 1.45 * max(record.step for record in group)))
    stacked(axes[1], labels, [{"weights": max(record.weight_bytes) / 1e6} for record in group], {"weights": GREEN})
    axes[1].set(title="MB of weights that a rank holds", xlabel="ranks x threads")
    stacked(axes[2], labels, [{"sent": record.wire_bytes / 1e6} for record in group], {"sent": ORANGE})
    axes[2].set(title="MB that a rank sends in a step", xlabel="ranks x threads")
    figure.suptitle(name_of(group[0]))
    return figure


def panels_of_bars(groups: list[list[Record]]) -> tuple[Figure, list[Axes]]:
    """Make a panel for each group, high enough for a bar for each of its records."""
    rows = [len(group) for group in groups]
    size = (9, 0.32 * sum(rows) + len(rows))
    figure, axes = plt.subplots(len(rows), 1, figsize=size, height_ratios=rows, layout="constrained", squeeze=False)
    return figure, list(axes[:, 0])


def bars(axis: Axes, group: list[Record], colours: list[str], labels: list[str], notes: list[str]) -> None:
    """Draw a bar for each record's step, with its fastest and slowest one. A note stands behind the seconds."""
    for place, (record, colour, note) in enumerate(zip(group, colours, notes, strict=True)):
        low, high = min(record.slowest()), max(record.slowest())
        ends = [[record.step - low], [high - record.step]]
        axis.barh(place, record.step, 0.7, color=colour, xerr=ends, capsize=3, ecolor="dimgrey")
        text = f"{record.step:.3f} s{note}"
        axis.annotate(text, (high, place), (8, 0), textcoords="offset points", va="center")
    axis.set_yticks(range(len(group)), labels)
    axis.set(xlabel="seconds a step", xlim=(0, 1.5 * max(max(record.slowest()) for record in group)))
    axis.invert_yaxis()


def layouts(records: list[Record], folder: Path = PUBLISHED_CEILINGS) -> Figure:
    """Draw the step of each layout, and a tick where the cost model predicts it."""
    groups = by_workload(records)
    figure, axes = panels_of_bars(groups)
    ranks = sorted({record.ranks for group in groups for record in group})
    colours = dict(zip(ranks, itertools.cycle((GREY, ORANGE, BLUE, GREEN, PURPLE)), strict=False))
    marks = [Patch(color=colour, label=f"{count} GPU{'s' * (count > 1)}") for count, colour in colours.items()]
    predictions = [predicted_steps(group, folder) for group in groups]
    if any(map(any, predictions)):
        marks.append(Line2D([], [], color="black", linewidth=2, label="predicted"))
    for axis, group, predicted in zip(axes, groups, predictions, strict=True):
        one = next((record.step for record in group if record.ranks == 1), None)
        labels = [f"{r.layout}, {r.plan}" if r.plan != r.layout.plan else str(r.layout) for r in group]
        notes = [f", {one / r.step:.2f}x" if one and r.ranks > 1 else "" for r in group]
        bars(axis, group, [colours[r.ranks] for r in group], labels, notes)
        for place, tick in enumerate(predicted):
            if tick:
                axis.vlines(tick, place - 0.35, place + 0.35, color="black", linewidth=2)
        axis.set_title(name_of(group[0]))
    axes[0].legend(handles=marks, loc="lower right")
    return figure


def peers(records: list[Record], folder: Path = PUBLISHED_CEILINGS) -> Figure:
    """Draw our step beside that of other libraries, and the floor: the matrix products alone."""
    groups = by_video_and_ranks(records)
    figure, axes = panels_of_bars(groups)
    for axis, group in zip(axes, groups, strict=True):
        lowest = floor(group[0], folder)
        names = [r.engine if r.engine == "ours" or r.ranks == 1 else "cache-dit" for r in group]
        labels = [f"{name}, {r.layout}, {r.attention}" for name, r in zip(names, group, strict=True)]
        notes = [f", {100 * (r.step / lowest - 1):.0f} % above the floor" if lowest else "" for r in group]
        bars(axis, group, [BLUE if r.engine == "ours" else ORANGE for r in group], labels, notes)
        if lowest:
            axis.axvline(lowest, color="black", linewidth=2)
        axis.set_title(f"{name_of(group[0])}, {group[0].ranks} GPU{'s' * (group[0].ranks > 1)}")
    marks = [Patch(color=BLUE, label="ours"), Patch(color=ORANGE, label="other libraries")]
    marks.append(Line2D([], [], color="black", linewidth=2, label="floor"))
    figure.legend(handles=marks, loc="outside lower center", ncols=3)
    return figure


# The last two have a folder of records each, because its runs may only be compared with each other.
FIGURES = {draw.__name__: draw for draw in (speedup, step, memory, whole, cpu, layouts, peers)}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--records",
        type=Path,
        default=PUBLISHED,
        help="the folder of the records; those of the figures layouts and peers may be in subfolders of these names",
    )
    parser.add_argument("--out", type=options.folder, default=str(ROOT / "assets" / "figures"))
    args = parser.parse_args(argv)
    plt.switch_backend("Agg")  # a script needs no window
    problems = []

    def read(folder: Path) -> list[Record]:
        records = []
        for path in record_files(folder):
            try:
                records.append(read_record(path))
            except ValueError as error:
                problems.append(str(error))
        return in_order(records)

    records, drawn = read(args.records), 0
    for name, draw in FIGURES.items():
        path = args.out / f"{name}.png"
        try:
            if draw in (layouts, peers):
                place = args.records / name
                figure = draw(read(place), place) if place.is_dir() else draw(records, args.records)
            else:
                figure = draw(records)
        except NoRecords as missing:
            print(f"{name} is left out: there are no records of {missing.args[0]}")
            continue
        except (KeyError, ValueError) as error:  # a record names a part or a configuration that is not there
            problems.append(f"{name} is left out: {error}")
            continue
        with written_aside(path) as aside:
            figure.savefig(aside, dpi=110)
        print(path)
        drawn += 1
        plt.close("all")
    if problems or not drawn:
        sys.exit("\n".join(f"error: {problem}" for problem in problems or [f"{args.records} has no records to draw"]))


if __name__ == "__main__":
    run(main)
