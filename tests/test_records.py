"""No record overwrites another, only like runs are compared, and figures and pages say what the records say."""

import dataclasses
import json

import matplotlib.pyplot as plt
import plot
import pytest
import sweep
from figure_checks import assert_text_is_readable
from helpers import ROOT

from kandinsky_mini.bench import compare, records
from kandinsky_mini.bench.records import PUBLISHED, Record, in_order, load_records
from kandinsky_mini.config import load_config
from kandinsky_mini.parallel.ceilings import load_ceilings
from kandinsky_mini.parallel.cost import predict
from kandinsky_mini.parallel.layout import ParallelLayout


@pytest.fixture(autouse=True)
def no_figure_stays_open():
    yield
    plt.close("all")


def lite(seconds: int, gpus: int, step: float, **others) -> Record:
    return Record(
        command="",
        config=f"lite_{seconds}s",
        device="a GPU",
        gpus=gpus,
        interconnect="",
        layout=ParallelLayout("tp", gpus),
        seconds_of_video=seconds,
        guided=True,
        compiled=True,
        attention="cudnn",
        step_seconds=[[step, 1.1 * step, step]] * gpus,
        warmup_seconds=[[9.0]] * gpus,
        peak_bytes=[2**30] * gpus,
        **others,
    )


DIFFERENCES = [
    *({"seconds_of_video": 10}, {"guided": False}, {"compiled": False}, {"attention": "flash4"}, {"device": "other"}),
    *(
        {"engine": "diffusers"},
        {"plan": "minimal"},
        {"config": "mini"},
        {"text_tokens": [64, 64]},
        {"parts": {"text": 1.0}},
        {"sparse": True},
    ),
    *({"layout": ParallelLayout("tp", 4)}, {"layout": ParallelLayout("ulysses", 2)}),
    *({"layout": ParallelLayout("tp", 1, cfg=2)}, {"gpus": 0}, {"gpus": 0, "threads": 2}),
]


@pytest.mark.parametrize("difference", DIFFERENCES, ids=str)
def test_runs_that_differ_have_files_of_their_own(difference, tmp_path):
    record = lite(5, 2, 1.0, text_tokens=[200, 60])
    other = dataclasses.replace(record, **difference)
    record.save(tmp_path)
    other.save(tmp_path)
    assert len(load_records(tmp_path)) == 2
    assert record in load_records(tmp_path) and other in load_records(tmp_path)


def test_a_run_that_is_repeated_replaces_its_record(tmp_path):
    lite(5, 2, 1.0).save(tmp_path)
    lite(5, 2, 0.9).save(tmp_path)
    (record,) = load_records(tmp_path)
    assert record.step == 0.9


@pytest.mark.parametrize("folder", [PUBLISHED, PUBLISHED / "layouts"], ids=lambda path: path.name)
def test_published_records_have_the_name_of_their_run(folder):
    names = {path.stem for path in folder.glob("speed-*.json")}
    assert {record.name for record in load_records(folder)} == names != set()


def test_a_record_of_another_schema_is_an_error(tmp_path):
    path = tmp_path / "speed-old.json"
    path.write_text(json.dumps({"schema": 0}))
    with pytest.raises(ValueError, match="speed-old.json is no record of schema 2"):
        load_records(tmp_path)
    path.write_text("{")
    with pytest.raises(ValueError, match="speed-old.json is not JSON"):
        load_records(tmp_path)
    path.write_text(json.dumps({"schema": 2, "layout": {}, "colour": "red"}))
    with pytest.raises(ValueError, match="speed-old.json.*colour"):
        load_records(tmp_path)


def test_figures_show_what_the_records_say(tmp_path):
    for gpus in (1, 2, 4):
        lite(5, gpus, 2.0 / gpus, breakdown={"attention": 1.5 / gpus, "rest": 0.5 / gpus}).save(tmp_path)
    lite(5, 1, 2.0, parts={"text": 1.0, "vae": 4.0, "save": None}).save(tmp_path)
    dataclasses.replace(lite(5, 1, 0.0, parts={"save": 5.0}), gpus=0, step_seconds=[[]]).save(tmp_path)
    records = load_records(tmp_path)
    left, right = plot.speedup(records).axes
    assert [text.get_text() for text in left.texts] == ["2.00x", "4.00x"]
    (axis,) = plot.whole(records).axes
    # A whole run has 50 steps, and takes 10 seconds for everything else.
    assert [text.get_text() for text in axis.texts[:3]] == ["110", "60", "35"]
    assert axis.texts[-1].get_text() == f"{110 / 35:.2f}x\n(a step 4.00x)"


