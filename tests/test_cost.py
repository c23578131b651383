"""The cost model: memory to the byte, times that follow from the ceilings, and a ranking that says what cannot run."""

import copy
import dataclasses
import json

import plan
import pytest
import torch
from helpers import SMALL, random_model

from kandinsky_mini.bench import compare
from kandinsky_mini.bench.measure import weight_bytes
from kandinsky_mini.bench.records import PUBLISHED, load_records
from kandinsky_mini.config import load_config
from kandinsky_mini.models.parallelize import parallelize_dit
from kandinsky_mini.parallel import cost
from kandinsky_mini.parallel.ceilings import Ceilings, load_ceilings
from kandinsky_mini.parallel.layout import ParallelLayout
from kandinsky_mini.parallel.simulation import simulated_ranks

LITE = load_config("lite_5s")
KINDS = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all")
# A GPU of round numbers: 1 PFLOP/s in linear layers, 0.5 in attention, 1 TB/s, and 100 GB/s between GPUs.
CEILINGS = Ceilings(
    device="a GPU",
    memory_bytes=8 * 10**9,
    attention_kernel="a kernel",
    head_dim=64,
    linear={(1000, 1000, 1000): 2e-6},
    attention={(10_000, 10): 4 * 10_000**2 * 10 * 64 / 0.5e15},
    elementwise={10**9: 1e-3},
    collectives={
        (kind, 2, size): 1e-5 + share * size / 100e9
        for kind, share in zip(KINDS, (1.0, 0.5, 0.5, 0.25), strict=True)
        for size in (2**10, 10**8)
    },
)


def predict(layout: str, config=LITE, **changes) -> cost.Prediction:
    sampling = dataclasses.replace(config.sampling, **changes)
    return cost.predict(config.dit, sampling, ParallelLayout.parse(layout), CEILINGS)


@pytest.mark.parametrize("kind", ["tp", "tp_sp", "ulysses"])
@pytest.mark.parametrize("ranks", [2, 4])
def test_the_weights_of_a_rank_are_predicted_to_the_byte(kind, ranks):
    layout = ParallelLayout(kind, ranks)
    with simulated_ranks(ranks) as mesh:
        held = weight_bytes(parallelize_dit(copy.deepcopy(random_model()), mesh, layout.plan))
    assert cost.weight_bytes(SMALL, layout, torch.float32) == held


def test_one_gpu_does_the_arithmetic_of_the_model():
    """The counts of floating-point operations are those of Kandinsky 5 Lite: 137 and 523 TFLOP a forward."""
    one = predict("tp1")
    assert one.seconds["linear"] == pytest.approx(2 * 137e12 / 1e15, rel=0.02)
    assert one.seconds["attention"] == pytest.approx(2 * 523e12 / 0.5e15, rel=0.02)
    assert one.seconds["communication"] == one.wire_bytes == 0


def test_split_queries_split_all_of_a_step():
    one, eight = predict("tp1").seconds, predict("ulysses4x2").seconds
    assert eight["attention"] == pytest.approx(one["attention"] / 8, rel=0.01)
    assert eight["linear"] == pytest.approx(one["linear"] / 8, rel=0.06)  # text blocks are not split
    assert predict("ulysses4x2").activation_bytes < predict("ulysses4").activation_bytes


@pytest.mark.parametrize("kind", ["tp", "tp_sp", "ulysses"])
def test_what_each_kind_splits(kind):
    one, four = predict("tp1").seconds, predict(f"{kind}4").seconds
    assert four["linear"] == pytest.approx(one["linear"] / 4, rel=0.03)  # text blocks are not split
    kept = four["elementwise"] / one["elementwise"]
    assert kept == pytest.approx({"tp": 0.65, "tp_sp": 0.25, "ulysses": 0.28}[kind], abs=0.02)
    # In tp, norms and sums of all tokens remain. Ulysses copies values and results.


def test_every_layout_splits_all_of_attention():
    """That includes the small part to the text: in Ulysses a rank has all of its heads, for a share of the tokens."""
    one = predict("tp1").seconds["attention"]
    for layout in ("tp4", "tp_sp4", "ulysses4", "ulysses2x2"):
        assert predict(layout).seconds["attention"] == pytest.approx(one / 4, rel=1e-4)


def test_what_each_kind_sends():
    """A block sends 6 (P-1)/P X in both tensor parallelisms and 4 (P-1)/P^2 X in Ulysses. X is all tokens in bytes."""
    forwards, blocks, x = 2, 32, 47_616 * 1792 * 2
    for kind, share in (("tp", 6 * 3 / 4), ("tp_sp", 6 * 3 / 4), ("ulysses", 4 * 3 / 16)):
        assert predict(f"{kind}4").wire_bytes == pytest.approx(forwards * blocks * share * x, rel=0.02), kind
    # Four groups of heads, each of 2 ranks: all-to-alls of half of the tokens, and keys and values of a quarter.
    sent = forwards * blocks * (4 * 3 / 16 / 2 + 2 / 2 / 4) * x
    assert predict("ulysses4x2").wire_bytes == pytest.approx(sent, rel=0.02)
    velocity = 31 * 64 * 96 * 16 * 2
    assert predict("cfg2-tp1").wire_bytes == 2 * velocity / 2


