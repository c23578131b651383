"""Generate a video from a prompt, on one process or on many:

python launch/generate.py --prompt "a cat in a red hat" --path ./test.mp4
torchrun --nproc-per-node 2 launch/generate.py --prompt "a cat in a red hat" --path ./test.mp4
"""

import argparse
import os
import sys
import time
import warnings
from pathlib import Path

FIRST = os.environ.get("RANK", "0") == "0"  # only the first of several ranks speaks


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt", default="a cat in a red hat")
    parser.add_argument("--path", default="./test.mp4", help=".mp4, or .png with --time-length 0")
    parser.add_argument("--time-length", type=int, help="seconds; 0 gives an image")
    parser.add_argument("--width", type=int, help="pixels, a multiple of 16")
    parser.add_argument("--height", type=int, help="pixels, a multiple of 16")
    parser.add_argument("--num-steps", type=int)
    parser.add_argument("--guidance-weight", type=float)
    parser.add_argument("--scheduler-scale", type=float)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--config", help="YAML configuration (default: mini)")
    parser.add_argument("--device", help="device for all models (default: cuda if there is a GPU, else cpu)")
    parser.add_argument(
        "--layout", help="how the CrossDiT is split over the ranks, such as tp2 (default: tp over all ranks)"
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
        print(f'Generating "{args.prompt}"', flush=True)

    import torch

    from kandinsky_mini import get_T2V_pipeline
    from kandinsky_mini.models.dit import compile_blocks
    from kandinsky_mini.parallel.groups import leave_group

    warnings.formatwarning = lambda message, *_: f"{message}\n"  # without the line of code that gave the warning
    pipe = get_T2V_pipeline(args.device or ("cuda" if torch.cuda.is_available() else "cpu"), args.config, args.layout)
    if args.compile:
        compile_blocks(pipe.dit)
    video = pipe(
        args.prompt,
        time_length=args.time_length,
        width=args.width,
        height=args.height,
        guidance_weight=args.guidance_weight,
        num_steps=args.num_steps,
        scheduler_scale=args.scheduler_scale,
        seed=args.seed,
        save_path=args.path,
    )
    if FIRST:
        print(f"{tuple(video.shape)} saved to {Path(args.path).resolve()}")
        print(f"TIME ELAPSED: {time.perf_counter() - started:.1f} s")
    leave_group()


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:  # tell a person what to change, not where in the code it was raised
        from kandinsky_mini.parallel.groups import is_first_to_fail

        sys.exit(f"error: {error}" if is_first_to_fail() else 1)
    except (RuntimeError, MemoryError) as error:  # torch says "CUDA out of memory" or "can't allocate memory"
        if "memory" not in str(error):
            if "imed out" in str(error):
                error.add_note("A rank waits for the others for 120 s, or as long as KANDINSKY_TIMEOUT_SECONDS says.")
            raise
        sys.exit(f"error: not enough memory for a video of this size: {str(error).splitlines()[0]}")
    except KeyboardInterrupt:
        sys.exit(130)
