"""What several ranks gain: speedup and efficiency, Amdahl's law, a whole run in lanes, and latency against bytes.

All drawings take plain seconds, so that records and measurements in a lesson can both be drawn. Curves are black and
grey, because colours are ranks.
"""

import itertools
import statistics
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ...parallel.ledger import size
from .canvas import box, canvas, rank_colour

LINES = (("black", "o-"), ("#777777", "s--"), ("black", "^:"), ("#777777", "D-."))
HATCH = "/////"  # marks what rank 0 does alone
IDEAL = {"color": "#bbbbbb", "linewidth": 1.5, "zorder": 0}


def speedups(seconds: Mapping[str, Mapping[int, Sequence[float]]]) -> Figure:
    """Draw speedup and efficiency over the number of ranks. Bars show the slowest and the fastest measurement.

    Args:
        seconds: for each label and each number of ranks, all times that were measured. One rank must be among them.
    """
    counts = sorted({ranks for times in seconds.values() for ranks in times})
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    left.plot(counts, counts, label="ideal", **IDEAL)
    right.plot(counts, [100] * len(counts), label="ideal", **IDEAL)
    gains = {
        label: {n: statistics.median(times[1]) / statistics.median(times[n]) for n in times}
        for label, times in seconds.items()
    }
    for (label, times), (colour, line) in zip(seconds.items(), itertools.cycle(LINES), strict=False):
        ranks, one = sorted(times), statistics.median(times[1])
        gain = [gains[label][n] for n in ranks]
        spread = [[y - one / max(times[n]) for n, y in zip(ranks, gain, strict=True)],
                  [one / min(times[n]) - y for n, y in zip(ranks, gain, strict=True)]]  # fmt: skip
        left.errorbar(ranks, gain, spread, fmt=line, color=colour, capsize=4, label=label)
        right.plot(ranks, [100 * y / n for n, y in zip(ranks, gain, strict=True)], line, color=colour, label=label)
        for n, y in zip(ranks[1:], gain[1:], strict=True):
            lowest = y == min(others[n] for others in gains.values() if n in others)
            _label(left, f"{y:.2f}", n, y, below=lowest, rising=True)
            _label(right, f"{y / n:.0%}", n, 100 * y / n, below=lowest, rising=False)
    left.set(title="Speedup", xlabel="GPUs", ylabel="times as fast as one", xticks=counts, ylim=0)
    right.set(title="Efficiency", xlabel="GPUs", ylabel="speedup / GPUs, %", xticks=counts, ylim=(0, 110))
    handles = [getattr(handle, "lines", [handle])[0] for handle in left.get_legend_handles_labels()[0]]  # without bars
    left.legend(handles, left.get_legend_handles_labels()[1], loc="lower right")
    for axis in (left, right):
        axis.margins(x=0.15)
    return _finished(figure, left, right)


def amdahl(
    shares: Mapping[str, float], most: int = 32, measured: Mapping[str, Mapping[int, float]] | None = None
) -> Figure:
    """Draw Amdahl's law, 1 / ((1 - s) + s / P), over the number of ranks P, for each label and its split share s.

    Two panels have two scales: a few ranks on the left, up to `most` on the right, where curves flatten. Crosses on the
    left are measured speedups, for each label and each number of ranks.
    """
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    for axis, last in zip(axes, (4, most), strict=True):
        ranks = range(1, last + 1)
        axis.plot(ranks, ranks, label="ideal", **IDEAL)
        for (label, share), (colour, line) in zip(shares.items(), itertools.cycle(LINES), strict=False):
            gain = [1 / ((1 - share) + share / n) for n in ranks]
            style = line if last == 4 else line.lstrip("os^D")
            axis.plot(ranks, gain, style, color=colour, label=f"{label}: {share:.1%} split")
            if last == 4 and (points := (measured or {}).get(label)):
                cross = {"marker": "x", "markersize": 9, "markeredgewidth": 2, "linestyle": "", "clip_on": False}
                axis.plot(list(points), list(points.values()), color=colour, label=f"{label}: measured", **cross)
        axis.set(title=f"up to {last} ranks", xlabel="ranks", ylabel="times as fast as one", xlim=(1, last))
    axes[0].set(xticks=range(1, 5), ylim=(1, 4))
    highest = max(1 / ((1 - share) + share / most) for share in shares.values())
    axes[1].set(ylim=(1, min(most, 1.15 * highest)))
    axes[0].legend(loc="upper left")
    return _finished(figure, *axes)


