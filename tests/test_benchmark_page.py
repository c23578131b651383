"""The benchmark's page says what the records do: steps, layouts, kernels and accuracy."""

import itertools
import json
import statistics

import plot
import pytest
from helpers import read, spread

from kandinsky_mini.bench import compare
from kandinsky_mini.bench.records import PUBLISHED, Record, load_records
from kandinsky_mini.config import load_config
from kandinsky_mini.parallel.ceilings import load_ceilings
from kandinsky_mini.parallel.cost import predict
from kandinsky_mini.parallel.layout import ParallelLayout


def row_of(record: Record, one: Record) -> str:
    """Return the row of the table of GPUs that a record gives, beside the record of one GPU."""
    cells = [
        f"{record.seconds_of_video} s of video, {record.ranks} GPU{'s' * (record.ranks > 1)}",
        spread(record),
        f"{one.step / record.step:.2f}" if record.ranks > 1 else "1",
        f"{max(times[0] for times in record.warmup_seconds):.0f} s",
        f"{max(record.peak_bytes) / 1e9:.1f} GB",
        f"{record.wire_bytes / 1e9:.0f} GB" if record.ranks > 1 else "–",
    ]
    return f"| {' | '.join(cells)} |"


def test_the_benchmark_s_page_quotes_the_records():
    page = " ".join(read("assets", "benchmarks", "README.md").split())
    records = load_records()
    quotes = [row_of(record, group[0]) for group in plot.on_gpus(records) for record in group]
    for record in records:
        low, high = (f"{bound(record.slowest()):.3f}" for bound in (min, max)) if any(record.step_seconds) else ("", "")
        if record.engine != "ours":
            quotes += [f"{record.step:.3f} s on {record.ranks} GPU", f"({low} to {high})"]
        if record.capacity:
            quotes.append(f"{record.step:.2f} s with {record.ranks} rank")
        if record.config == "lite_10s":
            quotes += [f"{seconds:.1f} s" for seconds in record.parts.values() if seconds]
    assert len(quotes) > 10 and [quote for quote in quotes if quote not in page] == []


def test_the_benchmark_s_page_quotes_the_profiles_of_a_step():
    page = read("assets", "benchmarks", "README.md")
    group = next(group for group in plot.on_gpus(load_records()) if group[0].seconds_of_video == 5)
    names = {"attention": "attention", "linear": "linear layers", "rest": "norms, residual sums and all else"}
    for part, name in (names | {"idle": "idle", "whole": "the whole step"}).items():
        assert f"| {name} | {' | '.join(f'{record.breakdown[part]:.2f}' for record in group)} |" in page
    waits = " | ".join(f"{record.breakdown['communication']:.2f}" for record in group[1:])
    assert f"| communication, with waiting for other ranks | – | {waits} |" in page


def test_the_benchmark_s_page_quotes_what_differs_from_diffusers():
    page = " ".join(read("assets", "benchmarks", "README.md").split())
    steps = {(r.engine, r.ranks, bool(r.parts)): r.step for r in load_records() if r.config == "lite_5s" and r.gpus}
    less = [1 - steps["diffusers", ranks, False] / steps["ours", ranks, False] for ranks in (1, 2, 4)]
    assert f"These times are {100 * min(less):.1f} to {100 * max(less):.1f} % below ours" in page
    later = steps["ours", 1, True]
    assert f"{later:.3f} s on 1 GPU, which is {100 * (1 - later / steps['ours', 1, False]):.1f} % less" in page


def test_the_benchmark_s_page_quotes_the_accuracy():
    page = " ".join(read("assets", "benchmarks", "README.md").split())
    records = {path.stem: json.loads(path.read_text())["errors"] for path in PUBLISHED.glob("precision-*.json")}
    alone = [100 * error for errors in records.values() for error in errors["1"]]
    every = [100 * error for each in records.values() for errors in each.values() for error in errors]
    split = [(b / a, n) for each in records.values() for n in each for a, b in zip(each["1"], each[n], strict=True)]
    assert {ranks for _, ranks in split} == {"1", "2", "4"}
    kernels = [records[f"precision-h200-lite_5s-1s-tp2{kernel}"]["1"] for kernel in ("", "-flash4")]
    assert len({f"{100 * statistics.mean(errors):.3f}" for errors in kernels}) == 1
    quotes = [
        f"differs from one in float32 by {min(alone):.2f} to {max(alone):.2f} %",
        f"it is {100 * statistics.mean(kernels[0]):.3f} % with cuDNN's kernel, and the same with flash-attn-4",
        f"at most {max(every):.2f} %, which is at most {max(split)[0]:.2f} times the difference on one GPU",
    ]
    assert [quote for quote in quotes if quote not in page] == []