def test_a_whole_run_is_drawn_with_the_parts_of_its_own_length():
    """A model for 5 seconds can make 10, as the talk does. Decoding takes longer then."""
    steps = [lite(5, gpus, 2.0 / gpus) for gpus in (1, 2)]
    longer = [dataclasses.replace(record, seconds_of_video=10) for record in steps]
    runs = [lite(5, 1, 2.0, parts={"vae": 4.0, "save": 1.0})]
    runs.append(dataclasses.replace(runs[0], seconds_of_video=10, parts={"vae": 8.0, "save": 2.0}))
    axes = plot.whole([*steps, *longer, *runs]).axes
    assert [axis.texts[0].get_text() for axis in axes] == ["105", "110"]


def test_a_whole_run_is_drawn_with_the_parts_of_one_rank_that_has_all_models():
    """Two ranks share the decoding, and with offload a part includes moving its model."""
    steps = [lite(5, gpus, 2.0 / gpus) for gpus in (1, 2)]
    one = lite(5, 1, 2.0, parts={"vae": 4.0, "save": 1.0})
    two = lite(5, 2, 1.0, parts={"vae": 2.0, "save": 1.0})
    moved = dataclasses.replace(one, parts={"vae": 9.0, "save": 1.0}, offload=True)
    (axis,) = plot.whole([*steps, one, moved, two]).axes
    assert axis.texts[0].get_text() == "105"
    assert [text.get_text() for text in axis.get_legend().texts] == ["save", "vae", "CrossDiT"]


def test_figures_have_room_for_eight_gpus():
    """These records are made up: nobody has measured our layouts on so many."""
    device = load_ceilings().device
    made = {"device": device, "text_tokens": [200, 60], "interconnect": "NV18"}
    several = "tp2 ulysses2 cfg2-tp1 tp4 ulysses4 cfg2-tp2 cfg2-ulysses2 ulysses4x2 cfg2-tp4 cfg2-ulysses4".split()
    steps = {text: 3.0 / ParallelLayout.parse(text).ranks for text in ("tp1", *several)}
    parts = {"attention": 1.2, "linear": 0.4, "communication": 0.2, "rest": 0.1, "idle": 0.1}
    ours = [of_layout(text, step, breakdown=parts, **made) for text, step in steps.items()]
    ours.append(of_layout("tp8", 0.5, breakdown=parts, **made))
    theirs = [dataclasses.replace(of_layout(f"ulysses{n}", 3.5 / n, **made), engine="diffusers") for n in (2, 4, 8)]
    whole = of_layout("tp1", 3.0, parts={"text": 1.0, "vae": 4.0, "save": 1.0}, **made)
    records = in_order([*ours, *theirs, whole])
    for name in ("speedup", "step", "memory", "whole", "layouts", "peers"):
        figure = plot.FIGURES[name](records)
        assert_text_is_readable(figure)
        if name in ("step", "memory", "whole"):
            (axis,) = figure.axes
            assert [label.get_text() for label in axis.get_xticklabels()] == ["1", "2", "4", "8"]
    left, _ = plot.speedup(records).axes
    assert list(left.get_xticks()) == [1, 2, 4, 8]
    (axis,) = plot.layouts(records).axes
    legend = axis.get_legend()
    assert [text.get_text() for text in legend.texts] == ["1 GPU", "2 GPUs", "4 GPUs", "8 GPUs", "predicted"]
    assert len({patch.get_facecolor() for patch in legend.get_patches()}) == 4
    assert [axis.get_title() for axis in plot.peers(records).axes][-1].endswith(", 8 GPUs")


def bars(axis) -> list[float]:
    return [bar.get_height() for bar in axis.patches]


