"""How long a sampling step takes, on one process or on many; writes one record as JSON:

python launch/benchmark.py --config kandinsky_mini/configs/lite_5s.yaml --random-weights
torchrun --nproc-per-node 2 launch/benchmark.py --config kandinsky_mini/configs/lite_5s.yaml --random-weights

It is the pipeline's own sampling loop, guided, in the talk's plan, from prepared text embeddings. On a GPU the visual
blocks are compiled: the first warm-up step shows how long that takes. The weights' values do not matter for the time,
so that --random-weights needs no checkpoint. launch/sweep.py runs this for each number of ranks that fits.

--engine diffusers times diffusers' model in the same loop instead, with the same sizes; on several GPUs under the
tensor-parallel plan of cache-dit (pip install cache-dit).
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from kandinsky_mini import cast, compute_dtype  # noqa: E402
from kandinsky_mini.config import ROOT, Config, load_config  # noqa: E402
from kandinsky_mini.distributed import (  # noqa: E402
    leave,
    local_device,
    rank,
    tensor_parallel_mesh,
    world_size,
)
from kandinsky_mini.lab import measure, options  # noqa: E402
from kandinsky_mini.lab.capacity import processor  # noqa: E402
from kandinsky_mini.lab.engines import DiffusersDiT, engine_versions  # noqa: E402
from kandinsky_mini.lab.full_size import check_ranks, draw_weights  # noqa: E402
from kandinsky_mini.lab.ledger import Ledger  # noqa: E402
from kandinsky_mini.lab.records import FOLDER, Record, command_line, interconnect, versions  # noqa: E402
from kandinsky_mini.models.checkpoint import CheckpointError, load_checkpoint  # noqa: E402
from kandinsky_mini.models.dit import DiffusionTransformer3D, compile_blocks  # noqa: E402
from kandinsky_mini.models.parallelize import VARIANTS, parallelize_dit  # noqa: E402
from kandinsky_mini.models.text_embedders import TextEmbeds  # noqa: E402
from kandinsky_mini.pipeline import latent_shape  # noqa: E402
from kandinsky_mini.sampling import draw_noise, generate, predict_velocity  # noqa: E402


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=options.config_file, help="YAML; default: mini")
    parser.add_argument("--random-weights", action="store_true", help="no checkpoint is read")
    parser.add_argument("--seconds", type=options.at_least(0), help="of video; default: the configuration's")
    parser.add_argument("--steps", type=options.at_least(1), default=5, help="that are timed")
    parser.add_argument("--warmup", type=options.at_least(1), default=1, help="steps before: the first compiles")
    tokens = {"nargs": 2, "default": (200, 60), "help": "of the prompt and the negative one"}
    parser.add_argument("--tokens", type=options.at_least(1), **tokens)
    parser.add_argument("--unguided", action="store_true", help="one forward a step")
    parser.add_argument("--engine", choices=("ours", "diffusers"), default="ours", help="whose model")
    parser.add_argument("--variant", choices=VARIANTS, default="talk", help="which of our plans")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help="the visual blocks; default: on GPUs")
    parser.add_argument("--device", type=options.device, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=options.at_least(1), default=1, help="of each rank, on the CPU")
    parser.add_argument("--capacity", type=float, help="noted in the record, see sweep.py")
    parser.add_argument("--out", type=options.folder, default=str(FOLDER), help="the folder of the record")
    args = parser.parse_args(argv)
    if args.engine != "ours":
        if not args.random_weights:
            parser.error(f"--engine {args.engine} reads no checkpoint: add --random-weights")
        if world_size() > 1 and (args.device == "cpu" or find_spec("cache_dit") is None):
            parser.error(f"--engine {args.engine} on several ranks needs GPUs, and pip install cache-dit")
    try:
        check_ranks(load_config(args.config).dit, world_size())
    except ValueError as error:
        parser.error(str(error))
    return args


def prepare_dit(args: argparse.Namespace, config: Config, device: torch.device) -> DiffusionTransformer3D:
    """The model on this rank's device, sharded if there are several ranks."""
    with torch.device("meta"):
        dit = DiffusionTransformer3D(**asdict(config.dit))
    if args.random_weights:
        draw_weights(dit, device)
    else:
        load_checkpoint(dit, ROOT / config.weights.dit).eval().to(device)
    dit = cast(dit, compute_dtype(device))
    if world_size() > 1:
        dit = parallelize_dit(dit, tensor_parallel_mesh(device.type)["tensor_parallel"], args.variant)
    return dit