@pytest.fixture(scope="module")
def layouts() -> list[tuple[Record, float | None]]:
    """Return the records of the layouts, each with the step that the cost model predicts, if it is our model."""
    folder = PUBLISHED / "layouts"
    records = load_records(folder)
    assert {record.device for record in records} == {load_ceilings(folder=folder).device}
    found = {record.name: None for record in records}
    for group in compare.by_workload(records):
        found |= zip([record.name for record in group], compare.predicted_steps(group, folder), strict=True)
    return [(record, found[record.name]) for record in records]


def row_of_layout(record: Record, predicted: float | None, one: Record) -> str:
    """Return the row of the table of layouts that a record gives, beside the record of the same library on one GPU."""
    name = f"`{record.layout}`" if record.engine == "ours" else f"cache-dit, `{record.layout}`"
    cells = [
        f"{record.seconds_of_video} s of video, {record.ranks} GPU{'s' * (record.ranks > 1)}",
        name if record.engine == "ours" or record.ranks > 1 else "diffusers",
        spread(record),
        f"{one.step / record.step:.2f}" if record.ranks > 1 else "1",
        f"{predicted:.3f}" if predicted else "–",
        f"{max(record.peak_bytes) / 1e9:.1f} GB",
        f"{record.wire_bytes / 1e9:.1f} GB" if record.ranks > 1 else "–",
    ]
    return f"| {' | '.join(cells)} |"


def test_the_benchmark_s_page_has_every_layout(layouts):
    page = read("assets", "benchmarks", "README.md")
    alone = {record.workload: record for record, _ in layouts if record.ranks == 1}
    rows = [row_of_layout(record, predicted, alone[record.workload]) for record, predicted in layouts]
    table = page.split("| speedup | predicted |")[1].split("\n\n")[0]
    assert sorted(table.splitlines()[2:]) == sorted(rows)
    assert all(record.date in page and record.interconnect in ("NV18", "none") for record, _ in layouts)


def test_the_benchmark_s_page_says_how_wrong_the_predictions_are(layouts):
    page = " ".join(read("assets", "benchmarks", "README.md").split())
    ours = [(record, predicted) for record, predicted in layouts if predicted]
    errors = {100 * (predicted / record.step - 1): record for record, predicted in ours}
    (low, below), (high, above) = min(errors.items()), max(errors.items())
    places = [f"(`{record.layout}`, {record.seconds_of_video} s of video)" for record in (below, above)]
    assert (
        f"at most {-low:.1f} % below the measured step {places[0]} and at most {high:.1f} % above it {places[1]}"
        in page
    )
    assert f"too low for {sum(error < 0 for error in errors)} of the {len(errors)} records" in page
    # They put layouts in the measured order, unless these are closer than 1 %.
    pairs = itertools.combinations(ours, 2)
    alike = [(a, b) for a, b in pairs if a[0].workload == b[0].workload and a[0].ranks == b[0].ranks]
    wrong = [(a, b) for a, b in alike if (a[0].step < b[0].step) != (a[1] < b[1])]
    assert len(alike) > 20 and all(abs(a.step / b.step - 1) < 0.01 for (a, _), (b, _) in wrong)


def test_the_benchmark_s_page_has_the_records_of_split_queries():
    page, folder = read("assets", "benchmarks", "README.md"), PUBLISHED / "layouts_h200"
    ceilings = load_ceilings(PUBLISHED / "layouts" / "ceilings-h200.json")

    def predicted(record: Record) -> float:
        config = load_config(record.config)
        return predict(config.dit, config.sampling, record.layout, ceilings, tuple(record.text_tokens)).step

    records = {str(record.layout): record for record in load_records(folder)}
    table = page.split("| layout, 5 s of video |")[1].split("\n\n")[0].splitlines()[2:]
    assert len(table) == len(records)
    for record in records.values():
        video, name, *cells = row_of_layout(record, predicted(record), records["tp1"]).strip("| ").split(" | ")
        assert f"| {video.removeprefix('5 s of video, ')}, {name} | {' | '.join(cells)} |" in table
        assert record.date in page and record.device == ceilings.device
    slower = records["ulysses2x2"].step / records["ulysses4"].step - 1
    assert f"takes {100 * slower:.1f} % longer than one of `ulysses4`" in page
    on_h200 = [record for record in [*records.values(), *load_records(PUBLISHED)] if record.engine == "ours"]
    on_h200 = [record for record in on_h200 if record.gpus and not record.parts]
    below = [100 * (1 - predicted(record) / record.step) for record in on_h200]
    assert f"the prediction is {min(below):.1f} to {max(below):.1f} % below the measured step" in page
    assert f"the prediction's error, which was [up to {max(below):.1f} %](" in " ".join(read("README.md").split())


