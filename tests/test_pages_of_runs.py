"""Pages say what the records do: sparse attention, whole runs and memory."""

import itertools

import torch
from helpers import gpu, read, spread

from kandinsky_mini.bench.random_models import random_text_embedder
from kandinsky_mini.bench.records import PUBLISHED, Record, load_records
from kandinsky_mini.config import load_config
from kandinsky_mini.parallel.ceilings import load_ceilings
from kandinsky_mini.parallel.cost import predict
from kandinsky_mini.parallel.layout import ParallelLayout


def sparse_runs() -> list[Record]:
    """Return the records of NABLA, and that of full attention to compare them with."""
    records = [record for folder in ("nabla", "nabla_h100") for record in load_records(PUBLISHED / folder)]
    return sorted(records, key=lambda record: record.density is not None)


def test_the_benchmark_s_page_has_the_records_of_sparse_attention():
    page, (full, *records) = read("assets", "benchmarks", "README.md"), sparse_runs()
    rows, quotes = [], set()
    for record in (full, *records):
        cells = [
            "NABLA, on flex_attention" if record.density else "full, on flash-attn-4",
            f"{record.ranks} {gpu(record)}{'s' * (record.ranks > 1)}, `{record.layout}`",
            record.engine,
            f"{record.density or 1:g}",
            spread(record),
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
    ours, theirs = one["ours", 0.2].breakdown, one["diffusers", 0.2].breakdown
    longer = sum(ours[part] - theirs[part] for part in ("attention", "linear"))
    quotes |= {
        f"takes {less[0]} time than one of diffusers at density 0.2, and {less[1]} at 0.1",
        f"takes {rest[0]} in place of {rest[1]}",
        f"Attention and the linear layers took {longer:.3f} s longer in ours",
        f"`cfg2-tp1` is {times['H200', 'cfg2-tp1']} as fast as one GPU, `ulysses2` {times['H200', 'ulysses2']}",
        f"and `tp2` {times['H200', 'tp2']}",
        f"is {full.step / steps['H200', 'tp1']:.2f} times as fast as with full attention",
        f"`cfg2-tp1` is {times['H100', 'cfg2-tp1']} as fast as one, and `ulysses2` {times['H100', 'ulysses2']}",
    }
    page = " ".join(page.split())
    assert len(quotes) == 13 and [quote for quote in quotes if quote not in page] == []


def test_pages_have_the_record_of_a_run_in_24_gb():
    (record,) = load_records(PUBLISHED / "offload_h100")
    assert record.offload and "--memory 24 " in record.command and gpu(record) == "H100"
    peak, parts = f"at most {max(record.peak_bytes) / 1e9:.1f} GB", record.parts
    pages = [read("assets", "benchmarks", "README.md"), read("launch", "released_weights.md")]
    assert all(f"offload_h100/{record.name}.json" in page and peak in " ".join(page.split()) for page in pages)
    took = [
        f"A step takes {record.step:.3f} s",
        record.date,
        f"Decoding takes {parts['vae']:.1f} s, which includes moving the VAE",
    ]
    took.append(f"the prompt takes {parts['expand']:.1f} s and encoding {parts['text']:.1f} s, which does not include")
    assert [quote for quote in took if quote not in " ".join(pages[0].split())] == []


def whole_runs() -> dict[tuple[int, int], Record]:
    """Return the records of whole runs with flash-attn-4, by video and number of GPUs."""
    return {(record.seconds_of_video, record.gpus): record for record in load_records(PUBLISHED / "whole_h200")}


def test_the_benchmark_s_page_has_the_records_of_whole_runs():
    page, steps = read("assets", "benchmarks", "README.md"), load_config("lite_5s").sampling.num_steps
    records = whole_runs()
    rows, whole = [], {}
    for (length, gpus), record in sorted(records.items()):
        outside = sum(filter(None, record.parts.values()))
        whole[length, gpus] = outside + steps * record.step
        mapped = ", one for each model" * (gpus > record.ranks)
        cells = [f"{length} s of video, {gpus} GPU{'s' * (gpus > 1)}{mapped}, `{record.layout}`"]
        cells += [f"{record.parts[part]:.1f} s" for part in ("expand", "text")]
        cells += [f"{steps * record.step:.1f} s", f"{record.parts['vae']:.1f} s"]
        cells += [f"{saving:.1f} s" if (saving := record.parts["save"]) else "–", f"{whole[length, gpus]:.1f} s"]
        cells.append(f"{100 * outside / whole[length, gpus]:.0f} %")
        rows.append(f"| {' | '.join(cells)} | {record.peak_bytes[0] / 1e9:.1f} GB |")
        assert record.date in page
    table = page.split("| whole run | expand the prompt |")[1].split("\n\n")[0]
    assert table.splitlines()[2:] == rows
    faster = [f"{records[length, 1].parts['vae'] / records[length, 2].parts['vae']:.1f} times" for length in (5, 10)]
    shares = []
    for several in (records[5, 2], records[10, 2], records[10, 4]):
        others = sum(several.parts[part] or 0.0 for part in ("text", "vae", "save"))
        shares.append(f"{100 * others / (others + steps * several.step):.0f} %")
    speedups = [f"{whole[length, 1] / whole[length, 2]:.2f} times" for length in (5, 10)]
    compiling = {key: f"{record.warmup_seconds[0][0]:.0f} s" for key, record in records.items()}
    (first, second), (_, before) = ([f"{each / 1e9:.1f} GB" for each in records[s, 2].peak_bytes] for s in (10, 5))
    *alone, text = [f"{each / 1e9:.1f} GB" for each in records[10, 3].peak_bytes]
    rank_0, *others = [f"{each / 1e9:.1f} GB" for each in records[10, 4].peak_bytes]
    assert len(set(others)) == 1 and [records[10, 3].device_map[part][-1] for part in ("dit", "vae")] == ["0", "1"]
    quotes = [
        f"the run on two GPUs is {speedups[0]} as fast as on one in 5 s of video, and {speedups[1]} in 10 s.",
        "happened to take {:.1f} s on one GPU and {:.1f} s on".format(
            *(records[10, n].parts["expand"] for n in (1, 2))
        ),
        *(f"Two ranks decode {each} as fast as one, in both." for each in faster),
        f"is {shares[0]} of the run on two GPUs in 5 s of video.",
        f"In 10 s it is {shares[1]} on two GPUs, and {shares[2]} on four.",
        f"In 5 s of video, that step took {compiling[5, 1]} on one GPU and {compiling[5, 2]} on two.",
        f"In 10 s, it took {compiling[10, 1]} on one, {compiling[10, 2]} on two, {compiling[10, 3]} on three with",
        f"and {compiling[10, 4]} on four.",
        f"the CrossDiT's GPU needs {alone[0]}, the VAE's {alone[1]} and that of the text encoders {text}.",
        f"On four, rank 0 needs {rank_0}, and each of the others {others[0]}.",
        f"rank 0 of two needs {first}, of which",
        f"The other rank, which has no text encoders, needs {second}.",
        f"In the older run of 5 s, whose VAE did not yet work in parts, that rank needed {before}.",
    ]
    page = " ".join(page.split())
    assert [quote for quote in quotes if quote not in page] == []
    counts = {len(record.step_seconds[0]) for record in records.values()}
    assert counts == {9, 2} and "the median of 9 in 5 s of video, and of 2 in 10 s" in page


def memory_rows() -> list[str]:
    """Return the table of memory: what the cost model predicts for a rank, and the largest peak in the records."""
    of: dict[tuple[int, str], list[int]] = {}
    folders = ("", "layouts", "layouts_h200", "flash4", "peers", "peers_h200", "swapped_h200", "slowed_h100")
    for record in itertools.chain.from_iterable(load_records(PUBLISHED / folder) for folder in folders):
        if record.engine == "ours" and record.gpus and not record.parts:
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


def rows_of_ranks() -> list[str]:
    """Return the table of all models of a rank: weights, and a VAE that decodes, beside the peaks of whole runs."""
    config, (offload,) = load_config("lite_5s"), load_records(PUBLISHED / "offload_h100")
    embedder = random_text_embedder(config, torch.device("meta"))
    text = 2 * sum(p.numel() for p in embedder.writer.parameters())
    text += 4 * sum(p.numel() for p in embedder.text_encoder2.parameters())
    # With the talk's device map, a GPU has one model. Here a rank has all of its models on one GPU.
    runs = [record for (length, gpus), record in whole_runs().items() if length == 10 and gpus == record.ranks]
    measured = {str(record.layout): record.peak_bytes for record in runs}
    rows = []
    for name in ("tp1", "tp2", "cfg2-tp1", "tp4", "cfg2-ulysses2", "cfg2-tp4", "cfg2-ulysses4"):
        layout = ParallelLayout.parse(name)
        dit = predict(config.dit, config.sampling, layout, load_ceilings()).weight_bytes
        peaks = measured.get(name, [])
        cells = []
        for predicted, peak in zip((text, 0), (peaks[:1], peaks[1:]), strict=True):
            cells.append(f"{(predicted + dit + offload.peak_bytes[0]) / 1e9:.1f} GB")
            cells.append(f"{max(peak) / 1e9:.1f} GB" if peak else "–")
        if layout.ranks == 1:
            cells[2] = "–"  # there are no others
        rows.append(f"| {layout.ranks} | `{name}` | {' | '.join(cells)} |")
    return rows


def test_the_page_of_the_released_weights_has_the_memory_of_whole_ranks():
    page = read("launch", "released_weights.md")
    table = page.split("| rank 0, predicted | measured |")[1].split("\n\n")[0]
    assert table.splitlines()[2:] == rows_of_ranks()
    (offload,) = load_records(PUBLISHED / "offload_h100")
    assert f"The VAE takes {offload.peak_bytes[0] / 1e9:.1f} GB, weights included" in " ".join(page.split())
