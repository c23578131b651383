"""Measure how long a sampling step takes, on one process or on many, and write one record as JSON:

python launch/benchmark.py --config kandinsky_mini/configs/lite_5s.yaml --random-weights
torchrun --nproc-per-node 2 launch/benchmark.py --config kandinsky_mini/configs/lite_5s.yaml --random-weights

It runs the pipeline's own sampling loop, guided, with random text embeddings. On a GPU the visual blocks are
compiled, and the first warm-up step shows how long that takes. The values of the weights do not change the time, so
--random-weights needs no checkpoint. launch/sweep.py runs this for each number of ranks that fits.

--engine diffusers times diffusers' model in the same loop instead, with the same sizes. On several GPUs it is split by
cache-dit (pip install cache-dit), by its tensor-parallel plan or by its Ulysses: --layout ulysses2 on two of them. Its
Ulysses splits any number of heads, so --layout ulysses8 is for 28 heads on eight.
"""

import argparse
import dataclasses
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from kandinsky_mini.bench import measure, options
from kandinsky_mini.bench.machine import device_name, interconnect
from kandinsky_mini.bench.peers import DiffusersDiT, peer_versions
from kandinsky_mini.bench.random_models import draw_weights
from kandinsky_mini.bench.records import FOLDER, Record, command_line, versions
from kandinsky_mini.bench.sparse import set_density, with_or_without_nabla
from kandinsky_mini.build import build_dit, compute_dtype, join, load_weights, resolve_layout
from kandinsky_mini.command import run
from kandinsky_mini.config import ROOT, Config, SamplingConfig, load_config
from kandinsky_mini.models.attention import KERNELS, choose_kernel, kernel_of
from kandinsky_mini.models.checkpoint import CheckpointError
from kandinsky_mini.models.dit import DiffusionTransformer3D, compile_blocks
from kandinsky_mini.models.parallelize import TP_PLANS
from kandinsky_mini.models.text_embeds import TextEmbeds
from kandinsky_mini.parallel.groups import (
    gather_from_all,
    leave_group,
    local_device,
    rank,
    world_size,
)
from kandinsky_mini.parallel.guidance import branches_on
from kandinsky_mini.parallel.layout import ParallelLayout
from kandinsky_mini.parallel.ledger import Ledger
from kandinsky_mini.sampling import Branches, draw_noise, generate, guided_velocity, predict_velocity


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=options.config_file, help="YAML configuration (default: mini)")
    parser.add_argument("--random-weights", action="store_true", help="use random weights instead of a checkpoint")
    parser.add_argument("--seconds", type=options.at_least(0), help="seconds of video (default: the configuration's)")
    parser.add_argument("--steps", type=options.at_least(1), default=5, help="number of steps to time")
    parser.add_argument(
        "--warmup",
        type=options.at_least(1),
        default=1,
        help="number of steps before the timed ones; the first of them compiles",
    )
    tokens = {"nargs": 2, "default": (200, 60), "help": "number of tokens in the prompt and in the negative prompt"}
    parser.add_argument("--tokens", type=options.at_least(1), **tokens)
    parser.add_argument("--unguided", action="store_true", help="run one forward per step instead of two")
    parser.add_argument(
        "--engine", choices=("ours", "diffusers"), default="ours", help="the library whose model is timed"
    )
    parser.add_argument(
        "--layout", help="how the CrossDiT is split over the ranks, such as cfg2-tp4 (default: tp over all ranks)"
    )
    kernel = "kernel of attention (default: ours takes flash4 if it can run, others keep their own)"
    parser.add_argument("--attention", choices=KERNELS, default="auto", help=kernel)
    density = (
        "share of the blocks that NABLA, a sparse attention, keeps (default: full attention, for any configuration)"
    )
    parser.add_argument("--density", type=options.between(0.001, 1), help=density)
    parser.add_argument("--plan", choices=TP_PLANS, help="our plan for layouts of kind tp (default: talk)")
    parser.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, help="compile the visual blocks (default: only on GPUs)"
    )
    parser.add_argument("--device", type=options.device, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=options.at_least(1), default=1, help="CPU threads of each rank")
    parser.add_argument(
        "--capacity",
        type=options.between(0, 1e6),
        help="parallel capacity to write into the record; sweep.py measures it",
    )
    parser.add_argument("--out", type=options.folder, default=str(FOLDER), help="folder for the record")
    args = parser.parse_args(argv)
    if args.engine != "ours":
        if not args.random_weights:
            parser.error(f"--engine {args.engine} reads no checkpoint: add --random-weights")
        if world_size() > 1 and (args.device == "cpu" or find_spec("cache_dit") is None):
            parser.error(f"--engine {args.engine} on several ranks needs GPUs, and pip install cache-dit")
    try:
        config = config_of(args)
        args.layout = layout_of(args, config)
        args.layout.check_run(sampling_of(args, config), config.dit)
    except ValueError as error:
        parser.error(str(error))
    if args.plan and (args.layout.kind != "tp" or args.engine != "ours"):
        parser.error("--plan is for our layouts of kind tp")
    if args.engine != "ours":
        if str(args.layout) not in (f"tp{world_size()}", f"ulysses{world_size()}"):
            parser.error(f"--engine {args.engine} has no layout {args.layout}: use tp or ulysses, without cfg")
        if args.attention not in ("auto", "flash4") or (args.attention, args.layout.kind) == ("flash4", "ulysses"):
            kernels = "--attention auto, or flash4 with tp"
            parser.error(f"--engine {args.engine} cannot run {args.layout} with {args.attention}: use {kernels}")
    if args.density and (not args.random_weights or args.attention != "auto"):
        parser.error("--density is for random weights, whose blocks mean nothing, and NABLA chooses its kernel itself")
    args.plan = args.plan or args.layout.plan
    return args