def test_the_figure_of_the_memory_shows_the_rank_that_needs_most():
    """A GPU that is too small for one rank is too small for the run."""
    one, two = lite(5, 1, 2.0), dataclasses.replace(lite(5, 2, 1.0), peak_bytes=[3 * 10**9, 5 * 10**9])
    (axis,) = plot.memory([one, two]).axes
    assert bars(axis) == pytest.approx([2**30 / 1e9, 5.0])


def test_efficiency_is_the_speedup_over_the_gpus():
    """The bars of the speedup reach from the slowest step to the fastest one."""
    left, right = plot.speedup([lite(5, 1, 2.0), lite(5, 2, 1.6)]).axes
    (efficiency,) = [line for line in right.lines if line.get_label().startswith("lite")]
    assert list(efficiency.get_ydata()) == pytest.approx([100.0, 62.5])
    _, _, (spread,) = left.containers[0].lines
    (_, low), (_, high) = spread.get_segments()[1]
    assert (low, high) == pytest.approx((2.0 / 1.76, 2.0 / 1.6))


def of_layout(text: str, step: float, **others) -> Record:
    layout = ParallelLayout.parse(text)
    return dataclasses.replace(lite(5, layout.ranks, step), layout=layout, plan=layout.plan, **others)


def test_a_cpu_s_ideal_is_what_the_machine_can_do_at_once():
    """Its capacity was measured, and is less than its cores. Of the weights, the rank with most of them counts."""
    parts = {"gpus": 0, "capacity": 1.6, "wire_bytes": 1.0}
    records = [of_layout("tp1", 4.0, **parts, weight_bytes=[8 * 10**6])]
    records += [of_layout("tp2", 3.0, **parts, weight_bytes=[4 * 10**6, 5 * 10**6])]
    steps, weights, _ = plot.cpu(in_order(records)).axes
    (ideal,) = [line for line in steps.lines if line.get_label().startswith("ideal")]
    assert list(ideal.get_ydata()) == pytest.approx([2.5, 2.5])
    assert bars(weights) == pytest.approx([8.0, 5.0])


def test_layouts_are_compared_within_a_workload():
    """By number of GPUs, then by time. Other libraries, CPUs and workloads with one layout are not drawn."""
    fast, slow, one = of_layout("ulysses4", 0.5), of_layout("tp4", 0.8), of_layout("tp1", 2.0)
    others = [dataclasses.replace(record, engine="diffusers") for record in (fast, slow, one)]
    others += [dataclasses.replace(record, gpus=0) for record in (fast, slow, one)]
    others += [dataclasses.replace(record, seconds_of_video=10) for record in (one, slow)]
    assert compare.by_workload([fast, *others, slow, one]) == [[one, slow, fast]]
    (axis,) = plot.layouts([fast, *others, slow, one]).axes
    assert [text.get_text() for text in axis.texts] == ["2.000 s", "0.800 s, 2.50x", "0.500 s, 4.00x"]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["tp1", "tp4", "ulysses4"]
    assert [text.get_text() for text in axis.get_legend().texts] == ["1 GPU", "4 GPUs"]  # "a GPU" has no ceilings
    with pytest.raises(compare.NoRecords, match="several layouts on the same number of GPUs"):
        compare.by_workload([one, slow, *others])