def whole_run(split: Mapping[int, float], alone: Mapping[str, float], name: str = "CrossDiT") -> Figure:
    """Draw a run as lanes in time, for each number of ranks: the split part on every rank, the rest on rank 0 alone.

    Args:
        split: for each number of ranks the seconds of the split part.
        alone: the seconds of the other parts. The first one comes before the split part, the others after it.
    """
    whole = {ranks: seconds + sum(alone.values()) for ranks, seconds in split.items()}
    scale, left, top = 7.6 / max(whole.values()), 1.9, 0.42 * sum(split) + 0.35 * len(split) + 0.6
    figure, axis = canvas(11.2, top)
    first, *after = alone
    y = top - 0.3
    for ranks, seconds in split.items():
        for rank in range(ranks):
            text = f"{ranks} GPU{'s' * (ranks > 1)}, rank {rank}"
            axis.text(0.1, y, text, va="center", fontsize=11)
            end = 0.0
            for part in (first, name, *after):
                took = seconds if part == name else alone[part]
                if part == name or rank == 0:
                    style = {"gid": part} | ({} if part == name else {"hatch": HATCH})
                    label, colour = (f"{part} {took:.1f} s", rank_colour(rank)) if part == name else ("", "white")
                    box(axis, left + scale * (end + took / 2), y, scale * took, 0.36, label, colour).set(**style)
                end += took
            if rank == 0:
                axis.text(left + scale * end + 0.08, y, f"{whole[ranks]:.1f} s", va="center", fontsize=11)
            y -= 0.42
        y -= 0.35
    rest = f"{first} {alone[first]:.1f} s before the {name}, then "
    rest += ", ".join(f"{part} {alone[part]:.1f} s" for part in after)
    box(axis, 0.3, 0.22, 0.3, 0.24, "", "white").set(hatch=HATCH)
    axis.text(0.55, 0.22, f"not split, on rank 0 alone: {rest}", va="center", fontsize=11)
    return figure


def latency(seconds: Mapping[int, float]) -> Figure:
    """Draw the time of a message over its size in bytes, on logarithmic scales, between its two limits.

    The flat line is the median time of all messages up to 1 KiB. The sloped line has the largest message's bytes in a
    second.
    """
    sizes = sorted(seconds)
    figure, axis = plt.subplots(figsize=(8.5, 4.0), layout="constrained")
    flat = statistics.median(seconds[each] for each in sizes if each <= 1024)
    slope = seconds[sizes[-1]] / sizes[-1]
    axis.plot(sizes, [flat] * len(sizes), color="#999999", linestyle="--", label=f"latency: {1e6 * flat:.0f} µs")
    label = f"bandwidth: {1e-6 / slope:,.0f} MB in a second"
    axis.plot(sizes, [slope * each for each in sizes], color="#999999", linestyle=":", label=label)
    axis.plot(sizes, [seconds[each] for each in sizes], "o-", color="black", label="measured")
    axis.set(xscale="log", yscale="log", xlabel="payload, logarithmic", ylabel="seconds, logarithmic")
    axis.set_ylim(min(seconds.values()) / 2, 2 * max(seconds.values()))
    axis.set_xticks(sizes[::2], [size(each) for each in sizes[::2]])
    axis.minorticks_off()
    axis.legend(loc="upper left")
    return _finished(figure, axis)


def _label(axis: Axes, text: str, x: float, y: float, below: bool, rising: bool) -> None:
    """Write a value beside its point, on the side where a rising or a falling curve leaves room."""
    right = below == rising
    place = {"ha": "left" if right else "right", "va": "top" if below else "bottom"}
    offset = (5 if right else -5, -5 if below else 5)
    back = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
    axis.annotate(text, (x, y), offset, textcoords="offset points", fontsize=10, bbox=back, **place)


def _finished(figure: Figure, *axes: Axes) -> Figure:
    for axis in axes:
        axis.grid(alpha=0.3)
    plt.close(figure)
    return figure