def test_branches_side_by_side_halve_a_guided_step():
    one, two = predict("tp1"), predict("cfg2-tp1")
    assert two.step == pytest.approx(one.step / 2, rel=0.01)
    assert two.weight_bytes == one.weight_bytes
    assert predict("cfg2-tp4").seconds["attention"] == pytest.approx(one.seconds["attention"] / 8, rel=0.01)


def test_branches_side_by_side_take_as_long_as_the_longer_text():
    one, texts = ParallelLayout("tp", 1, cfg=2), ((60, 200), (200, 60), (60, 60))
    short_first, long_first, short = (cost.predict(LITE.dit, LITE.sampling, one, CEILINGS, each).step for each in texts)
    assert short_first == long_first > short


def test_a_step_without_guidance_is_one_forward():
    assert predict("tp1", guidance_weight=1.0).step == pytest.approx(predict("tp1").step / 2, rel=0.01)


def test_a_collective_is_interpolated_between_the_sizes_that_were_measured():
    seconds = CEILINGS.collective_seconds
    assert seconds("all_reduce", 2, 1) == pytest.approx(1e-5, rel=0.01)  # latency alone
    assert seconds("all_reduce", 2, 5 * 10**7) == pytest.approx(1e-5 + 5e-4, rel=0.01)
    assert seconds("all_reduce", 2, 10**9) == pytest.approx(1e-2, rel=0.02)
    # On 4 ranks the same bandwidth: each rank sends 6/4 of the payload and not 2/2.
    assert seconds("all_reduce", 4, 10**8) == pytest.approx(1.5e-3, rel=0.02)


def test_the_number_of_ranks_that_was_measured_is_near_as_a_ratio():
    """3 ranks are closer to 4 than to 2."""
    four = {("all_reduce", 4, 10**6): 0.4, ("all_reduce", 4, 10**9): 400.0}
    ceilings = dataclasses.replace(CEILINGS, collectives=CEILINGS.collectives | four)
    assert ceilings.collective_seconds("all_reduce", 3, 9 * 10**6) == pytest.approx(0.4 * 8, rel=0.01)


def test_kinds_that_were_not_measured_are_said():
    alone = dataclasses.replace(CEILINGS, collectives={})
    with pytest.raises(ValueError, match="no all_reduce was measured on a GPU: run launch/ceilings.py on several GPUs"):
        cost.predict(LITE.dit, LITE.sampling, ParallelLayout("tp", 2), alone)


@pytest.fixture
def record(tmp_path):
    """CEILINGS as launch/ceilings.py writes them."""
    fields = {name: getattr(CEILINGS, name) for name in ("device", "memory_bytes", "attention_kernel", "head_dim")}
    for name in ("linear", "attention"):
        fields[name] = [{"shape": shape, "seconds": [time]} for shape, time in getattr(CEILINGS, name).items()]
    fields["elementwise"] = [{"bytes": size, "seconds": [time]} for size, time in CEILINGS.elementwise.items()]
    fields["collectives"] = [
        {"kind": kind, "ranks": ranks, "bytes": size, "seconds": [time]}
        for (kind, ranks, size), time in CEILINGS.collectives.items()
    ]
    path = tmp_path / "ceilings-a_gpu.json"
    path.write_text(json.dumps(fields))
    return path


def test_a_record_of_ceilings_is_read_as_it_was_measured(record):
    assert load_ceilings(record) == CEILINGS == load_ceilings(folder=record.parent)


@pytest.mark.parametrize("text", ["{}", "[]", "no JSON", '{"device": "x"}'])
def test_what_is_no_record_of_ceilings_is_refused(text, tmp_path):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match=r"x\.json is no record of launch/ceilings\.py"):
        load_ceilings(tmp_path / "x.json")
    with pytest.raises(ValueError, match="has no ceilings"):
        load_ceilings(folder=tmp_path / "nowhere")


def ranking(capsys, record, *options: str) -> tuple[list[str], list[str]]:
    """Return the layouts that launch/plan.py ranks, the fastest first, and its reasons against others."""
    plan.main(["--config", "lite_5s", "--ceilings", str(record), *options])
    lines = capsys.readouterr().out.splitlines()
    refused = [line for line in lines if line.startswith("cannot run")]
    return [line.split()[0] for line in lines[2:] if line not in refused], refused