def test_the_benchmark_s_page_has_the_records_of_flash4():
    page = " ".join(read("assets", "benchmarks", "README.md").split())
    records = load_records(PUBLISHED / "flash4")
    names = {"flash4": "flash-attn-4", "cudnn": "cuDNN"}
    for record in records:
        gpus = f"{record.ranks} GPU{'s' * (record.ranks > 1)}"
        cells = [
            f"{record.seconds_of_video} s of video, {gpus}",
            f"`{record.layout}`",
            names[record.attention],
            spread(record),
        ]
        assert f"| {' | '.join(cells)} | {max(record.peak_bytes) / 1e9:.1f} GB |" in page
        assert record.date in page and record.device.removeprefix("NVIDIA ") in page
    table = page.split("| video and GPUs | layout | kernel |")[1].split("| On one GPU")[0]
    assert page.count("| flash-attn-4 | ") + table.count(" cuDNN | ") == len(records)
    ours = {record.attention: record for record in records if record.seconds_of_video == 5 and record.ranks == 1}
    flash4, cudnn = ours["flash4"], ours["cudnn"]
    assert f"takes {100 * (1 - flash4.step / cudnn.step):.1f} % less time. In the profile" in page
    pairs = [(flash4.breakdown["attention"], cudnn.breakdown["attention"], 3)]
    pairs.append((flash4.warmup_seconds[0][0], cudnn.warmup_seconds[0][0], 0))
    for new, old, digits in pairs:
        assert f"takes {new:.{digits}f} s in place of {old:.{digits}f} s" in page


def test_the_benchmark_s_page_compares_the_layouts_as_the_records_do(layouts):
    page = " ".join(read("assets", "benchmarks", "README.md").split())
    of = {(record.seconds_of_video, str(record.layout)): record for record, predicted in layouts if predicted}

    def less(seconds: int, slow: str, fast: str) -> str:
        return f"{100 * (1 - of[seconds, fast].step / of[seconds, slow].step):.1f} %"

    one, config = of[5, "tp1"], load_config("lite_5s")
    ulysses, tp = of[5, "ulysses4"].breakdown, of[5, "tp4"].breakdown
    ceilings = load_ceilings(folder=PUBLISHED / "layouts")
    predicted = predict(config.dit, config.sampling, ParallelLayout(), ceilings).seconds
    quotes = [
        f"takes {less(5, 'tp2', 'ulysses2')} less time on 2 GPUs and {less(5, 'tp4', 'ulysses4')} less on 4",
        f"takes {less(5, 'ulysses4', 'cfg2-ulysses2')} less time than one of `ulysses4` in 5 s of video",
        f"and {less(10, 'ulysses4', 'cfg2-ulysses2')} less in 10 s",
        *(f"{ulysses[part]:.3f} s in place of {tp[part]:.3f} s" for part in ("communication", "linear")),
        f"{of[5, 'tp_sp4'].breakdown['rest']:.3f} s in place of {of[5, 'tp4'].breakdown['rest']:.3f} s",
        f"`cfg2-tp1` sends {of[5, 'cfg2-tp1'].wire_bytes / 1e6:.0f} MB in a step",
        f"`ulysses2`, the GPU is idle for {of[5, 'ulysses2'].breakdown['idle']:.3f} s",
        f"has {one.breakdown['attention']:.3f} s of attention, where {predicted['attention']:.3f} s are predicted",
        f"{one.breakdown['linear']:.3f} s in the profile and {predicted['linear']:.3f} s predicted",
    ]
    assert [quote for quote in quotes if quote not in page] == []
    on_four = {key: record for key, record in of.items() if record.ranks == 4}
    assert min(on_four.values(), key=lambda record: max(record.peak_bytes)) is of[5, "tp_sp4"]
    for seconds in (5, 10):
        fastest = min((r for (length, _), r in on_four.items() if length == seconds), key=lambda record: record.step)
        assert str(fastest.layout) == "cfg2-ulysses2"
