"""Pages agree with the records and with the tree: their numbers are measured ones, and their links lead somewhere."""

import itertools
import json
import re
import statistics
from pathlib import Path

import draw_mini
import plan
import plot
import pytest
from helpers import LESSONS, ROOT, TALKS

from kandinsky_mini.bench import compare
from kandinsky_mini.bench.records import PUBLISHED, Record, load_records
from kandinsky_mini.config import CONFIGS, load_config
from kandinsky_mini.parallel.ceilings import load_ceilings
from kandinsky_mini.parallel.cost import predict
from kandinsky_mini.parallel.layout import ParallelLayout

PAGES = [ROOT / "README.md", *(ROOT / "kandinsky_mini").rglob("README.md"), PUBLISHED / "README.md"]
PAGES += (ROOT / "launch").glob("*.md")
CODE = ("kandinsky_mini", "launch", "tests")
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


def read(*parts: str) -> str:
    return ROOT.joinpath(*parts).read_text(encoding="utf-8")


def row_of(record: Record, one: Record) -> str:
    """Return the row of the table of GPUs that a record gives, beside the record of one GPU."""
    cells = [
        f"{record.seconds_of_video} s of video, {record.ranks} GPU{'s' * (record.ranks > 1)}",
        f"{record.step:.3f} ({min(record.slowest()):.3f} to {max(record.slowest()):.3f})",
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
    records = [json.loads(path.read_text(encoding="utf-8"))["errors"] for path in PUBLISHED.glob("precision-*.json")]
    errors = [100 * error for record in records for errors in record.values() for error in errors]
    assert f"differs from one in float32 by {min(errors):.2f} to {max(errors):.2f} %" in page
    split = [(b / a, ranks) for r in records for ranks in r for a, b in zip(r["1"], r[ranks], strict=True)]
    assert f"at most {max(split)[0]:.2f} times as large" in page and {ranks for _, ranks in split} == {"1", "2", "4"}
    both = [
        json.loads((PUBLISHED / f"precision-h200-lite_5s-1s-tp2{kernel}.json").read_text())
        for kernel in ("-flash4", "")
    ]
    bounds = [f"{100 * bound(record['errors']['1']):.2f}" for record in both for bound in (min, max)]
    assert "gives {} to {} % on one GPU, and with cuDNN's kernel {} to {} %".format(*bounds) in page


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
    name = f"`{record.layout}`" if record.engine == "ours" else f"{record.layout} in diffusers"
    cells = [
        f"{record.seconds_of_video} s of video, {record.ranks} GPU{'s' * (record.ranks > 1)}",
        name if record.engine == "ours" or record.ranks > 1 else "diffusers",
        f"{record.step:.3f} ({min(record.slowest()):.3f} to {max(record.slowest()):.3f})",
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


def test_the_benchmark_s_page_has_the_records_of_flash4():
    page = " ".join(read("assets", "benchmarks", "README.md").split())
    records = load_records(PUBLISHED / "flash4")
    names = {"flash4": "flash-attn-4", "cudnn": "cuDNN"}
    for record in records:
        gpus = f"{record.ranks} GPU{'s' * (record.ranks > 1)}"
        times = f"{record.step:.3f} ({min(record.slowest()):.3f} to {max(record.slowest()):.3f})"
        cells = [f"{record.seconds_of_video} s of video, {gpus}", f"`{record.layout}`", names[record.attention], times]
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


def gpu(record: Record) -> str:
    return record.device.split()[1]


def rows_of_libraries(folder: Path) -> list[str]:
    """Return the rows of the table of ours and other libraries that the records of a folder give."""
    rows, ceilings = [], PUBLISHED / "peers"
    for group in compare.by_video_and_ranks(load_records(folder)):
        lowest = compare.floor(group[0], ceilings)
        for record, predicted in zip(group, compare.predicted_steps(group, ceilings), strict=True):
            library = "ours" if record.engine == "ours" else "diffusers" if record.ranks == 1 else "cache-dit"
            cells = [
                f"{record.seconds_of_video} s of video, {record.ranks} {gpu(record)}{'s' * (record.ranks > 1)}",
                f"{library}, `{record.layout}`",
                record.attention,
                f"{record.step:.3f} ({min(record.slowest()):.3f} to {max(record.slowest()):.3f})",
                f"{predicted:.3f}" if library == "ours" else "–",
                f"{100 * (record.step / lowest - 1):.0f} %",
                f"{max(times[0] for times in record.warmup_seconds):.0f} s",
                f"{max(record.peak_bytes) / 1e9:.1f} GB",
            ]
            rows.append(f"| {' | '.join(cells)} |")
    return rows


def by_library(records: list[Record]) -> dict[tuple[int, str, str], Record]:
    """Return the records by video, library and layout. Of several, this is the one on H200s with flash-attn-4."""
    in_order = sorted(records, key=lambda record: (record.attention == "flash4", gpu(record) == "H200"))
    return {(record.seconds_of_video, record.engine, str(record.layout)): record for record in in_order}


def test_the_benchmark_s_page_has_the_records_of_other_libraries():
    page, records = read("assets", "benchmarks", "README.md"), load_records(PUBLISHED / "peers")
    table = page.split("| video and GPUs | library and layout |")[1].split("\n\n")[0]
    assert table.splitlines()[2:] == rows_of_libraries(PUBLISHED / "peers")
    assert {(record.date, record.ranks, gpu(record)) for record in records} == {
        *(("2026-11-28", ranks, "H200") for ranks in (1, 2)),
        *(("2026-11-27", ranks, kind) for ranks, kind in ((1, "H100"), (4, "H200"))),
        ("2026-11-28", 2, "H100"),
    }
    of = by_library(records)
    two_h100s = {
        (record.engine, str(record.layout)): record.step
        for record in records
        if (gpu(record), record.ranks) == ("H100", 2)
    }

    def less(seconds: int, ours: str, other: str) -> str:
        ours, other = of[seconds, "ours", ours], of[seconds, "diffusers", other]
        assert (ours.device, ours.ranks) == (other.device, other.ranks)
        return f"{100 * (1 - ours.step / other.step):.1f} % less"

    quotes = []
    for start, pair in {
        "our step takes": ("tp1", "tp1"),
        "the talk's plan takes": ("tp2", "tp2"),
        "A step of `cfg2-tp1` takes": ("cfg2-tp1", "tp2"),
        "a step of `cfg2-ulysses2` takes": ("cfg2-ulysses2", "ulysses4"),
    }.items():
        quotes += [f"{start} {less(5, *pair)} time", f"and {less(10, *pair)} in 10 s of video"]
    attention = [of[5, *run].breakdown["attention"] for run in (("ours", "cfg2-ulysses2"), ("diffusers", "ulysses4"))]
    quotes.append("attention takes {:.3f} s in place of {:.3f} s".format(*attention))
    quotes.append(
        f"Compared with cache-dit's `tp4` on flash-attn-4, a step takes {less(5, 'cfg2-ulysses2', 'tp4')} time"
    )
    theirs = two_h100s["diffusers", "tp2"]
    shares = [100 * (1 - two_h100s["ours", layout] / theirs) for layout in ("cfg2-tp1", "tp2")]
    quotes.append(
        "On two H100s, `cfg2-tp1` takes {:.1f} % less time, and the talk's plan {:.1f} % less".format(*shares)
    )
    assert [quote for quote in quotes if quote not in " ".join(page.split())] == []


def test_the_benchmark_s_page_has_the_profiles_of_what_keeps_a_step_above_the_floor():
    page, folder = read("assets", "benchmarks", "README.md"), PUBLISHED / "peers"
    of = by_library(load_records(folder))
    rows = []
    for layout in ("tp1", "cfg2-tp1", "ulysses2", "tp2"):
        record, parts = of[5, "ours", layout], ("attention", "linear", "communication", "rest", "idle", "whole")
        cells = [
            f"{record.breakdown[part]:.3f}" if part != "communication" or record.ranks > 1 else "–" for part in parts
        ]
        rows.append(f"| {record.ranks} H200{'s' * (record.ranks > 1)}, `{layout}` | {' | '.join(cells)} |")
    table = page.split("| 5 s of video | attention | linear layers |")[1].split("\n\n")[0]
    assert table.splitlines()[2:] == rows
    config, one = load_config("lite_5s"), of[5, "ours", "tp1"]
    (ceilings,) = (each for each in compare.ceilings_of(one.device, folder) if each.attention_kernel == "flash4")
    alone = predict(config.dit, config.sampling, ParallelLayout(), ceilings, tuple(one.text_tokens)).seconds
    quote = f"The floor has {alone['attention']:.3f} s of attention and {alone['linear']:.3f} s of linear layers"
    assert quote in " ".join(page.split())
    assert alone["attention"] + alone["linear"] == pytest.approx(compare.floor(one, folder))


def test_the_benchmark_s_page_has_the_runs_on_the_other_card_and_on_other_machines():
    page = read("assets", "benchmarks", "README.md").split("### On the other card, and on other machines")[1]
    first, second = (by_library(load_records(PUBLISHED / name)) for name in ("peers", "swapped_h200"))
    less = []
    for key, record in second.items():
        assert f"[{record.step:.3f} s](swapped_h200/{record.name}.json)" in page
        assert (record.date, record.device) == (first[key].date, first[key].device)
    for cards in (first, second):
        less += [
            100 * (1 - cards[length, "ours", "tp1"].step / cards[length, "diffusers", "tp1"].step) for length in (5, 10)
        ]
    assert f"takes between {min(less):.1f} and {max(less):.1f} % less time" in " ".join(page.split())
    table = page.split("| video and GPUs | library and layout |")[1].split("\n\n")[0]
    assert table.splitlines()[2:] == rows_of_libraries(PUBLISHED / "peers_h200")
    assert {(record.date, gpu(record)) for record in load_records(PUBLISHED / "peers_h200")} == {("2026-11-27", "H200")}


def test_the_benchmark_s_page_has_the_records_of_a_machine_that_slowed_down():
    page = " ".join(read("assets", "benchmarks", "README.md").split())
    records = load_records(PUBLISHED / "slowed_h100")
    of = {(record.engine, record.seconds_of_video, str(record.layout)): record for record in records}
    ours, theirs = (of[engine, 10, "tp1"].slowest() for engine in ("ours", "diffusers"))
    quotes = [
        f"went from {ours[0]:.3f} s to {ours[-1]:.3f} s",
        f"stayed between {min(theirs):.3f} s and {max(theirs):.3f} s",
    ]
    for (engine, _, layout), record in of.items():
        if record.ranks > 1:
            name = "ours" if engine == "ours" else "cache-dit"
            low, high = min(record.slowest()), max(record.slowest())
            quotes.append(f"{name}, `{layout}`, {record.step:.3f} s ({low:.3f} to {high:.3f})")
        assert record.date in page
    linked = [record for record in records if record.ranks == 1]
    assert len(linked) == 4 and all(f"slowed_h100/{record.name}.json" in page for record in linked)
    short = of["ours", 5, "tp1"], of["diffusers", 5, "tp1"]
    quotes.append("one GPU took {:.3f} s in ours and {:.3f} s in diffusers".format(*(record.step for record in short)))
    assert [quote for quote in quotes if quote not in page] == []


def sparse_runs() -> list[Record]:
    """Return the records of NABLA, and that of full attention to compare them with."""
    full = by_library(load_records(PUBLISHED / "peers"))[10, "ours", "tp1"]
    return [full, *(record for folder in ("nabla", "nabla_h100") for record in load_records(PUBLISHED / folder))]


def test_the_benchmark_s_page_has_the_records_of_sparse_attention():
    page, records = read("assets", "benchmarks", "README.md"), sparse_runs()
    rows, quotes = [], set()
    for record in records:
        cells = [
            "NABLA, on flex_attention" if record.density else "full, on flash-attn-4",
            f"{record.ranks} {gpu(record)}{'s' * (record.ranks > 1)}, `{record.layout}`",
            record.engine,
            f"{record.density or 1:g}",
            f"{record.step:.3f} ({min(record.slowest()):.3f} to {max(record.slowest()):.3f})",
            f"{max(times[0] for times in record.warmup_seconds):.0f} s",
            f"{max(record.peak_bytes) / 1e9:.1f} GB",
        ]
        rows.append(f"| {' | '.join(cells)} |")
        assert record.date == "2026-11-28" and record.date in page
        quotes |= {f"{kept:.4f}" for kept in record.kept}
    table = page.split("| attention of 10 s of video |")[1].split("\n\n")[0]
    assert sorted(table.splitlines()[2:]) == sorted(rows)
    one = {(r.engine, r.density): r for r in records if r.ranks == 1 and gpu(r) == "H200"}
    steps = {(gpu(r), str(r.layout)): r.step for r in records if r.engine == "ours" and r.density == 0.2}
    times = {run: f"{steps[run[0], 'tp1'] / step:.2f} times" for run, step in steps.items()}
    less = [f"{100 * (1 - one['ours', d].step / one['diffusers', d].step):.1f} % less" for d in (0.2, 0.1)]
    rest = [f"{one[engine, 0.2].breakdown['rest']:.3f} s" for engine in ("ours", "diffusers")]
    quotes |= {
        f"takes {less[0]} time than one of diffusers at density 0.2, and {less[1]} at 0.1",
        f"takes {rest[0]} in place of {rest[1]}",
        f"`cfg2-tp1` is {times['H200', 'cfg2-tp1']} as fast as one GPU, `ulysses2` {times['H200', 'ulysses2']}",
        f"and `tp2` {times['H200', 'tp2']}",
        f"`cfg2-tp1` is {times['H100', 'cfg2-tp1']} as fast as one, and `ulysses2` {times['H100', 'ulysses2']}",
    }
    page = " ".join(page.split())
    assert len(quotes) == 11 and [quote for quote in quotes if quote not in page] == []


def test_pages_have_the_record_of_a_run_in_24_gb():
    (record,) = load_records(PUBLISHED / "offload_h100")
    assert record.offload and "--memory 24 " in record.command and gpu(record) == "H100"
    peak, parts = f"at most {max(record.peak_bytes) / 1e9:.1f} GB", record.parts
    pages = [read("assets", "benchmarks", "README.md"), read("launch", "released_weights.md")]
    assert all(f"offload_h100/{record.name}.json" in page and peak in " ".join(page.split()) for page in pages)
    took = [f"A step takes {record.step:.3f} s", f"the prompt takes {parts['expand']:.1f} s", record.date]
    took.append(f"encoding {parts['text']:.1f} s and decoding {parts['vae']:.1f} s")
    assert [quote for quote in took if quote not in " ".join(pages[0].split())] == []


def whole_runs() -> dict[tuple[int, int], Record]:
    """Return the records of whole runs with flash-attn-4, by video and number of GPUs."""
    return {(record.seconds_of_video, record.gpus): record for record in load_records(PUBLISHED / "whole_h200")}


def test_the_benchmark_s_page_has_the_records_of_whole_runs():
    page, steps = read("assets", "benchmarks", "README.md"), load_config("lite_5s").sampling.num_steps
    records = whole_runs()
    rows = []
    for (length, gpus), record in sorted(records.items()):
        outside = sum(filter(None, record.parts.values()))
        share = outside / (outside + steps * record.step)
        cells = [f"{length} s of video, {gpus} GPU{'s' * (gpus > 1)}, `{record.layout}`"]
        cells += [f"{record.parts[part]:.1f} s" for part in ("expand", "text")]
        cells += [f"{steps * record.step:.1f} s", f"{record.parts['vae']:.1f} s"]
        cells += [f"{saving:.1f} s" if (saving := record.parts["save"]) else "–", f"{100 * share:.0f} %"]
        rows.append(f"| {' | '.join(cells)} | {max(record.peak_bytes) / 1e9:.1f} GB |")
        assert record.date in page
    table = page.split("| whole run | expand the prompt |")[1].split("\n\n")[0]
    assert table.splitlines()[2:] == rows
    faster = [f"{records[length, 1].parts['vae'] / records[length, 2].parts['vae']:.1f} times" for length in (5, 10)]
    shares = []
    for two in (records[5, 2], records[10, 2]):
        others = sum(two.parts[part] or 0.0 for part in ("text", "vae", "save"))
        shares.append(f"{100 * others / (others + steps * two.step):.0f} %")
    compiling = [f"{record.warmup_seconds[0][0]:.0f} s" for _, record in sorted(records.items())]
    (first, second), (_, before) = ([f"{each / 1e9:.1f} GB" for each in records[s, 2].peak_bytes] for s in (10, 5))
    quotes = [
        f"Two ranks decode {faster[0]} as fast as one in 5 s of video, and {faster[1]} in 10 s.",
        f"leaves out, {shares[0]} of the run on two GPUs are outside the steps, and {shares[1]} in 10 s.",
        f"It took {compiling[0]} and {compiling[1]} in 5 s of video, and {compiling[2]} and {compiling[3]} in 10 s.",
        f"rank 0 of two needs {first}, of which",
        f"The other rank, which has none, needs {second}. In 5 s it needed {before}",
    ]
    page = " ".join(page.split())
    assert [quote for quote in quotes if quote not in page] == []
    counts = {len(record.step_seconds[0]) for record in records.values()}
    assert counts == {9, 2} and "the median of 9 in 5 s of video, and of 2 in 10 s" in page


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


def test_the_readme_shows_what_the_ranking_prints(capsys):
    (line,) = re.findall(r"python launch/plan\.py (.*)", read("README.md"))
    plan.main(line.split())
    assert f"```\n{capsys.readouterr().out}```" in read("README.md")


def test_the_readme_quotes_the_records():
    readme = " ".join(read("README.md").split())
    five, ten = (f"{group[0].step / group[-1].step:.2f} times" for group in plot.on_gpus(load_records()))
    assert f"is {five} as fast as on one for a 5-second video, and {ten} as fast for a 10-second video" in readme
    seconds = json.loads(read("assets", "benchmarks", "time_mini.json"))["seconds"]["2 threads"]
    assert f"took {statistics.median(seconds):.0f} seconds on 2 cores" in readme


def test_the_training_s_page_quotes_the_evaluation():
    page = read("kandinsky_mini", "training", "README.md")
    record = json.loads(read("assets", "benchmarks", "evaluate_mini.json"))
    for name in ("rendered", "generated", "unseen phrasings", "shuffled prompts"):
        cells = [f"{100 * share:.0f} %" for share in record["shares"][name].values()]
        assert f" | {' | '.join(cells)} |" in page, name
    assert f"{record['count']} prompts" in page and record["date"] in page


def links(page: Path) -> list[str]:
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    return [link for link in LINK.findall(text) if not link.startswith(("http:", "https:"))]


@pytest.mark.parametrize("page", [*PAGES, *LESSONS, *TALKS], ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files(page):
    assert [link for link in links(page) if not (page.parent / link).exists()] == []


def test_every_figure_is_shown_on_a_page():
    shown = {(page.parent / link).resolve() for page in PAGES for link in links(page)}
    pictures = [*(ROOT / "assets").glob("*.*"), *(ROOT / "assets" / "figures").glob("*.png")]
    assert [path for path in pictures if path not in shown] == []


def test_the_map_has_every_file_of_the_package():
    page = read("kandinsky_mini", "README.md")
    names = {path.name for path in (ROOT / "kandinsky_mini").rglob("*.py") if path.stat().st_size}
    assert [name for name in sorted(names) if f"`{name}`" not in page and f"/{name}`" not in page] == []


def test_recipes_name_what_is_in_the_code():
    names = set(
        re.findall(r"`(?:\w+\.)?(\w*[A-Z_]\w*)`", read("kandinsky_mini", "README.md").split("## Add a layout")[1])
    )
    code = "".join(path.read_text(encoding="utf-8") for part in CODE for path in (ROOT / part).rglob("*.py"))
    assert len(names) > 10 and [name for name in sorted(names) if not re.search(rf"\b{name}\b", code)] == []


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)
def test_the_readme_promises_the_minutes_that_the_lesson_does(lesson):
    first = "".join(json.loads(lesson.read_text(encoding="utf-8"))["cells"][0]["source"])
    minutes = sum(map(int, re.findall(r"\d+", re.search(r"Time: ([^.]*)", first)[1])))
    (row,) = [line for line in read("README.md").splitlines() if f"(notebooks/{lesson.name})" in line]
    assert row.endswith(f"| {minutes} |")


COMMAND = re.compile(r"launch/(\w+)\.py([^`|#\n]*)")


def options_of(script: str) -> set[str]:
    """Return the options that a script of launch/ declares. The sweep passes others on to the benchmark."""
    names = ("sweep", "benchmark") if script == "sweep" else (script,)
    source = "".join(read("launch", f"{name}.py") for name in names)
    return set(re.findall(r'"(--[\w-]+)"', source)) | {"--help"}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "Makefile"], ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_on_pages_have_only_options_that_exist(page):
    """A reader copies them. They also name files that are there."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    for script, rest in COMMAND.findall(text):
        assert (ROOT / "launch" / f"{script}.py").exists(), script
        assert set(re.findall(r"--[\w-]+", rest)) <= options_of(script), f"{script}.py{rest}"
        files = [part for part in rest.split() if part.endswith(".yaml")]
        assert [file for file in files if not (ROOT / file).exists()] == []


def test_each_part_of_the_talk_is_in_lessons_that_exist():
    table = read("README.md").split("| in the talk | in the lessons |")[1].split("\n\n")[0]
    rows = [line.split("|")[1:3] for line in table.splitlines() if line.startswith("| ") and "---" not in line]
    numbers = {path.stem[:2] for path in LESSONS}
    assert len(rows) == 8 and all(set(re.findall(r"\d+", lessons)) <= numbers for _, lessons in rows)


def test_the_curve_of_the_vae_ends_at_the_quality_that_was_measured(monkeypatch, tmp_path):
    drawn = []
    monkeypatch.setattr(draw_mini, "with_mean", lambda axis, x, y: drawn.append(y))
    draw_mini.curves(tmp_path / "training.png")
    log = (ROOT / "assets" / "weights" / "mini" / "training.jsonl").read_text(encoding="utf-8").splitlines()
    measured = [record["psnr_held_out"] for record in map(json.loads, log) if "psnr_held_out" in record]
    assert statistics.mean(drawn[0][-20:]) == pytest.approx(measured[-1], abs=2)


def memory_rows() -> list[str]:
    """Return the table of memory: what the cost model predicts for a rank, and the largest peak in the records."""
    of: dict[tuple[int, str], list[int]] = {}
    for record in itertools.chain.from_iterable(
        load_records(PUBLISHED / f) for f in ("layouts", "peers", "peers_h200")
    ):
        if record.engine == "ours":
            of.setdefault((record.seconds_of_video, str(record.layout)), []).extend(record.peak_bytes)
    rows = []
    for text in ("tp1", "tp2", "cfg2-tp1", "ulysses2", "tp4", "cfg2-ulysses2", "cfg2-tp4", "cfg2-ulysses4"):
        layout, cells = ParallelLayout.parse(text), []
        for config in map(load_config, ("lite_5s", "lite_10s")):
            predicted = predict(config.dit, config.sampling, layout, load_ceilings()).peak_bytes
            measured = of.get((config.sampling.time_length, text))
            cells += [f"{predicted / 1e9:.1f} GB", f"{max(measured) / 1e9:.1f} GB" if measured else "–"]
        rows.append(f"| {layout.ranks} | `{text}` | {' | '.join(cells)} |")
    return rows


def test_the_page_of_the_released_weights_has_the_memory_of_the_records():
    page = read("launch", "released_weights.md")
    table = page.split("| 10 s of video, predicted | measured |")[1].split("\n\n")[0]
    assert table.splitlines()[2:] == memory_rows()
    sparse = [record for record in sparse_runs() if record.density and record.engine == "ours"]
    peaks = {(str(record.layout), f"{max(record.peak_bytes) / 1e9:.1f} GB") for record in sparse}
    assert peaks == {("tp1", "7.2 GB"), ("cfg2-tp1", "7.2 GB"), ("ulysses2", "6.2 GB"), ("tp2", "4.4 GB")}
    quote = "With NABLA, `tp1` and `cfg2-tp1` took 7.2 GB as well, `ulysses2` 6.2 GB and `tp2` 4.4 GB."
    assert quote in " ".join(page.split())
    (whole,) = [record for record in load_records(PUBLISHED) if "whole" in record.name and "lite_10s" in record.name]
    peaks = dict(zip(whole.device_map, whole.peak_bytes, strict=True))
    head = 152_064 * load_config("lite_5s").dit.in_text_dim * 2  # Qwen's vocabulary, in bfloat16
    page = " ".join(page.split())
    assert f"{whole.name}.json) took {peaks['text_embedder'] / 1e9:.1f} GB, without the {head / 1e9:.1f} GB" in page
    assert f"The VAE took at most {peaks['vae'] / 1e9:.1f} GB" in page
    two = whole_runs()[10, 2]
    weights = predict(load_config("lite_5s").dit, load_config("lite_5s").sampling, two.layout, load_ceilings())
    assert f"{two.name}.json) has the CrossDiT and a VAE, and took {two.peak_bytes[1] / 1e9:.1f} GB." in page
    assert f"The weights of the CrossDiT are {weights.weight_bytes / 1e9:.1f} GB of it." in page


def test_the_page_of_the_released_weights_names_every_configuration_and_options_that_exist():
    page = read("launch", "released_weights.md")
    rows = re.findall(r"^\| (`lite_\w+`.*?) \|", page, re.MULTILINE)
    named = [name for row in rows for name in re.findall(r"`(lite_\w+)`", row)]
    assert sorted(named) == sorted(path.stem for path in CONFIGS.glob("lite*.yaml"))
    (talk,) = re.findall(r"```\n(torchrun.*?)```", page, re.DOTALL)
    assert [line.split("--path ")[1] for line in talk.splitlines()] == [f"./test{i}.mp4" for i in (1, 2, 3)]
    options = set(re.findall(r"--[a-z-]+", read("launch", "generate.py"))) | {"--nproc-per-node"}
    assert set(re.findall(r"--[a-z-]+", talk)) <= options