def test_eight_gpus_have_six_layouts_for_28_heads(capsys, record):
    ranked, refused = ranking(capsys, record, "--gpus", "8")
    ulysses = ["cfg2-ulysses4", "cfg2-ulysses2x2", "ulysses4x2", "ulysses2x4"]
    assert ranked == [*ulysses, "cfg2-tp_sp4", "cfg2-tp4"]
    assert [line.split(": ")[1] for line in refused] == ["tp8, tp_sp8", "ulysses8"]
    assert all("28 heads are not divisible by 8" in line for line in refused)


def test_without_guidance_eight_gpus_split_queries(capsys, record):
    ranked, refused = ranking(capsys, record, "--gpus", "8", "--unguided")
    assert ranked == ["ulysses4x2", "ulysses2x4"]
    branches = [line for line in refused if "with a guidance weight of 1 there is only one" in line]
    assert [line.split(": ")[1] for line in branches] == ["cfg2-tp4, cfg2-tp_sp4, cfg2-ulysses4, cfg2-ulysses2x2"]


@pytest.mark.parametrize(("gpus", "fewer"), [(5, 4), (9, 8), (11, 8)])
def test_where_no_layout_fits_the_next_smaller_number_of_gpus_is_named(capsys, record, gpus, fewer):
    plan.main(["--config", "lite_5s", "--ceilings", str(record), "--gpus", str(gpus)])
    said = f"no layout uses all {gpus} GPUs; the next smaller number with a layout is {fewer}\n"
    assert said in capsys.readouterr().out


@pytest.mark.parametrize(("config", "sparse"), [("lite_5s", False), ("lite_10s", True)])
def test_the_ranking_says_that_attention_is_predicted_in_full(capsys, record, config, sparse):
    plan.main(["--config", config, "--ceilings", str(record), "--gpus", "2"])
    assert (
        "predicted, with full attention, as the cost model knows no sparse one" in capsys.readouterr().out
    ) == sparse


def test_one_gpu_has_one_layout(capsys, record):
    assert ranking(capsys, record, "--gpus", "1") == (["tp1"], [])


def test_a_layout_that_needs_more_memory_than_the_gpu_has_is_marked(capsys, record):
    plan.main(["--gpus", "2", "--config", "lite_5s", "--seconds", "40", "--ceilings", str(record)])
    marked = [
        line.split()[0] for line in capsys.readouterr().out.splitlines() if line.endswith("more than the GPU has")
    ]
    assert "cfg2-tp1" in marked and "tp_sp2" not in marked


def test_a_picture_is_planned_as_one(capsys, record):
    plan.main(["--gpus", "2", "--config", "lite_5s", "--seconds", "0", "--ceilings", str(record)])
    assert capsys.readouterr().out.startswith("lite_5s, 0 s of video, ")


def test_a_plan_needs_ceilings(capsys, tmp_path):
    with pytest.raises(SystemExit):
        plan.main(["--gpus", "2", "--config", "lite_5s", "--ceilings", str(tmp_path / "x.json")])
    assert "x.json is no record of launch/ceilings.py" in capsys.readouterr().err


FOLDERS = [PUBLISHED / name for name in ("", "layouts", "layouts_h200", "peers")]
DEVICES = {load_ceilings(path).device for folder in FOLDERS for path in folder.glob("ceilings-*.json")}
ALL_CEILINGS = [each for device in DEVICES for each in compare.ceilings_of(device, PUBLISHED / "peers")]
CEILINGS_OF = {(each.device, each.attention_kernel): each for each in ALL_CEILINGS}
RECORDS = [
    record
    for folder in FOLDERS
    for record in load_records(folder)
    if record.engine == "ours" and record.gpus and not record.parts
]


def test_ceilings_are_published_for_each_kind_of_gpu_that_has_records():
    assert len(RECORDS) > 25
    assert set(CEILINGS_OF) == {(record.device, record.attention) for record in RECORDS}


@pytest.mark.parametrize("record", RECORDS, ids=lambda r: f"{r.device}-{r.config}-{r.attention}-{r.layout}")
def test_what_was_recorded_on_gpus_is_what_the_model_says(record):
    """Bytes are exact, whether sent or held. Memory is close, and so is the time of every layout that was measured."""
    config = load_config(record.config)
    ceilings = CEILINGS_OF[record.device, record.attention]
    found = cost.predict(config.dit, config.sampling, record.layout, ceilings, tuple(record.text_tokens))
    assert found.wire_bytes == record.wire_bytes
    assert {found.weight_bytes} == set(record.weight_bytes)
    # Ulysses needs more now than in its older records, because queries, keys and values travel together.
    assert found.peak_bytes == pytest.approx(max(record.peak_bytes), abs=0.2e9 if record.plan == "ulysses" else 0.1e9)
    assert found.step == pytest.approx(record.step, rel=0.15)
