"""Runs on every rank of a launcher: on_ranks.py SEED SECONDS STEPS OUT.json, of a video and where to write.

tests/test_on_ranks.py starts it, once for each number of ranks, and judges.
"""

import copy
import dataclasses
import json
import shutil
import sys
from collections import Counter
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist
from test_parallelize import random_inputs, random_model

from kandinsky_mini import get_T2V_pipeline, pipeline
from kandinsky_mini.config import ROOT, Config
from kandinsky_mini.distributed import leave, rank, tensor_parallel_mesh, world_size
from kandinsky_mini.lab.ledger import Ledger, compare, predict_tensor_parallel
from kandinsky_mini.models.checkpoint import load_checkpoint
from kandinsky_mini.models.dit import DiffusionTransformer3D, compile_blocks
from kandinsky_mini.models.parallelize import VARIANTS, parallelize_dit
from kandinsky_mini.models.text_embedders import TextEmbeds
from kandinsky_mini.pipeline import Kandinsky5T2VPipeline
from kandinsky_mini.sampling import draw_noise, predict_velocity

MODULES = (
    *("time_embeddings", "text_embeddings", "pooled_text_embeddings", "visual_embeddings"),
    *("visual_transformer_blocks.0", "visual_transformer_blocks.1", "out_layer", ""),
)


def difference(output: torch.Tensor, reference: torch.Tensor) -> float:
    """The largest difference on any rank, as a share of the largest value."""
    worst = (output - reference).abs().max() / reference.abs().max()
    dist.all_reduce(worst, dist.ReduceOp.MAX)
    return worst.item()


def inputs_and_outputs(model: torch.nn.Module, inputs: tuple) -> dict[str, tuple]:
    """What each of MODULES gets and gives in one forward of the unsharded model."""
    seen = {}
    for name in MODULES:
        # The hook is given up with the copy.
        model.get_submodule(name).register_forward_hook(
            lambda module, args, output, name=name: seen.__setitem__(name, (args, output))
        )
    model(*inputs)
    return seen


def parity(model: torch.nn.Module, inputs: tuple, variant: str) -> dict[str, float]:
    """How far each sharded module is from the unsharded one, with the inputs that the latter got."""
    seen = inputs_and_outputs(copy.deepcopy(model), inputs)
    sharded = parallelize_dit(copy.deepcopy(model), tensor_parallel_mesh("cpu"), variant)
    return {name: difference(sharded.get_submodule(name)(*args), output) for name, (args, output) in seen.items()}


def ledger(model: torch.nn.Module, inputs: tuple, variant: str) -> dict[str, object]:
    tokens, text_tokens = (model.visual_embeddings(inputs[0]).shape[-2], inputs[1].shape[-2])
    predicted = predict_tensor_parallel(model, tokens, text_tokens, bytes_each=4)
    sharded = parallelize_dit(copy.deepcopy(model), tensor_parallel_mesh("cpu"), variant)
    with Ledger(world_size(), sharded) as counted:
        sharded(*inputs)
    right = Counter(counted.entries) == Counter(predicted)
    return {"right": right, "table": compare(predicted, counted.entries, world_size())}


def compiled(model: torch.nn.Module, inputs: tuple) -> float:
    """How far the sharded model, its blocks compiled, is from the unsharded one, which is not; with two prompts."""
    sharded = parallelize_dit(copy.deepcopy(model), tensor_parallel_mesh("cpu"))
    compile_blocks(sharded)
    x, text, pooled, time, positions, _ = inputs
    shorter = (x, text[:-2], pooled, time, positions, torch.arange(len(text) - 2))
    return max(difference(sharded(*each), model(*each)) for each in (inputs, shorter))


def whole_mini(sharded: torch.nn.Module, unsharded: torch.nn.Module) -> float:
    """The trained model on noise of half a second, halfway from noise to picture."""
    text = 0.5 * torch.randn(9, unsharded.text_embeddings.in_layer.in_features)
    pooled = torch.randn(1, unsharded.pooled_text_embeddings.in_layer.in_features)
    x, time = torch.randn(4, 16, 24, unsharded.in_visual_dim), torch.rand(1)
    outputs = [predict_velocity(dit, x, time, TextEmbeds(text, pooled)) for dit in (sharded, unsharded)]
    return difference(*outputs)


def unsharded_mini(config: Config) -> DiffusionTransformer3D:
    return load_checkpoint(DiffusionTransformer3D(**dataclasses.asdict(config.dit)), ROOT / config.weights.dit)


def drawn_seeds(pipe: Kandinsky5T2VPipeline) -> list[int]:
    """The seed that each rank draws its noise from, when the caller leaves it open."""
    with mock.patch.object(pipeline, "draw_noise", side_effect=draw_noise) as draw:
        pipe("a cat in a red hat", time_length=0, num_steps=1, seed=None, progress=False)
    seeds = [None] * world_size()
    dist.all_gather_object(seeds, draw.call_args.args[1])
    return seeds


def with_noise_of_its_own(pipe: Kandinsky5T2VPipeline, seed: int) -> torch.Tensor | None:
    """The video of a classic mistake: every rank starts from other noise."""
    with mock.patch.object(pipeline, "draw_noise", lambda shape, seed: draw_noise(shape, seed + rank())):
        return pipe("a cat in a red hat", time_length=1, num_steps=4, seed=seed, progress=False)


@torch.no_grad()
def main(seed: int, seconds: int, steps: int, out: Path) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(seed)  # the same weights and inputs on every rank
    pipe = get_T2V_pipeline("cpu")
    model = random_model()
    inputs = random_inputs(model)
    measured = {"ranks": world_size(), "seed": seed, "parity": {}, "ledger": {}}
    for variant in VARIANTS:
        measured["parity"][variant] = parity(model, inputs, variant)
        measured["ledger"][variant] = ledger(model, inputs, variant)
    # Two ranks are enough, for it takes its time. PyTorch's compiler needs one of C++, and a path without spaces.
    if world_size() == 2 and shutil.which("c++") and " " not in torch.__file__:
        measured["compiled"] = compiled(model, inputs)
    measured["mini"] = whole_mini(pipe.dit, unsharded_mini(pipe.config))
    video = pipe("a cat in a red hat", time_length=seconds, num_steps=steps, seed=seed, progress=False)
    measured["seeds"] = drawn_seeds(pipe)
    spoilt = with_noise_of_its_own(pipe, seed)
    names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]  # Linux
    measured["gloo_workers"] = names.count("pt_gloo_runloop")
    if rank() == 0:
        torch.save({"video": video, "spoilt": spoilt}, out.with_suffix(".pt"))
        out.write_text(json.dumps(measured))
    leave()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]), Path(sys.argv[4]))