def prepare_diffusers(config: Config, device: torch.device) -> DiffusersDiT:
    """The same of diffusers' model, with random weights."""
    with torch.device(device):
        dit = draw_weights(DiffusersDiT(config.dit), device)
    dit.cast(compute_dtype(device))
    if world_size() > 1:
        dit.shard(device.type)
    return dit


def random_text(config: Config, tokens: int, device: torch.device) -> TextEmbeds:
    """In place of a prompt's embeddings; the same on all ranks."""
    sizes = (tokens, config.dit.in_text_dim), (1, config.dit.in_text_dim2)
    return TextEmbeds(*(draw_noise(size, seed=tokens).to(device, compute_dtype(device)) for size in sizes))


@torch.no_grad()
def count_wire_bytes(dit: DiffusionTransformer3D, noise: torch.Tensor, texts: list, scale: tuple) -> float:
    """What each rank sends in one step, counted in forwards that are not compiled."""
    with Ledger(world_size()) as ledger:
        for text in texts:
            predict_velocity(dit, noise.to(text.text.dtype), torch.ones(1, device=noise.device), text, scale)
    return sum(entry.wire(world_size()) for entry in ledger.entries)


def of_all_ranks(value: object) -> list:
    values = [value]
    if world_size() > 1:
        values = [None] * world_size()
        dist.all_gather_object(values, value)
    return values


def measure_steps(sample: Callable, dit: nn.Module, warmup: int, steps: int, device: torch.device) -> dict[str, object]:
    """Run sample(steps, watch): the record's fields that are measured, of all ranks."""
    if device.type == "cuda":
        measure.forget_peak(device)
    watch = measure.Stopwatch(device)
    if not sample(warmup + steps, watch).isfinite().all():
        sys.exit("error: the latent is not finite, so the times mean nothing")
    peak = measure.peak_bytes(device)
    breakdown = measure.breakdown(lambda: sample(1), device)
    seconds = of_all_ranks(watch.seconds)
    return {
        "step_seconds": [each[warmup:] for each in seconds],
        "warmup_seconds": [each[:warmup] for each in seconds],
        "peak_bytes": of_all_ranks(peak),
        "weight_bytes": of_all_ranks(measure.weight_bytes(dit)),
        "breakdown": breakdown,
    }


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    config = load_config(args.config)
    device = torch.device(local_device(args.device))
    torch.set_num_threads(args.threads)  # alike for one rank and for many
    ours = args.engine == "ours"
    dit = prepare_dit(args, config, device) if ours else prepare_diffusers(config, device)
    sampling = config.sampling
    seconds_of_video = sampling.time_length if args.seconds is None else args.seconds
    noise = draw_noise(latent_shape(config, seconds_of_video, sampling.width, sampling.height), seed=1).to(device)
    texts = [random_text(config, tokens, device) for tokens in args.tokens[: 1 if args.unguided else 2]]
    wire_bytes = count_wire_bytes(dit, noise, texts, sampling.scale_factor) if world_size() > 1 else 0.0
    compiled = device.type == "cuda" if args.compile is None else args.compile
    if compiled:
        compile_blocks(dit) if ours else dit.compile_blocks()

    def sample(steps: int, watch: measure.Stopwatch | None = None) -> torch.Tensor:
        return generate(
            dit, noise, texts[0], None if args.unguided else texts[1], steps, sampling.guidance_weight,
            sampling.scheduler_scale, sampling.scale_factor, compute_dtype(device),
            progress=watch is not None and rank() == 0, callback=watch,
        )  # fmt: skip

    measured = measure_steps(sample, dit, args.warmup, args.steps, device)
    if rank() == 0:
        gpus = world_size() if device.type == "cuda" else 0
        record = Record(
            command=command_line(),
            config=config.name,
            device=torch.cuda.get_device_name(device) if gpus else processor(),
            gpus=gpus,
            interconnect=interconnect(gpus) if gpus else "loopback",
            layout={"cfg": 1, "kind": "tp", "size": world_size()},
            seconds_of_video=seconds_of_video,
            guided=not args.unguided,
            compiled=compiled,
            wire_bytes=wire_bytes,
            threads=torch.get_num_threads(),
            capacity=args.capacity,
            engine=args.engine,
            variant=args.variant,
            versions=versions() | ({} if ours else engine_versions()),
            **measured,
        )
        path = record.save(args.out)
        low, high = min(record.slowest()), max(record.slowest())
        what = f"{args.engine}, {config.name} on {world_size()}"
        print(f"{what}: {record.step:.3f} s a step ({low:.3f} to {high:.3f}), {path}")
    leave()


if __name__ == "__main__":
    try:
        main()
    except CheckpointError as error:
        sys.exit(f"error: {error}. Without a checkpoint: --random-weights")