def test_other_libraries_are_compared_on_the_same_number_of_gpus(tmp_path):
    """The slowest comes first. The floor is what one GPU's attention and linear layers take, shared out evenly."""
    ours = of_layout("tp2", 0.8, text_tokens=[200, 60])
    others = dataclasses.replace(ours, engine="diffusers", step_seconds=[[1.0], [1.0]])
    unlike = ({"seconds_of_video": 10}, {"text_tokens": [7, 5]}, {"compiled": False})
    alone = [of_layout("tp1", 2.0), *(dataclasses.replace(ours, **change) for change in unlike)]
    assert compare.by_video_and_ranks([*alone, ours, others]) == [[others, ours]]
    (axis,) = plot.peers([*alone, ours, others], tmp_path).axes
    assert [text.get_text() for text in axis.texts] == ["1.000 s", "0.800 s"]  # "a GPU" has no ceilings
    assert [label.get_text() for label in axis.get_yticklabels()] == ["cache-dit, tp2, cudnn", "ours, tp2, cudnn"]
    one_gpu = [of_layout("tp1", 2.0), dataclasses.replace(of_layout("tp1", 2.5), engine="diffusers")]
    (axis,) = plot.peers(one_gpu, tmp_path).axes  # cache-dit has nothing to split there
    assert [label.get_text() for label in axis.get_yticklabels()] == ["diffusers, tp1, cudnn", "ours, tp1, cudnn"]
    with pytest.raises(compare.NoRecords, match="several libraries on the same number of GPUs"):
        compare.by_video_and_ranks([*alone, ours])
    for kernel, faster in (("cudnn", 1.0), ("flash4", 0.5)):
        record = json.loads(next((PUBLISHED / "layouts").glob("ceilings-*.json")).read_text(encoding="utf-8"))
        for each in record["attention"]:
            each["seconds"] = [faster * seconds for seconds in each["seconds"]]
        changed = record | {"device": "a GPU", "attention_kernel": kernel}
        (tmp_path / f"ceilings-{kernel}.json").write_text(json.dumps(changed))
    config, ceilings = load_config("lite_5s"), load_ceilings(tmp_path / "ceilings-flash4.json")
    seconds = predict(config.dit, config.sampling, ParallelLayout(), ceilings, (200, 60)).seconds
    assert compare.floor(ours, tmp_path) == pytest.approx((seconds["attention"] + seconds["linear"]) / 2)
    times = [[1.5 * compare.floor(ours, tmp_path)]] * 2
    (axis,) = plot.peers([dataclasses.replace(each, step_seconds=times) for each in (ours, others)], tmp_path).axes
    assert all(text.get_text().endswith(" s, 50 % above the floor") for text in axis.texts) and len(axis.texts) == 2
    assert compare.predicted_steps([dataclasses.replace(ours, attention="sdpa")], tmp_path) == [None]
    assert compare.predicted_steps([dataclasses.replace(ours, layout=ParallelLayout())], tmp_path) != [None]
    sparse = dataclasses.replace(ours, layout=ParallelLayout(), density=0.2)
    assert compare.predicted_steps([sparse], tmp_path) == [None] and compare.floor(sparse, tmp_path) is None


def test_own_ceilings_count_before_those_that_are_published(tmp_path):
    """Of the same kind of GPU, they are from the machine whose records are drawn."""
    record = json.loads(next((PUBLISHED / "layouts").glob("ceilings-h100*.json")).read_text(encoding="utf-8"))
    (tmp_path / "ceilings-own.json").write_text(json.dumps(record | {"memory_bytes": 1}))
    kernels = {each.attention_kernel: each.memory_bytes for each in compare.ceilings_of(record["device"], tmp_path)}
    assert kernels[record["attention_kernel"]] == 1


def test_layouts_have_predictions_where_the_gpu_is_known(tmp_path):
    record = json.loads(next((PUBLISHED / "layouts").glob("ceilings-*.json")).read_text(encoding="utf-8"))
    group = [of_layout(text, 1.0, text_tokens=[200, 60]) for text in ("tp4", "ulysses4")]
    assert compare.predicted_steps(group, tmp_path) == [None, None]
    path = tmp_path / "ceilings-a_gpu.json"
    path.write_text(json.dumps(record | {"device": "a GPU", "collectives": []}))
    assert compare.predicted_steps(group, tmp_path) == [None, None]
    alone, *several = compare.predicted_steps([of_layout("tp1", 1.0, text_tokens=[200, 60]), *group], tmp_path)
    assert alone > 1 and several == [None, None]  # one GPU needs no collectives
    path.write_text(json.dumps(record | {"device": "a GPU"}))
    slow, fast = compare.predicted_steps(group, tmp_path)
    assert 0.1 < fast < slow < 10
    unguided = [dataclasses.replace(record, guided=False, text_tokens=[200]) for record in group]
    assert compare.predicted_steps(unguided, tmp_path) == pytest.approx([slow / 2, fast / 2], rel=0.05)
    longer = [dataclasses.replace(record, seconds_of_video=10) for record in group]
    assert min(compare.predicted_steps(longer, tmp_path)) > 2 * slow
    (axis,) = plot.layouts(group, tmp_path).axes
    assert axis.get_legend().texts[-1].get_text() == "predicted"
    for change in ({"compiled": False}, {"config": "unknown"}):
        changed = [dataclasses.replace(record, **change) for record in group]
        assert compare.predicted_steps(changed, tmp_path) == [None, None]


