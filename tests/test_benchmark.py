"""The benchmark's scripts write down what really ran, and refuse bad options before anything runs."""

import argparse
import contextlib
import dataclasses
import io
import json
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import benchmark
import imageio.v3 as iio
import precision
import psutil
import pytest
import sweep as sweep_script
import torch
import whole_run
from helpers import MODULE_BAR, ROOT, relative_difference

from kandinsky_mini import get_T2V_pipeline
from kandinsky_mini.bench import measure, options, peers
from kandinsky_mini.bench.peers import DiffusersDiT
from kandinsky_mini.bench.random_models import draw_weights, random_text_embedder, random_vae
from kandinsky_mini.bench.records import Record, load_records
from kandinsky_mini.build import build_dit
from kandinsky_mini.config import CONFIGS, DiTConfig, load_config
from kandinsky_mini.models import nn as model_parts
from kandinsky_mini.models.checkpoint import CheckpointError, to_released
from kandinsky_mini.models.dit import DiffusionTransformer3D
from kandinsky_mini.models.text_embedders import TextEmbedder
from kandinsky_mini.models.text_embeds import TextEmbeds
from kandinsky_mini.parallel.cost import predict_collectives
from kandinsky_mini.parallel.layout import ParallelLayout
from kandinsky_mini.pipeline import Kandinsky5T2VPipeline
from kandinsky_mini.sampling import generate, predict_velocity

CPU = torch.device("cpu")


def random_dit(config: DiTConfig, device: torch.device = CPU) -> DiffusionTransformer3D:
    return build_dit(config, device, partial(draw_weights, device=device))


CAPACITY = 1.5


@pytest.fixture(scope="module")
def sweep(tiny_config, tmp_path_factory) -> tuple[str, list[Record]]:
    """Run launch/sweep.py on the CPU, and return what it prints and its records.

    Several ranks run in processes of their own, one rank runs in this one. The capacity is not measured here, because
    that takes a minute and tests/test_machine.py tests it.
    """
    folder, out = tmp_path_factory.mktemp("records"), io.StringIO()
    options = ["--device", "cpu", "--config", str(tiny_config), "--steps", "3", "--tokens", "7", "5"]
    launch, threads = sweep_script.benchmark, torch.get_num_threads()

    def run(layout: ParallelLayout, options: list[str]) -> int:
        return launch(layout, options) if layout.ranks > 1 else benchmark.main(options) or 0

    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
        patch.setattr(sweep_script, "benchmark", run)
        patch.setattr(sweep_script, "parallel_capacity", lambda cores: CAPACITY)
        sweep_script.main([*options, "--out", str(folder)])
    torch.set_num_threads(threads)
    return out.getvalue(), load_records(folder)


def test_a_sweep_measures_ranks_and_threads_and_prints_a_table(sweep):
    out, records = sweep
    assert f"parallel capacity: {CAPACITY:.2f} of " in out
    assert [(record.ranks, record.threads) for record in records][0] == (1, 1)
    assert {record.ranks for record in records} == {1, max(record.threads for record in records)}
    assert len(out[out.index("config ") :].splitlines()) == 1 + len(records)


@pytest.mark.parametrize("fails", [0, 1])
def test_a_sweep_in_which_a_run_failed_has_failed(tiny_config, tmp_path, monkeypatch, fails):
    """Whichever configuration it was of: a script that calls the sweep must not take old records for new ones."""
    statuses = iter([[1, 0], [0, 0]] if fails == 0 else [[0, 0], [0, 1]])
    monkeypatch.setattr(sweep_script, "on_cpu", lambda *_: next(statuses))
    configs = [str(tiny_config), "mini"]
    with pytest.raises(SystemExit, match=r"a run failed \(1 in all\)"):
        sweep_script.main(["--device", "cpu", "--config", *configs, "--out", str(tmp_path)])
    assert next(statuses, None) is None


def test_a_sweep_knows_with_which_status_a_run_ended(tmp_path, monkeypatch):
    (tmp_path / "run.py").write_text("import sys; sys.exit(int(sys.argv[-1]))")
    monkeypatch.setattr(sweep_script, "BENCHMARK", tmp_path / "run.py")
    assert [sweep_script.benchmark(ParallelLayout(), [status]) for status in ("0", "3")] == [0, 3]


