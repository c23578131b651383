"""Measure how often prompts come true: generate videos of held-out scenes, and let the scorer look at them.

python launch/evaluate_mini.py --out assets/benchmarks/evaluate_mini.json   # make evaluate; 30 minutes on 2 cores

The scenes combine an animal, a colour and a motion that never met in training. The prompts name all four attributes in
random phrasings, and every other prompt is in Russian. A second set of prompts, a fifth as large, uses phrasings that
were never trained on. Before any video is generated, the scorer must be right on rendered videos of held-out scenes.
Its answers for shuffled prompts show how often a prompt comes true by chance.
"""

import argparse
import random
import sys
from collections.abc import Callable
from datetime import date

import torch
from tqdm.auto import tqdm

from kandinsky_mini import get_T2V_pipeline
from kandinsky_mini.bench import options
from kandinsky_mini.command import run
from kandinsky_mini.config import FPS
from kandinsky_mini.files import write_json
from kandinsky_mini.pipeline import Kandinsky5T2VPipeline
from kandinsky_mini.training.dataset import held_out_scenes, render_videos
from kandinsky_mini.training.scorer import judge, load_scorer, score
from kandinsky_mini.world.captions import LANGUAGES, full_caption, unseen_caption
from kandinsky_mini.world.scenes import Scene

SECONDS = 2  # the length of each video, which is enough to see every motion
# The shares that the model should reach.
BARS = {"animal": 0.97, "colour": 0.97, "motion": 0.97, "background": 0.97, "all": 0.90}


def draw_prompts(count: int, seed: int, phrase: Callable = full_caption) -> tuple[list[Scene], list[str]]:
    """Return held-out scenes, drawn at random, and a prompt for each scene. Every other prompt is in Russian."""
    rng = random.Random(seed)
    scenes = rng.choices(held_out_scenes(), k=count)
    return scenes, [phrase(scene, LANGUAGES[i % 2], rng) for i, scene in enumerate(scenes)]


def generate_all(pipe: Kandinsky5T2VPipeline, prompts: list[str], seed: int) -> torch.Tensor:
    """Return uint8 videos (len(prompts), 3, frames, H, W), each generated from its own noise."""
    return torch.cat(
        [
            pipe(prompt, time_length=SECONDS, seed=seed + i, progress=False)
            for i, prompt in enumerate(tqdm(prompts, desc="videos"))
        ]
    )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=options.at_least(2), default=120, help="number of prompts")
    parser.add_argument(
        "--seed", type=options.at_least(0), default=0, help="seed of the scenes, the phrasings and the noise"
    )
    parser.add_argument("--config", help="YAML configuration; the default is mini")
    parser.add_argument("--scorer", default="assets/weights/mini/scorer.safetensors")
    bar = {"type": options.between(0, 1), "default": 0.99, "help": "share of rendered videos to be judged right"}
    parser.add_argument("--scorer-bar", **bar)
    parser.add_argument("--device", type=options.device, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=options.file, help="JSON file to write the shares to")
    args = parser.parse_args(argv)

    scorer = load_scorer(args.scorer)
    pipe = get_T2V_pipeline(args.device, args.config)
    scenes, prompts = draw_prompts(args.count, args.seed)
    size = (pipe.config.sampling.height, pipe.config.sampling.width)
    shares = {"rendered": score(scorer, render_videos(scenes, FPS * SECONDS + 1, size, args.seed, "cpu"), scenes)}
    if shares["rendered"]["all"] < args.scorer_bar:
        sys.exit(f"error: the scorer is right on only {shares['rendered']['all']:.1%} of the rendered videos")

    videos = generate_all(pipe, prompts, args.seed)
    right = judge(scorer, videos, scenes)
    shares["generated"] = {name: value.float().mean().item() for name, value in right.items()}
    for i, language in enumerate(LANGUAGES):
        shares[f"generated, {language}"] = {name: value[i::2].float().mean().item() for name, value in right.items()}
    shares["shuffled prompts"] = score(scorer, videos, random.Random(args.seed).sample(scenes, len(scenes)))
    others, unseen = draw_prompts(max(1, args.count // 5), args.seed + 1, unseen_caption)
    shares["unseen phrasings"] = score(scorer, generate_all(pipe, unseen, args.seed + args.count), others)

    print(f"{'':18}" + "".join(f"{column:>12}" for column in BARS))
    for name, row in (shares | {"bar": BARS}).items():
        print(f"{name:18}" + "".join(f"{row[column]:12.1%}" for column in BARS))
    if args.out:
        record = {
            "date": date.today().isoformat(),
            "device": torch.cuda.get_device_name(args.device) if args.device.startswith("cuda") else args.device,
            "torch": torch.__version__,
            "count": args.count,
            "seed": args.seed,
            "seconds_of_video": SECONDS,
            "shares": shares,
            "prompts": [
                {"prompt": prompt, "wrong": [name for name in right if name != "all" and not right[name][i]]}
                for i, prompt in enumerate(prompts)
            ],
        }
        write_json(args.out, record)


if __name__ == "__main__":
    run(main)