def test_layouts_come_from_a_subfolder_if_there_is_one(tmp_path, capsys):
    for record in (of_layout("tp2", 1.0), of_layout("ulysses2", 0.9)):
        record.save(tmp_path)
    plot.main(["--records", str(tmp_path), "--out", str(tmp_path / "figures")])
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["layouts.png"]
    assert "cpu is left out" in capsys.readouterr().out
    (tmp_path / "layouts").mkdir()
    of_layout("tp2", 1.0).save(tmp_path / "layouts")
    with pytest.raises(SystemExit, match="has no records to draw"):
        plot.main(["--records", str(tmp_path), "--out", str(tmp_path / "others")])


def test_a_cpu_s_figure_shows_the_layout_that_has_one_rank():
    """Other layouts on a CPU have no run on one rank to compare with, and some of them come first in the order."""
    parts = {"gpus": 0, "capacity": 2.0, "weight_bytes": [1], "wire_bytes": 1.0}
    records = [of_layout(text, 1.0, **parts) for text in ("tp1", "tp2", "cfg2-tp1", "ulysses2")]
    axis, *_ = plot.cpu(in_order(records)).axes
    assert [label.get_text() for label in axis.get_xticklabels()] == ["1 x 1", "2 x 1"]


def test_only_what_is_alike_is_compared():
    h100 = [lite(5, gpus, 2.0 / gpus) for gpus in (1, 2)]
    others = [dataclasses.replace(record, device="another GPU") for record in h100]
    eager = [dataclasses.replace(lite(5, 4, 0.5), compiled=False)]  # there is no run on one GPU to compare it with
    groups = plot.on_gpus(sorted([*h100, *others, *eager], key=lambda record: (record.series, record.ranks)))
    assert [[record.ranks for record in group] for group in groups] == [[1, 2], [1, 2]]
    assert groups[0][0].device != groups[1][0].device
    (line,) = [line for line in sweep.table([*h100, *eager]).splitlines() if line.split()[2] == "tp4"]
    assert line.split()[5] == "-"


def test_a_speedup_is_one_over_a_single_gpu():
    """A series that begins with two GPUs has none."""
    several = [lite(10, gpus, 2.0 / gpus) for gpus in (2, 4)]
    with pytest.raises(plot.NoRecords, match="a configuration on one GPU and on several"):
        plot.on_gpus(several)
    known = [lite(5, gpus, 2.0 / gpus) for gpus in (1, 2)]
    assert plot.on_gpus(in_order([*several, *known])) == [known]


def test_a_figure_without_records_is_left_out_and_says_so(tmp_path, capsys):
    with pytest.raises(SystemExit, match="has no records to draw"):
        plot.main(["--records", str(tmp_path), "--out", str(tmp_path)])
    assert list(tmp_path.glob("*.png")) == []
    assert capsys.readouterr().out.count("is left out: there are no records of ") == len(plot.FIGURES)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="there is no folder .*typo: name the folder that launch/sweep.py wrote to"):
        plot.main(["--records", str(tmp_path / "typo"), "--out", str(tmp_path)])
    assert list(tmp_path.iterdir()) == []


FOREIGN = {
    "schema": {"schema": 0},
    "list": [1],
    "text": {"step_seconds": ["abc"]},
    "infinite": {"breakdown": {"rest": float("inf")}},
    "ranks": {"step_seconds": [[1.0, 1.0], [1.0]]},
    "memory": {"peak_bytes": ["many"]},
}