def test_a_sweep_on_gpus_takes_every_number_of_them_that_is_there_or_named(monkeypatch):
    ran = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 6)
    monkeypatch.setattr(sweep_script, "benchmark", lambda layout, options: ran.append((str(layout), options)) or 0)
    run_of = sweep_script.parse_args(["--config", "lite_5s"])
    names = ["tp", "ulysses2x3", "ulysses4x2"]
    statuses = sweep_script.on_gpus(run_of, load_config("lite_5s"), names, ["--steps", "3"])
    assert ran == [(layout, ["--steps", "3"]) for layout in ("tp1", "tp2", "tp4", "ulysses2x3")]
    assert statuses == [0] * 4


def test_a_sweep_s_table_has_no_whole_runs(sweep, tiny_config, tmp_path, monkeypatch, capsys):
    """They may be in the same folder, but their steps were measured in another way."""
    step = dataclasses.replace(sweep[1][0], config="steps")
    dataclasses.replace(step, config="whole", parts={"text": 1.0}).save(tmp_path)
    step.save(tmp_path)
    monkeypatch.setattr(sweep_script, "on_cpu", lambda *_: [0])
    sweep_script.main(["--device", "cpu", "--config", str(tiny_config), "--out", str(tmp_path)])
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["config", "steps"]


def test_a_signal_ends_the_run_that_a_sweep_started(tmp_path):
    program = """
import sweep, sys
from pathlib import Path
sweep.BENCHMARK = Path(sys.argv[1])
sweep.benchmark(sweep.ParallelLayout(), [])
"""
    (tmp_path / "run.py").write_text("import os, time; print(os.getpid(), flush=True); time.sleep(300)")
    command = [sys.executable, "-c", program, str(tmp_path / "run.py")]
    process = subprocess.Popen(command, cwd=ROOT / "launch", stdout=subprocess.PIPE, text=True)
    try:
        run = psutil.Process(int(process.stdout.readline()))
        process.terminate()
        assert process.wait(60) == -signal.SIGTERM
        _, left = psutil.wait_procs([run], timeout=10)
        assert left == []
    finally:
        process.kill()
        process.communicate()


def test_every_step_of_every_rank_is_kept(sweep):
    for record in sweep[1]:
        assert [len(times) for times in record.step_seconds] == [3] * record.ranks
        assert [len(times) for times in record.warmup_seconds] == [1] * record.ranks
        assert len(record.peak_bytes) == record.ranks
        assert record.ranks / 4 < sweep[1][0].weight_bytes[0] / max(record.weight_bytes) <= record.ranks
        assert min(min(times) for times in record.step_seconds) > 0
        assert record.capacity == CAPACITY


def test_bytes_sent_are_those_of_the_formula(sweep, tiny_config):
    record = sweep[1][-1]
    config = load_config(tiny_config).dit
    tokens = 7 * 1 * 2  # in one second of video at 16 x 32 pixels
    sizes = {"tokens": tokens, "bytes_each": 4, "ranks": record.ranks}
    entries = [entry for text in (7, 5) for entry in predict_collectives(config, text_tokens=text, **sizes)]
    assert record.ranks > 1
    assert record.wire_bytes == sum(entry.wire for entry in entries)


def test_a_breakdown_names_where_the_time_went(sweep):
    one, many = sweep[1][0].breakdown, sweep[1][-1].breakdown
    assert one["communication"] == 0 < many["communication"]
    assert min(one["attention"], one["linear"]) > 0
    assert sum(one.values()) - one["whole"] == pytest.approx(one["whole"], rel=0.01)


