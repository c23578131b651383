"""Generate a video from a prompt, on one process or on many:

python launch/generate.py --prompt "a cat in a red hat" --path ./test.mp4
torchrun --nproc-per-node 2 launch/generate.py --prompt "a cat in a red hat" --path ./test.mp4
"""

import argparse
import time
import warnings
from pathlib import Path

from kandinsky_mini.command import FIRST, run


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt", default="a cat in a red hat")
    parser.add_argument("--negative-prompt", help="what guidance moves away from (default: the configuration's)")
    parser.add_argument("--path", default="./test.mp4", help=".mp4, or .png with --time-length 0")
    parser.add_argument("--latent", help="decode this file, which an earlier run kept, instead of sampling")
    parser.add_argument("--time-length", type=int, help="seconds; 0 gives an image")
    parser.add_argument("--width", type=int, help="pixels, a multiple of 16 (with sparse attention, of 128)")
    parser.add_argument("--height", type=int, help="pixels, a multiple of 16 (with sparse attention, of 128)")
    parser.add_argument("--num-steps", type=int)
    parser.add_argument("--guidance-weight", type=float)
    parser.add_argument("--scheduler-scale", type=float)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--expand-prompts",
        action=argparse.BooleanOptionalAction,
        help="let Qwen describe the prompt in more detail first (default: what the configuration says)",
    )
    parser.add_argument("--config", help="YAML configuration (default: mini)")
    parser.add_argument("--weights", help="folder with the released weights (default: what the configuration names)")
    parser.add_argument(
        "--offload", action="store_true", help="let each model wait in the CPU's memory while others work"
    )
    parser.add_argument("--device", help="device for all models (default: cuda if there is a GPU, else cpu)")
    parser.add_argument(
        "--layout", help="how the CrossDiT is split over the ranks, such as cfg2-tp4 (default: tp over all ranks)"
    )
    parser.add_argument(
        "--attention",
        default="auto",
        help="its kernel: flash4, cudnn, sdpa or auto, which takes the first that can run",
    )
    parser.add_argument(
        "--compile",
        action="store_true",
        help="compile the visual blocks, which makes the first step slower and the others faster",
    )
    # torch.distributed.launch, the talk's launcher, passes this option. The environment says the same.
    parser.add_argument("--local-rank", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    started = time.perf_counter()
    if FIRST:
        print(f"Decoding {args.latent}" if args.latent else f'Generating "{args.prompt}"', flush=True)

    import torch

    from kandinsky_mini.parallel.groups import leave_group

    warnings.formatwarning = lambda message, *_: f"{message}\n"  # without the line of code that gave the warning
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    video = decode_kept(args, device) if args.latent else generate(args, device)
    if FIRST:
        print(f"{tuple(video.shape)} saved to {Path(args.path).resolve()}")
        print(f"TIME ELAPSED: {time.perf_counter() - started:.1f} s")
    leave_group()


def generate(args: argparse.Namespace, device: str):
    """Generate and save a video. Rank 0 returns it."""
    from kandinsky_mini import get_T2V_pipeline
    from kandinsky_mini.build import resolve_devices, resolve_layout
    from kandinsky_mini.config import load_config
    from kandinsky_mini.models.dit import check_compiler, compile_blocks
    from kandinsky_mini.validation import check_request

    asked = {
        "time_length": args.time_length,
        "width": args.width,
        "height": args.height,
        "guidance_weight": args.guidance_weight,
        "num_steps": args.num_steps,
        "scheduler_scale": args.scheduler_scale,
        "seed": args.seed,
        "negative_caption": args.negative_prompt,
        "expand_prompts": args.expand_prompts,
        "save_path": args.path,
    }
    config = load_config(args.config)
    layout = resolve_layout(args.layout, config.dit)
    check_request(config, layout, args.prompt, **asked)  # a mistake shows before the models are loaded
    if args.compile:
        check_compiler(resolve_devices(device)["dit"])
    pipe = get_T2V_pipeline(device, args.config, layout, args.attention, args.weights, args.offload)
    if args.compile:
        compile_blocks(pipe.dit, pipe.device_map["dit"])
    return pipe(args.prompt, **asked)


def decode_kept(args: argparse.Namespace, device: str):
    """Decode a latent that an earlier run kept, save the video, and return it. Only the VAE is loaded."""
    from kandinsky_mini.build import build_decoder
    from kandinsky_mini.config import load_config
    from kandinsky_mini.parallel.groups import world_size
    from kandinsky_mini.saving import load_latent, save
    from kandinsky_mini.validation import check_save_path

    if world_size() > 1:
        raise ValueError("--latent is decoded by one process, not by several ranks: start it with python")
    latent = load_latent(args.latent, load_config(args.config).dit.out_visual_dim)
    path = check_save_path(args.path, "image" if len(latent) == 1 else "video")
    video = build_decoder(device, args.config, args.weights).decode(latent)
    save(video, path)
    return video


if __name__ == "__main__":
    run(main)