def layout_of(args: argparse.Namespace, config: Config) -> ParallelLayout:
    """Return the layout of the run. cache-dit's Ulysses can split any number of heads, and ours only what divides."""
    if args.engine != "ours" and args.layout == f"ulysses{world_size()}":
        return ParallelLayout.parse(args.layout)
    return resolve_layout(args.layout, config.dit)


def config_of(args: argparse.Namespace) -> Config:
    """Return the configuration of the run. Its attention is full unless a density is given."""
    config = load_config(args.config)
    return with_or_without_nabla(config, args.density, sampling_of(args, config))


def sampling_of(args: argparse.Namespace, config: Config) -> SamplingConfig:
    """Return the settings of the run: the configuration's, but for what the options change."""
    seconds = config.sampling.time_length if args.seconds is None else args.seconds
    weight = 1.0 if args.unguided else config.sampling.guidance_weight
    return dataclasses.replace(config.sampling, time_length=seconds, guidance_weight=weight)


def build_ours(
    args: argparse.Namespace, config: Config, device: torch.device, mesh: DeviceMesh | None
) -> DiffusionTransformer3D:
    """Build our model on this rank's device, sharded over the ranks that compute the same branch."""
    if args.random_weights:
        fill = partial(draw_weights, device=device)
    else:
        fill = partial(load_weights, path=ROOT / config.weights.dit, device=device)
    try:
        dimensions = mesh and mesh[args.layout.dimensions]
        return build_dit(config.dit, device, fill, dimensions, args.plan, attention=args.attention)
    except CheckpointError as error:
        error.add_note("To run without a checkpoint, add --random-weights.")
        raise


def build_diffusers(args: argparse.Namespace, config: Config, device: torch.device) -> DiffusersDiT:
    """Build diffusers' model with random weights, on this rank's device and sharded if there are several ranks."""
    with torch.device(device):
        dit = draw_weights(DiffusersDiT(config.dit), device)
    dit.cast(compute_dtype(device))
    if args.attention == "flash4":
        choose_kernel("flash4", device, dit.dtype, config.dit.head_dim)  # refuses where it cannot run
        dit.use_flash4()
    if world_size() > 1:
        dit.shard(device.type, args.layout.kind)
    return dit


def random_text(config: Config, tokens: int, device: torch.device) -> TextEmbeds:
    """Draw random embeddings in place of a prompt's: text (tokens, in_text_dim), pooled (1, in_text_dim2).

    They are the same on all ranks.
    """
    sizes = (tokens, config.dit.in_text_dim), (1, config.dit.in_text_dim2)
    return TextEmbeds(*(draw_noise(size, seed=tokens).to(device, compute_dtype(device)) for size in sizes))