@pytest.mark.parametrize(
    ("name", "kind"),
    [  # the names are in the style of NCCL, cuDNN, cuBLAS and Triton
        ("ncclDevKernel_AllReduce_Sum_bf16_RING_LL(ncclDevKernelArgsStorage<4096ul>)", "communication"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_3_128x64x64_4x1x1_cga1x1x1", "attention"),
        ("nvjet_sm90_tst_192x192_64x4_2x1_v_bz_coopB_bias_TNT", "linear"),
        ("triton_poi_fused__to_copy_add_gelu_mul_0", None),
        ("triton_per_fused__scaled_dot_product_cudnn_attention_mul_rsqrt_1", "attention"),  # it prepares the inputs
    ],
)
def test_kernels_are_sorted_by_what_they_are_for(name, kind):
    assert next((kind for kind, pattern in measure.KINDS.items() if re.search(pattern, name)), None) == kind


@pytest.mark.filterwarnings("error")  # a norm of mixed dtypes would be slow, and would warn
def test_bfloat16_is_close_to_float32(tiny_config, tmp_path, capsys):
    precision.main(["--config", str(tiny_config), "--device", "cpu", "--out", str(tmp_path)])
    (path,) = tmp_path.glob("*.json")
    errors = json.loads(path.read_text())["errors"]["1"]
    assert len(errors) == len(precision.TIMES)
    assert all(1e-4 < error < 0.1 for error in errors)


def test_simulated_ranks_show_what_bfloat16_costs_on_several(tiny_config, tmp_path, capsys):
    options = ["--config", str(tiny_config), "--device", "cpu", "--out", str(tmp_path)]
    precision.main([*options, "--simulated", "2"])
    (path,) = tmp_path.glob("precision-*-tiny-1s-tp2-simulated.json")
    record = json.loads(path.read_text())
    one, two = record["errors"]["1"], record["errors"]["2"]
    assert record["simulated"] and one != two  # the sum over two ranks is another one
    assert all(b < 1.5 * a for a, b in zip(one, two, strict=True))


@torch.no_grad()
def test_the_other_engine_computes_the_same(tiny_config, monkeypatch):
    rotate = model_parts.rotate  # diffusers rounds rotated queries and keys to bfloat16, so ours must, too
    monkeypatch.setattr(model_parts, "rotate", lambda x, rope: rotate(x, rope).bfloat16().type_as(x))
    config = load_config(tiny_config).dit
    ours, theirs = random_dit(config), DiffusersDiT(config).eval()
    theirs.model.load_state_dict(to_released(ours.state_dict()))
    x, time = torch.randn(3, 4, 6, config.in_visual_dim), torch.rand(1)
    text = TextEmbeds(torch.randn(7, config.in_text_dim), torch.randn(1, config.in_text_dim2))
    expected = predict_velocity(ours, x, time, text)
    assert relative_difference(predict_velocity(theirs, x, time, text), expected) < MODULE_BAR


def test_a_record_names_the_engine(tiny_config, tmp_path):
    options = ["--config", str(tiny_config), "--device", "cpu", "--engine", "diffusers", "--out", str(tmp_path)]
    benchmark.main([*options, "--random-weights", "--steps", "1"])
    (record,) = load_records(tmp_path)
    assert record.engine == "diffusers"
    assert "diffusers" in record.versions and record.wire_bytes == 0


ASKED = {  # for some options, what a record of one rank on a CPU says
    (): {"seconds_of_video": 1, "guided": True, "text_tokens": [7, 5], "compiled": False, "plan": "talk"},
    ("--unguided", "--seconds", "0", "--plan", "minimal", "--compile"): {
        "seconds_of_video": 0,
        "guided": False,
        "text_tokens": [7],
        "compiled": True,
        "plan": "minimal",
    },
    ("--layout", "ulysses1"): {"layout": ParallelLayout("ulysses"), "plan": "ulysses"},
    ("--engine", "diffusers"): {"engine": "diffusers", "plan": "own"},
}


@pytest.mark.parametrize("options", ASKED, ids=" ".join)
def test_a_record_says_what_was_asked_for(tiny_config, tmp_path, monkeypatch, options):
    """Only runs with the same words are compared, so none of these may be that of another run."""
    texts = []

    def noted(dit, noise, text, null_text, *others):
        texts.append([len(each.text) for each in (text, null_text) if each])
        return generate(dit, noise, text, null_text, *others)

    monkeypatch.setattr(benchmark, "generate", noted)
    monkeypatch.setattr(benchmark, "compile_blocks", lambda dit: None)  # it takes long, and test_dit.py tests it
    common = ["--config", str(tiny_config), "--device", "cpu", "--random-weights", "--steps", "1"]
    benchmark.main([*common, "--tokens", "7", "5", "--out", str(tmp_path), *options])
    (record,) = load_records(tmp_path)
    constant = {"config": "tiny", "gpus": 0, "interconnect": "loopback", "threads": 1, "attention": "sdpa"}
    expected = constant | ASKED[options]
    assert {name: getattr(record, name) for name in expected} == expected
    assert {tuple(each) for each in texts} == {tuple(record.text_tokens)}


DIFFUSERS = ["--engine", "diffusers", "--random-weights"]


@pytest.mark.parametrize(
    ("script", "options", "message"),
    [
        (benchmark, ["--steps", "0"], "argument --steps: must be a whole number of at least 1, not '0'"),
        (benchmark, ["--tokens", "5", "x"], "argument --tokens: must be a whole number of at least 1, not 'x'"),
        (benchmark, ["--device", "cuda:99"], "argument --device: 'cuda:99' does not exist here: PyTorch finds "),
        (
            benchmark,
            ["--device", "gpu"],
            "argument --device: 'gpu' is not a device: use cpu, cuda, or a numbered GPU such as cuda:0",
        ),
        (benchmark, ["--config", "no.yaml"], "argument --config: cannot read the configuration no.yaml"),
        (benchmark, ["--out", __file__], f"argument --out: {__file__}: File exists"),
        (benchmark, ["--engine", "diffusers"], "--engine diffusers reads no checkpoint: add --random-weights"),
        (
            benchmark,
            ["--layout", "ulysses1", "--plan", "minimal"],
            "--plan is for our layouts of kind tp",
        ),
        (
            benchmark,
            [*DIFFUSERS, "--layout", "tp_sp1"],
            "diffusers has no layout tp_sp1: use tp or ulysses, without cfg",
        ),
        (benchmark, [*DIFFUSERS, "--attention", "cudnn"], "cannot run tp1 with cudnn: use --attention auto, or flash4"),
        (
            benchmark,
            [*DIFFUSERS, "--layout", "ulysses1", "--attention", "flash4"],
            "cannot run ulysses1 with flash4: use --attention auto, or flash4 with tp",
        ),
        (benchmark, ["--layout", "tp2"], "the layout tp2 needs 2 ranks, but 1 were started"),
        (benchmark, ["--layout", "best"], "'best' is not a layout: write a kind and a number of ranks"),
        (
            precision,
            ["--simulated", "3"],
            "8 heads are not divisible by 3; it can split this model over 1, 2, 4 or 8 ranks",
        ),
        (whole_run, ["--steps", "1"], "argument --steps: must be a whole number of at least 2, not '1'"),
    ],
)
def test_bad_options_are_refused_before_anything_is_measured(script, options, message, capsys):
    with pytest.raises(SystemExit):
        script.main(options)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("engine", ["ours", "diffusers"])
def test_a_layout_with_two_branches_is_for_our_model_in_a_guided_run(engine, monkeypatch, capsys):
    """Two ranks are needed to get this far, and other libraries need GPUs for that."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr(benchmark, "find_spec", lambda name: name)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    options = ["--engine", engine, "--random-weights", "--device", "cuda", "--layout", "cfg2-tp1"]
    if engine == "ours":
        assert benchmark.parse_args(options).layout == ParallelLayout("tp", 1, cfg=2)
        options.append("--unguided")
    with pytest.raises(SystemExit):
        benchmark.parse_args(options)
    refused = {"ours": "there is only one: use a layout without cfg", "diffusers": "has no layout cfg2-tp1"}
    assert refused[engine] in capsys.readouterr().err


@pytest.mark.parametrize(
    ("engine", "layout", "accepted"),
    [("diffusers", "ulysses8", True), ("diffusers", "tp8", False), ("ours", "ulysses8", False)],
)
def test_only_cache_dit_s_ulysses_splits_heads_that_the_ranks_do_not_divide(
    engine, layout, accepted, monkeypatch, capsys
):
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr(benchmark, "find_spec", lambda name: name)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    options = ["--config", "lite_5s", "--engine", engine, "--random-weights", "--device", "cuda", "--layout", layout]
    if accepted:
        assert str(benchmark.parse_args(options).layout) == layout
        return
    with pytest.raises(SystemExit):
        benchmark.parse_args(options)
    assert "28 heads are not divisible by 8" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "ranks", "more"), [("tp", 2, {}), ("ulysses", 2, {}), ("ulysses", 3, {"ulysses_anything": True})]
)
def test_cache_dit_is_told_when_the_ranks_do_not_divide_the_heads(kind, ranks, more, tiny_config, monkeypatch):
    """Then it exchanges uneven parts. cache-dit is no dependency, so this is only what it is called with."""
    asked = []
    fake = SimpleNamespace(
        ParallelismConfig=dict, enable_cache=lambda model, parallelism_config: asked.append(parallelism_config)
    )
    monkeypatch.setitem(sys.modules, "cache_dit", fake)
    monkeypatch.setattr(peers, "join_group", lambda device_type: None)
    monkeypatch.setattr(peers, "world_size", lambda: ranks)
    config = load_config(tiny_config).dit
    assert config.num_heads == 2
    DiffusersDiT(config).shard("cpu", kind)
    assert asked == [{f"{kind}_size": ranks} | more]


@pytest.mark.parametrize(("layout", "plan"), [("tp1", "talk"), ("tp_sp1", "tp_sp"), ("ulysses1", "ulysses")])
def test_a_layout_has_a_plan_of_its_own(layout, plan):
    assert benchmark.parse_args(["--layout", layout]).plan == plan
    assert benchmark.parse_args(["--plan", "minimal"]).plan == "minimal"


def test_a_whole_run_times_its_parts(tiny_config, tmp_path, capsys):
    path = tmp_path / "two_seconds.mp4"
    options = ["--config", str(tiny_config), "--steps", "2", "--out", str(tmp_path)]
    whole_run.main([*options, "--seconds", "2", "--path", str(path)])
    (record,) = load_records(tmp_path)
    assert f"video (1, 3, 49, 16, 32), torch.uint8, saved to {path}" in capsys.readouterr().out
    assert iio.imread(path).shape == (49, 16, 32, 3) and record.seconds_of_video == 2
    assert set(record.parts) == {"text", "vae", "save"}
    assert min(record.parts.values()) > 0
    assert record.device_map == {"dit": "cpu", "vae": "cpu", "text_embedder": "cpu"}


def test_a_whole_run_with_offload_has_a_record_of_its_own(tiny_config, tmp_path, monkeypatch):
    """It is beside the one without. What is timed runs on the model's device, too: text and decoding come twice."""
    places, on_its_device = [], Kandinsky5T2VPipeline.on_its_device
    monkeypatch.setattr(
        Kandinsky5T2VPipeline,
        "on_its_device",
        lambda *args: (places.append((args[1], args[0].offload)), on_its_device(*args))[1],
    )
    options = ["--config", str(tiny_config), "--steps", "2", "--out", str(tmp_path), "--memory", "24"]
    for more in ([], ["--offload"]):
        whole_run.main([*options, *more])
    assert sorted(record.offload for record in load_records(tmp_path)) == [False, True]
    parts = ["text_embedder", "text_embedder", "dit", "vae", "vae"]
    assert places == [(part, offload) for offload in (False, True) for part in parts]


def test_a_whole_run_times_the_expansion_of_a_prompt_where_there_is_one(tiny_config, tmp_path, monkeypatch):
    def load(*args, **options) -> Kandinsky5T2VPipeline:
        pipe = get_T2V_pipeline(*args, **options)
        pipe.text_embedder.writer = torch.nn.Identity()
        return pipe

    monkeypatch.setattr(whole_run, "get_T2V_pipeline", load)
    monkeypatch.setattr(TextEmbedder, "expand", lambda self, prompt: time.sleep(0.2))
    whole_run.main(["--config", str(tiny_config), "--steps", "2", "--out", str(tmp_path)])
    (record,) = load_records(tmp_path)
    assert record.parts["expand"] >= 0.2 and set(record.parts) == {"expand", "text", "vae", "save"}


def test_a_broken_encoder_shows_before_the_models_are_loaded(tiny_config, tmp_path, monkeypatch):
    def refuse(path: Path, kind: str) -> None:
        assert path.parent == tmp_path and kind == "video"
        raise ValueError("no encoder")

    monkeypatch.setattr(whole_run, "check_save_path", refuse)
    monkeypatch.setattr(whole_run, "get_T2V_pipeline", lambda *args, **options: pytest.fail("it was loaded"))
    with pytest.raises(ValueError, match="no encoder"):
        whole_run.main(["--config", str(tiny_config), "--steps", "2", "--out", str(tmp_path)])


def test_a_video_that_could_not_be_saved_is_refused_before_the_models_are_loaded(tiny_config, tmp_path, monkeypatch):
    """Also where saving is not timed, because no encoder is installed."""
    monkeypatch.setattr(whole_run, "can_save", lambda: False)
    monkeypatch.setattr(whole_run, "get_T2V_pipeline", lambda *args, **options: pytest.fail("it was loaded"))
    with pytest.raises(ValueError, match="the suffix of this video must be .mp4"):
        whole_run.main(["--config", str(tiny_config), "--out", str(tmp_path), "--path", str(tmp_path / "video.png")])


def test_a_whole_run_with_random_weights_needs_a_real_size(tmp_path):
    """Mini's text is too narrow for encoders with the heads of the published ones."""
    with pytest.raises(ValueError, match="mini has no random text encoders"):
        whole_run.main(["--random-weights", "--steps", "2", "--out", str(tmp_path)])


def test_a_device_map_has_each_part_once():
    with pytest.raises(SystemExit, match="each once"):
        whole_run.parse_device_map(["dit=cpu", "dit=meta", "vae=cpu", "text_embedder=cpu"])


def test_a_whole_run_without_weights_says_how_to_do_without(tmp_path):
    with pytest.raises(CheckpointError) as raised:
        whole_run.main(["--config", "lite_5s", "--steps", "2", "--out", str(tmp_path)])
    assert raised.value.__notes__ == ["To run without a checkpoint, add --random-weights."]


def test_a_folder_that_cannot_hold_a_record_is_refused(tmp_path, monkeypatch):
    def refuse(path) -> None:
        raise ValueError("the disk is full")

    monkeypatch.setattr(options, "check_writable", refuse)
    with pytest.raises(argparse.ArgumentTypeError, match="the disk is full"):
        options.folder(str(tmp_path))


def test_memory_is_limited_on_each_gpu_once(monkeypatch):
    limits = []
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=80e9))
    monkeypatch.setattr(
        torch.cuda, "set_per_process_memory_fraction", lambda share, device: limits.append((share, device))
    )
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    devices = dict(zip("abc", map(torch.device, ("cuda:0", "cuda", "cpu")), strict=True))
    whole_run.limit_memory(devices, 24)
    whole_run.limit_memory(devices, 100)
    assert limits == [(0.3, 0), (1.0, 0)]  # by number, because PyTorch takes no device without one here


