"""How long a sampling step takes, on one process or on many; writes one record as JSON:

python launch/benchmark.py --config kandinsky_mini/configs/lite_5s.yaml --random-weights
torchrun --nproc-per-node 2 launch/benchmark.py --config kandinsky_mini/configs/lite_5s.yaml --random-weights

It is the pipeline's own sampling loop, guided, in the talk's plan, from prepared text embeddings. On a GPU the visual
blocks are compiled: the first warm-up step shows how long that takes. The weights' values do not matter for the time,
so that --random-weights needs no checkpoint. launch/sweep.py runs this for each number of ranks that fits.
"""

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from kandinsky_mini import cast  # noqa: E402
from kandinsky_mini.config import ROOT, Config, load_config  # noqa: E402
from kandinsky_mini.distributed import (  # noqa: E402
    leave,
    local_device,
    rank,
    tensor_parallel_mesh,
    world_size,
)
from kandinsky_mini.lab import measure  # noqa: E402
from kandinsky_mini.lab.capacity import processor  # noqa: E402
from kandinsky_mini.lab.full_size import draw_weights  # noqa: E402
from kandinsky_mini.lab.ledger import Ledger  # noqa: E402
from kandinsky_mini.lab.records import FOLDER, Record, command_line, interconnect  # noqa: E402
from kandinsky_mini.models.checkpoint import load_checkpoint  # noqa: E402
from kandinsky_mini.models.dit import DiffusionTransformer3D, compile_blocks  # noqa: E402
from kandinsky_mini.models.parallelize import VARIANTS, check_divisible, parallelize_dit  # noqa: E402
from kandinsky_mini.models.text_embedders import TextEmbeds  # noqa: E402
from kandinsky_mini.pipeline import latent_shape  # noqa: E402
from kandinsky_mini.sampling import draw_noise, generate, predict_velocity  # noqa: E402


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", help="YAML; default: mini")
    parser.add_argument("--random-weights", action="store_true", help="no checkpoint is read")
    parser.add_argument("--seconds", type=int, help="of video; default: the configuration's")
    parser.add_argument("--steps", type=int, default=5, help="that are timed")
    parser.add_argument("--warmup", type=int, default=1, help="steps before")
    parser.add_argument("--tokens", type=int, nargs=2, default=(200, 60), help="of the prompt and the negative one")
    parser.add_argument("--unguided", action="store_true", help="one forward a step")
    parser.add_argument("--variant", choices=VARIANTS, default="talk", help="which plan")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help="the visual blocks; default: on GPUs")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1, help="of each rank, on the CPU")
    parser.add_argument("--capacity", type=float, help="noted in the record, see sweep.py")
    parser.add_argument("--out", type=Path, default=FOLDER, help="the folder of the record")
    return parser.parse_args(argv)


def prepare_dit(args: argparse.Namespace, config: Config, device: torch.device) -> DiffusionTransformer3D:
    """The model on this rank's device, sharded if there are several ranks."""
    with torch.device("meta"):
        dit = DiffusionTransformer3D(**asdict(config.dit))
    check_divisible(dit, world_size())
    if args.random_weights:
        draw_weights(dit, device)
    else:
        load_checkpoint(dit, ROOT / config.weights.dit).eval().to(device)
    dit = cast(dit, torch.bfloat16 if device.type == "cuda" else torch.float32)
    if world_size() > 1:
        dit = parallelize_dit(dit, tensor_parallel_mesh(device.type)["tensor_parallel"], args.variant)
    return dit


def random_text(config: Config, tokens: int, device: torch.device) -> TextEmbeds:
    """In place of a prompt's embeddings; the same on all ranks."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    sizes = (tokens, config.dit.in_text_dim), (1, config.dit.in_text_dim2)
    return TextEmbeds(*(draw_noise(size, seed=tokens).to(device, dtype) for size in sizes))


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


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    config = load_config(args.config)
    device = torch.device(local_device(args.device) if world_size() > 1 else args.device)
    torch.set_num_threads(args.threads)  # alike for one rank and for many
    dit = prepare_dit(args, config, device)
    sampling = config.sampling
    seconds_of_video = sampling.time_length if args.seconds is None else args.seconds
    noise = draw_noise(latent_shape(config, seconds_of_video, sampling.width, sampling.height), seed=1).to(device)
    texts = [random_text(config, tokens, device) for tokens in args.tokens[: 1 if args.unguided else 2]]
    wire_bytes = count_wire_bytes(dit, noise, texts, sampling.scale_factor) if world_size() > 1 else 0.0
    compiled = device.type == "cuda" if args.compile is None else args.compile
    if compiled:
        compile_blocks(dit)

    def sample(steps: int, watch: measure.Stopwatch | None = None) -> torch.Tensor:
        return generate(
            dit, noise, texts[0], None if args.unguided else texts[1], steps, sampling.guidance_weight,
            sampling.scheduler_scale, sampling.scale_factor, noise.dtype if device.type == "cpu" else torch.bfloat16,
            progress=watch is not None and rank() == 0, callback=watch,
        )  # fmt: skip

    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    watch = measure.Stopwatch(device)
    if not sample(args.warmup + args.steps, watch).isfinite().all():
        sys.exit("error: the latent is not finite, so the times mean nothing")
    peak = measure.peak_bytes(device)
    spent = measure.breakdown(lambda: sample(1), device)

    seconds = of_all_ranks(watch.seconds)
    peaks = of_all_ranks(peak)
    weights = of_all_ranks(measure.weight_bytes(dit))
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
            step_seconds=[each[args.warmup :] for each in seconds],
            warmup_seconds=[each[: args.warmup] for each in seconds],
            peak_bytes=peaks,
            weight_bytes=weights,
            breakdown=spent,
            wire_bytes=wire_bytes,
            threads=torch.get_num_threads(),
            capacity=args.capacity,
        )
        path = record.save(args.out)
        low, high = min(record.slowest()), max(record.slowest())
        print(f"{config.name} on {world_size()}: {record.step:.3f} s a step ({low:.3f} to {high:.3f}), {path}")
    leave()


if __name__ == "__main__":
    main()