@pytest.mark.parametrize("content", ["folder", "bytes", *FOREIGN])
def test_a_foreign_file_among_records_is_named_and_the_others_are_drawn(tmp_path, capsys, content):
    for gpus in (1, 2):
        lite(5, gpus, 2.0 / gpus, breakdown={"attention": 1.0, "rest": 1.0}).save(tmp_path)
    path = tmp_path / "speed-foreign.json"
    if content == "folder":
        path.mkdir()
    elif content == "bytes":
        path.write_bytes(b"\xff\xfe")
    else:
        (good,) = tmp_path.glob("*-tp1.json")
        foreign = FOREIGN[content]
        if isinstance(foreign, dict):
            foreign = json.loads(good.read_text()) | foreign
        path.write_text(json.dumps(foreign))
    with pytest.raises(SystemExit, match="^error: .*speed-foreign.json is no"):
        plot.main(["--records", str(tmp_path), "--out", str(tmp_path / "figures")])
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"speedup.png", "step.png", "memory.png"}


def test_a_record_without_a_part_costs_its_own_figure_only(tmp_path, capsys):
    for gpus in (1, 2):
        lite(5, gpus, 2.0 / gpus, breakdown={"attention": 1.0, "rest": 1.0}).save(tmp_path)
    lite(5, 1, 2.0, parts={"text": 1.0}).save(tmp_path)
    with pytest.raises(SystemExit, match="^error: whole is left out: 'save'"):
        plot.main(["--records", str(tmp_path), "--out", str(tmp_path / "figures")])
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"speedup.png", "step.png", "memory.png"}


def test_figures_of_the_committed_records_are_drawn_anew(tmp_path, capsys):
    plot.main(["--out", str(tmp_path)])
    committed = {path.name for path in (ROOT / "assets" / "figures").glob("*.png")}
    assert {path.name for path in tmp_path.glob("*.png")} == committed != set()


def test_a_step_lasts_until_its_slowest_rank_is_done():
    """The ranks wait for each other in every block, so no step is done before all of them are."""
    record = dataclasses.replace(lite(5, 2, 1.0), step_seconds=[[1.0, 5.0, 2.0], [3.0, 1.0, 2.5]])
    assert record.slowest() == [3.0, 5.0, 2.5]
    assert record.step == 3.0  # the median


@pytest.mark.parametrize(
    "difference",
    [{"engine": "diffusers"}, {"plan": "minimal"}, {"attention": "flash4"}, {"compiled": False}, {"guided": False}],
    ids=str,
)
def test_only_the_numbers_of_ranks_and_threads_may_differ_in_a_comparison(difference):
    record = lite(5, 1, 1.0, text_tokens=[200, 60])
    assert dataclasses.replace(record, **difference).series != record.series
    assert dataclasses.replace(record, layout=ParallelLayout("tp", 4), gpus=4, threads=2).series == record.series


@pytest.mark.parametrize("out", [["--out", "elsewhere"], ["--out=elsewhere"], []])
def test_a_record_names_the_command_that_anybody_can_repeat(monkeypatch, out):
    """Without the folder that it wrote to, and with the launcher."""
    monkeypatch.setattr(records.sys, "argv", ["/home/me/launch/benchmark.py", "--steps", "3", *out, "--unguided"])
    for ranks, launcher in ((1, "python"), (4, "torchrun --nproc-per-node 4")):
        monkeypatch.setattr(records, "world_size", lambda ranks=ranks: ranks)
        assert records.command_line() == f"{launcher} launch/benchmark.py --steps 3 --unguided"
    monkeypatch.setattr(records.sys, "argv", ["launch/whole_run.py", "--path", "a cat.mp4"])
    assert records.command_line().endswith(" launch/whole_run.py --path 'a cat.mp4'")


def test_a_sweep_s_speedups_are_over_one_rank_with_one_thread():
    one, two = (dataclasses.replace(lite(5, ranks, step), gpus=0) for ranks, step in ((1, 2.0), (2, 0.8)))
    threads = dataclasses.replace(one, threads=2, step_seconds=[[1.0]])
    rows = [line.split() for line in sweep.table([one, threads, two]).splitlines()[1:]]
    assert [(row[2], row[3], row[5]) for row in rows] == [
        ("tp1", "1", "1.00x"),
        ("tp1", "2", "2.00x"),
        ("tp2", "1", "2.50x"),
    ]


def swept(counts: list[int], *names: str, options: tuple[str, ...] = (), **changes) -> str:
    """Return the layouts that a sweep over so many ranks runs."""
    config = load_config("lite_5s")
    config = dataclasses.replace(config, sampling=dataclasses.replace(config.sampling, **changes))
    run_of = sweep.parse_args(["--config", "lite_5s", *options])
    return " ".join(map(str, sweep.layouts(run_of, config, counts, list(names))))