def test_a_whole_run_is_computed_for_the_steps_of_the_configuration(tiny_config, tmp_path, monkeypatch, capsys):
    """A few steps are measured, and the first one, which compiles, does not count."""
    monkeypatch.setattr(whole_run, "time_parts", lambda *args: ([90.0, 10.0], {"text": 2.0, "vae": 3.0}))
    monkeypatch.setattr(whole_run, "time_of_saving", lambda *size: 4.0)
    whole_run.main(["--config", str(tiny_config), "--steps", "2", "--out", str(tmp_path)])
    assert "a step 10.000 s; computed for 3 steps: 39.0 s in all" in capsys.readouterr().out


def test_a_device_map_must_name_every_part(tiny_config):
    with pytest.raises(
        SystemExit, match="error: --device-map is dit=cpu vae=cpu x=cpu; it needs dit, vae, text_embedder, each once"
    ):
        whole_run.main(["--config", str(tiny_config), "--device-map", "dit=cpu", "vae=cpu", "x=cpu"])


def test_random_weights_are_those_of_the_real_sizes():
    config = load_config(CONFIGS / "lite_5s.yaml")
    meta = torch.device("meta")
    embedder = random_text_embedder(config, meta)
    sizes = {
        "CrossDiT": (random_dit(config.dit, meta), 2.008),
        "Qwen2.5-VL 7B without its head": (embedder.text_encoder, 7.07),
        "CLIP ViT-L/14": (embedder.text_encoder2, 0.123),
        "VAE": (random_vae(True, meta, torch.bfloat16), 0.246),
    }
    for name, (model, billions) in sizes.items():
        assert sum(p.numel() for p in model.parameters()) / 1e9 == pytest.approx(billions, rel=2e-3), name


def test_random_modulation_is_not_zero(tiny_config):
    dit = random_dit(load_config(tiny_config).dit)
    assert all(p.std() > 0.01 for name, p in dit.named_parameters() if "modulation" in name)
    assert all((p == 1).all() for name, p in dit.named_parameters() if name.endswith("norm.weight"))
    biases = torch.cat([p.detach().flatten() for name, p in dit.named_parameters() if name.endswith("bias")])
    assert biases.std().item() == pytest.approx(0.02, rel=0.1)  # as wide as weights, they would drown the products


def test_the_other_engine_keeps_in_float32_what_its_library_does(tiny_config):
    """Else one engine would be measured at another precision than the one it is used at."""
    dit = DiffusersDiT(load_config(tiny_config).dit)
    dit.cast(torch.bfloat16)
    assert dit.dtype == torch.bfloat16
    kept = {name.split(".")[-3] for name, p in dit.named_parameters() if p.dtype == torch.float32}
    assert kept == {"time_embeddings", "visual_modulation", "text_modulation", "modulation"}