@torch.no_grad()
def count_wire_bytes(
    dit: nn.Module,
    noise: torch.Tensor,
    text: TextEmbeds,
    null_text: TextEmbeds | None,
    sampling: SamplingConfig,
    branches: Branches,
) -> float:
    """Count what the rank that sends most sends in one step.

    The blocks must not be compiled yet, since a graph hides collectives.
    """
    with Ledger() as ledger:
        time = torch.ones(1, dtype=torch.float32, device=noise.device)
        guided_velocity(dit, noise, time, text, null_text, sampling, branches)
    return max(gather_from_all(sum(entry.wire for entry in ledger.entries)))


def measure_steps(sample: Callable, dit: nn.Module, warmup: int, steps: int, device: torch.device) -> dict[str, object]:
    """Run sample(steps, watch), and return the fields of the record that are measured, from all ranks."""
    if device.type == "cuda":
        measure.forget_peak(device)
    watch = measure.Stopwatch(device)
    sample(warmup + steps, watch)
    peak = measure.peak_bytes(device)
    breakdown = measure.breakdown(lambda: sample(1), device)
    seconds = gather_from_all(watch.seconds)
    return {
        "step_seconds": [each[warmup:] for each in seconds],
        "warmup_seconds": [each[:warmup] for each in seconds],
        "peak_bytes": gather_from_all(peak),
        "weight_bytes": gather_from_all(measure.weight_bytes(dit)),
        "breakdown": breakdown,
    }


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    config = config_of(args)
    device = torch.device(local_device(args.device))
    torch.set_num_threads(args.threads)  # the same on one rank and on many
    ours = args.engine == "ours"
    sampling = sampling_of(args, config)
    mesh = join(args.layout, device) if ours else None
    dit = build_ours(args, config, device, mesh) if ours else build_diffusers(args, config, device)
    branches = branches_on(mesh)
    noise = draw_noise((*sampling.latent_size, config.dit.in_visual_dim), seed=1).to(device)
    text, null_text = (random_text(config, tokens, device) for tokens in args.tokens)
    texts = (text, null_text if sampling.guided else None)
    wire_bytes = count_wire_bytes(dit, noise, *texts, sampling, branches) if world_size() > 1 else 0.0
    time = torch.ones(1, device=device)
    forward = partial(predict_velocity, dit, noise.to(dit.dtype), time, text)
    kept = set_density(args.density, dit, forward) if args.density else []
    compiled = device.type == "cuda" if args.compile is None else args.compile
    if compiled:
        compile_blocks(dit) if ours else dit.compile_blocks()

    def sample(steps: int, watch: measure.Stopwatch | None = None) -> torch.Tensor:
        progress = watch is not None and rank() == 0
        settings = dataclasses.replace(sampling, num_steps=steps)
        return generate(dit, noise, *texts, settings, progress, watch, branches)

    measured = measure_steps(sample, dit, args.warmup, args.steps, device)
    if rank() == 0:
        gpus = world_size() if device.type == "cuda" else 0
        record = Record(
            command=command_line(),
            config=config.name,
            device=device_name(device),
            gpus=gpus,
            interconnect=interconnect(gpus) if gpus else "loopback",
            layout=args.layout,
            seconds_of_video=sampling.time_length,
            guided=sampling.guided,
            compiled=compiled,
            attention=kernel_of(dit),
            text_tokens=list(args.tokens[: 1 + sampling.guided]),
            wire_bytes=wire_bytes,
            threads=torch.get_num_threads(),
            capacity=args.capacity,
            density=args.density,
            kept=kept,
            engine=args.engine,
            plan=args.plan if ours else "own",
            versions=versions() | ({} if ours else peer_versions()),
            **measured,
        )
        path = record.save(args.out)
        low, high = min(record.slowest()), max(record.slowest())
        what = f"{args.engine}, {config.name} on {world_size()}"
        print(f"{what}: {record.step:.3f} s a step ({low:.3f} to {high:.3f}), {path}")
    leave_group()


if __name__ == "__main__":
    run(main)