def test_a_sweep_runs_each_family_on_each_number_of_ranks(capsys):
    """One rank for each branch has only one layout, and what does not fit is said."""
    found = swept([1, 2, 4, 8], "tp", "ulysses", "cfg2-tp", "cfg2-ulysses")
    expected = "tp1 tp2 ulysses2 cfg2-tp1 tp4 ulysses4 cfg2-tp2 cfg2-ulysses2 cfg2-tp4 cfg2-ulysses4"
    assert found == expected
    left_out = capsys.readouterr().out.splitlines()
    assert [line.split(" over 8 ranks: ")[0] for line in left_out] == [
        "left out: tp8: tensor parallelism",
        "left out: ulysses8: Ulysses",
    ]
    assert all("28 heads are not divisible by 8" in line for line in left_out)


@pytest.mark.parametrize(("cores", "runs"), [(1, ["tp1 1"]), (2, ["tp1 1", "tp1 2", "tp2 1"])])
def test_a_sweep_on_a_cpu_runs_nothing_twice(cores, runs, monkeypatch):
    monkeypatch.setattr(sweep, "effective_cores", lambda: float(cores))
    monkeypatch.setattr(sweep, "parallel_capacity", lambda cores: 1.0)
    started = []
    monkeypatch.setattr(sweep, "benchmark", lambda layout, options: started.append(f"{layout} {options[-1]}"))
    sweep.on_cpu(sweep.parse_args([]), load_config(), ["tp"], [])
    assert started == runs


def test_a_sweep_over_some_numbers_of_ranks(capsys):
    assert swept([1], "ulysses") == "tp1"
    assert swept([2], "tp_sp") == "tp_sp2"
    assert swept([8], "ulysses4x2", "cfg2-ulysses2x2") == "ulysses4x2 cfg2-ulysses2x2"
    assert capsys.readouterr().out == ""
    assert swept([3], "cfg2-tp") == swept([4], "ulysses4x2") == ""
    assert capsys.readouterr().out.splitlines() == [
        "left out: cfg2-tp1: it has no form for 3 ranks",
    ]


def test_a_sweep_of_another_library_splits_any_number_of_heads():
    """cache-dit's Ulysses does. Its tensor parallelism needs a number that divides the heads, as ours does."""
    options = ("--engine", "diffusers", "--random-weights")
    assert swept([8], "tp", "ulysses", options=options) == "ulysses8"


def test_a_sweep_passes_options_on_that_only_its_configuration_knows(tmp_path, monkeypatch):
    """mini has no sparse attention, so it may not be the one that the options are tried with."""
    monkeypatch.setattr(sweep, "on_cpu", lambda run_of, config, names, options: started.append((run_of, config)) or [])
    started = []
    options = ["--device", "cpu", "--random-weights", "--density", "0.3", "--out", str(tmp_path)]
    sweep.main([*options, "--config", "lite_10s"])
    ((run_of, config),) = started
    assert run_of.density == 0.3 and config.name == "lite_10s" and config.dit.nabla
    with pytest.raises(SystemExit):
        sweep.main([*options, "--config", "lite_10s", "mini"])
    assert len(started) == 1


def test_a_sweep_leaves_out_what_the_run_cannot_split(capsys):
    """An unguided run has one branch, and so many tokens are not divisible by 7."""
    assert swept([2], "tp", "cfg2-tp", guidance_weight=1.0) == "tp2"
    assert swept([7], "ulysses") == ""
    assert [line.split(":")[1] for line in capsys.readouterr().out.splitlines()] == [" cfg2-tp1", " ulysses7"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("best", "unknown kind of layout 'best'"),
        ("cfg3-tp", "cfg must be 1"),
        ("-", "not a layout"),
        ("tp0", "not a layout"),
    ],
)
def test_a_family_that_is_none_is_refused(text, message, capsys):
    with pytest.raises(SystemExit):
        sweep.main(["--layouts", "tp", text])
    assert message in capsys.readouterr().err
