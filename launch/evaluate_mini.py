"""How often do prompts come true? Generates videos of held-out scenes and lets the scorer look at them.

python launch/evaluate_mini.py --out assets/benchmarks/evaluate_mini.json   # make evaluate; 30 minutes on 2 cores

The scenes combine an animal, a colour and a motion that never met in training. The prompts name all four
attributes, in random phrasings, every other one in Russian; after them as many phrasings that were never trained on as
a fifth of --count. The scorer must first be right on rendered videos of
held-out scenes, and its answers for shuffled prompts show what chance gives.
"""

import argparse
import json
import random
import sys
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch
from tqdm.auto import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from kandinsky_mini import get_T2V_pipeline  # noqa: E402
from kandinsky_mini.pipeline import Kandinsky5T2VPipeline  # noqa: E402
from kandinsky_mini.world.captions import LANGUAGES, full_caption, unseen_caption  # noqa: E402
from kandinsky_mini.world.dataset import held_out_scenes, render_videos  # noqa: E402
from kandinsky_mini.world.scenes import Scene  # noqa: E402
from kandinsky_mini.world.scorer import judge, load_scorer, score  # noqa: E402

SECONDS = 2  # of video: enough to see every motion
BARS = {"animal": 0.97, "colour": 0.97, "motion": 0.97, "background": 0.97, "all": 0.90}  # what it should reach


def draw_prompts(count: int, seed: int, phrase: Callable = full_caption) -> tuple[list[Scene], list[str]]:
    """Held-out scenes, drawn at random, and a prompt for each, every other one in Russian."""
    rng = random.Random(seed)
    scenes = rng.choices(held_out_scenes(), k=count)
    return scenes, [phrase(scene, LANGUAGES[i % 2], rng) for i, scene in enumerate(scenes)]


def generate_all(pipe: Kandinsky5T2VPipeline, prompts: list[str], seed: int) -> torch.Tensor:
    """uint8 videos (len(prompts), 3, frames, H, W), each from its own noise."""
    return torch.cat(
        [
            pipe(prompt, time_length=SECONDS, seed=seed + i, progress=False)
            for i, prompt in enumerate(tqdm(prompts, desc="videos"))
        ]
    )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=120, help="prompts")
    parser.add_argument("--seed", type=int, default=0, help="of scenes, phrasings and noise")
    parser.add_argument("--config", help="YAML; default: mini")
    parser.add_argument("--scorer", default="assets/weights/mini/scorer.safetensors")
    parser.add_argument("--scorer-bar", type=float, default=0.99, help="share of rendered videos it must get right")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, help="write the shares as JSON")
    args = parser.parse_args(argv)

    scorer = load_scorer(args.scorer)
    pipe = get_T2V_pipeline(args.device, args.config)
    scenes, prompts = draw_prompts(args.count, args.seed)
    size = (pipe.config.sampling.height, pipe.config.sampling.width)
    shares = {"rendered": score(scorer, render_videos(scenes, 24 * SECONDS + 1, size, args.seed, "cpu"), scenes)}
    if shares["rendered"]["all"] < args.scorer_bar:
        sys.exit(f"error: the scorer is right on {shares['rendered']['all']:.1%} of rendered videos only")

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
        args.out.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
