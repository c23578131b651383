"""Measure what real ranks compute: on_ranks.py SEED SECONDS STEPS OUT.json

A launcher runs this script on every rank. tests/test_on_ranks.py starts it once for each number of ranks, and judges
the measurements. SECONDS and STEPS are the length of the video and the number of its sampling steps.
"""

import copy
import json
import shutil
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist
from helpers import (
    SMALL,
    TEXT_TOKENS,
    TOKENS,
    inputs_and_outputs,
    random_inputs,
    random_model,
    relative_difference,
    share_of_rank,
    sparse_model_and_inputs,
)
from torch.distributed.device_mesh import DeviceMesh

from kandinsky_mini import get_T2V_pipeline, pipeline
from kandinsky_mini.bench.random_models import draw_weights
from kandinsky_mini.build import build_dit
from kandinsky_mini.config import ROOT, Config, SamplingConfig
from kandinsky_mini.models.checkpoint import load_checkpoint
from kandinsky_mini.models.dit import DiffusionTransformer3D, compile_blocks
from kandinsky_mini.models.parallelize import PLANS, parallelize_dit
from kandinsky_mini.models.text_embeds import TextEmbeds
from kandinsky_mini.models.vae import decode, set_tiling
from kandinsky_mini.parallel.cost import predict_collectives
from kandinsky_mini.parallel.groups import gather_from_all, leave_group, rank, world_size
from kandinsky_mini.parallel.guidance import SideBySide, branches_on
from kandinsky_mini.parallel.layout import KINDS, ParallelLayout
from kandinsky_mini.parallel.ledger import Entry, Ledger, compare
from kandinsky_mini.parallel.spread import over_ranks
from kandinsky_mini.parallel.tensors import local_value
from kandinsky_mini.pipeline import Kandinsky5T2VPipeline
from kandinsky_mini.sampling import draw_noise, guided_velocity, predict_velocity
from kandinsky_mini.training.fresh_models import new_vae


def difference(output: torch.Tensor, reference: torch.Tensor) -> float:
    """Return the largest relative difference on any rank."""
    return max(gather_from_all(relative_difference(output, reference)))


def tp_mesh() -> DeviceMesh:
    return ParallelLayout("tp", world_size()).device_mesh("cpu")


def layouts_and_plans() -> dict[str, tuple[ParallelLayout, str]]:
    """Return all plans, each with a layout of these ranks. "queries" is Ulysses on a mesh of two dimensions."""
    runs = {plan: (ParallelLayout("tp", world_size()), plan) for plan in PLANS}
    return runs | {"queries": (ParallelLayout("ulysses", world_size() // 2, queries=2), "ulysses")}


def shard(model: torch.nn.Module, layout: ParallelLayout, plan: str) -> torch.nn.Module:
    return parallelize_dit(copy.deepcopy(model), layout.device_mesh("cpu")[layout.dimensions], plan)


def parity(model: torch.nn.Module, inputs: tuple, layout: ParallelLayout, plan: str) -> dict[str, float]:
    """Return how far each sharded module is from the unsharded one, when both are given the same inputs."""
    seen = inputs_and_outputs(copy.deepcopy(model), inputs)
    sharded = shard(model, layout, plan)
    differences = {}
    for name, whole in seen.items():
        args, output = share_of_rank(plan, name, *whole, rank(), world_size())
        differences[name] = difference(sharded.get_submodule(name)(*args), output)
    return differences


def ledger(model: torch.nn.Module, inputs: tuple, layout: ParallelLayout, plan: str) -> dict[str, object]:
    predicted = predict_collectives(model.config, TOKENS, TEXT_TOKENS, 4, layout.size, plan, layout.queries)
    sharded = shard(model, layout, plan)
    with Ledger(sharded) as counted:
        sharded(*inputs)
    return verdict(predicted, counted.entries)


def sparse(model: torch.nn.Module, inputs: tuple, layout: ParallelLayout, plan: str) -> dict[str, object]:
    """Return how far a sharded model with NABLA is from the whole one, and whether its collectives are as predicted."""
    output = shard(model, layout, plan)(*inputs)
    return ledger(model, inputs, layout, plan) | {"difference": difference(output, model(*inputs))}


def verdict(predicted: list[Entry], counted: list[Entry]) -> dict[str, object]:
    """Compare collectives on each rank. Return whether all are right, and this rank's table."""
    right = all(gather_from_all(Counter(counted) == Counter(predicted)))
    return {"right": right, "table": compare(predicted, counted)}


def guidance(model: torch.nn.Module, inputs: tuple, kind: str) -> dict[str, object]:
    """Run the branches of the guidance side by side, with texts of different lengths. Compare with one after the other.

    "exact" says whether every rank gets the very same numbers as if its group had computed both branches itself.
    """
    layout = ParallelLayout(kind, world_size() // 2, cfg=2)
    mesh = layout.device_mesh("cpu")
    sharded = parallelize_dit(copy.deepcopy(model), mesh[layout.dimensions], layout.plan)
    x, text, pooled, time, *_ = inputs
    texts = [TextEmbeds(text, pooled), TextEmbeds(text[:-3] + 0.5, pooled - 0.5)]
    settings = SamplingConfig(0, 0, 0, num_steps=1, guidance_weight=5.0, scheduler_scale=1.0, scale_factor=(1, 1, 1))
    step = partial(guided_velocity, x=x, time=time / 1000, text=texts[0], null_text=texts[1], sampling=settings)
    with Ledger(sharded) as counted:
        side_by_side = step(sharded, branches=branches_on(mesh))
    mine = len(texts[mesh.get_local_rank("cfg_parallel")].text)
    exchange = Entry("", "all_gather", 2 * x.numel() * 4, ranks=2)
    predicted = [*predict_collectives(model.config, TOKENS, mine, 4, layout.size, layout.plan), exchange]
    return verdict(predicted, counted.entries) | {
        "difference": difference(side_by_side, step(model)),
        "exact": all(gather_from_all(torch.equal(side_by_side, step(sharded)))),
    }


def compiled(model: torch.nn.Module, inputs: tuple, layout: ParallelLayout, plan: str) -> float:
    """Return how far the sharded model with compiled blocks is from the unsharded, uncompiled one, for two prompts."""
    sharded = shard(model, layout, plan)
    compile_blocks(sharded)
    x, text, pooled, time, positions, _ = inputs
    shorter = (x, text[:-2], pooled, time, positions, torch.arange(len(text) - 2))
    return max(difference(sharded(*each), model(*each)) for each in (inputs, shorter))


def whole_mini(sharded: torch.nn.Module, unsharded: torch.nn.Module) -> float:
    """Return how far apart the two trained models are on half a second of noise, at a random time of the sampling."""
    text = 0.5 * torch.randn(9, unsharded.config.in_text_dim)
    pooled = torch.randn(1, unsharded.config.in_text_dim2)
    x, time = torch.randn(4, 16, 24, unsharded.config.in_visual_dim), torch.rand(1)
    outputs = [predict_velocity(dit, x, time, TextEmbeds(text, pooled)) for dit in (sharded, unsharded)]
    return difference(*outputs)


def unsharded_mini(config: Config) -> DiffusionTransformer3D:
    return load_checkpoint(DiffusionTransformer3D(config.dit), ROOT / config.weights.dit)


def drawn(inputs: tuple) -> tuple[float, int]:
    """Return how far a model is that was drawn in shards from one that was drawn whole, and the memory it wastes."""
    fill = partial(draw_weights, device=torch.device("cpu"))
    sharded, whole = (build_dit(SMALL, torch.device("cpu"), fill, mesh) for mesh in (tp_mesh(), None))
    return difference(sharded(*inputs), whole(*inputs)), spare_bytes(sharded)


def spare_bytes(model: torch.nn.Module) -> int:
    """Return the bytes that this rank holds in memory beyond its share of the weights."""
    shares = [local_value(parameter.detach()) for parameter in model.parameters()]
    return sum(share.untyped_storage().nbytes() - share.nbytes for share in shares)


def drawn_seeds(pipe: Kandinsky5T2VPipeline) -> list[int]:
    """Return the seed from which each rank draws its noise when the caller gives none."""
    with mock.patch.object(pipeline, "draw_noise", side_effect=draw_noise) as draw:
        pipe("a cat in a red hat", time_length=0, num_steps=1, seed=None, progress=False)
    return gather_from_all(draw.call_args.args[1])


def with_noise_of_its_own(pipe: Kandinsky5T2VPipeline, seed: int) -> torch.Tensor | None:
    """Return the video of a classic mistake: every rank starts from different noise."""
    with mock.patch.object(pipeline, "draw_noise", lambda shape, seed: draw_noise(shape, seed + rank())):
        return pipe("a cat in a red hat", time_length=1, num_steps=4, seed=seed, progress=False)


def other_layouts(seed: int) -> tuple[bool, dict[str, torch.Tensor | None]]:
    """Make a video with each other layout. Return whether the branches ran side by side where they should."""
    ranks = world_size()
    videos, side_by_side = {}, []
    for name in (f"tp_sp{ranks}", f"ulysses{ranks}", f"cfg2-tp{ranks // 2}", f"ulysses{ranks // 2}x2"):
        pipe = get_T2V_pipeline("cpu", layout=name)
        videos[name] = pipe("a cat in a red hat", time_length=0, num_steps=4, seed=seed, progress=False)
        side_by_side.append(isinstance(pipe.branches, SideBySide) == name.startswith("cfg2"))
    return all(side_by_side), videos


def decoded_in_pieces() -> bool:
    """Return whether rank 0 alone gets a video, and whether it is bit for bit what it decodes without the others."""
    vae = set_tiling(new_vae(16), True).eval()
    latents = torch.randn(1, 17, 2, 3, 16)  # eight pieces: the last rank has the short last one besides a whole one
    shared, alone = decode(vae, latents, over_ranks), decode(vae, latents)
    return all(gather_from_all(torch.equal(shared, alone) if rank() == 0 else shared is None))


def spread_pieces() -> bool:
    """Return whether results come back as they are: in their order, of any shape and dtype, and not contiguous."""

    def function(piece: torch.Tensor) -> torch.Tensor:
        return (2 * piece.double()).T

    pieces = [torch.full((2, number + 1), number) for number in range(2 * world_size() + 1)]
    results, expected = over_ranks(function, pieces), list(map(function, pieces))
    if rank() == 0:
        equal = [torch.equal(*pair) and pair[0].dtype == pair[1].dtype for pair in zip(results, expected, strict=True)]
    return all(gather_from_all(all(equal) if rank() == 0 else results is None))


@torch.no_grad()
def main(seed: int, seconds: int, steps: int, out: Path) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(seed)  # so that every rank has the same weights and inputs
    pipe = get_T2V_pipeline("cpu")
    model = random_model()
    inputs = random_inputs(model)
    with_nabla = sparse_model_and_inputs()
    measured = {"ranks": world_size(), "seed": seed, "parity": {}, "ledger": {}, "guidance": {}, "sparse": {}}
    runs = layouts_and_plans()
    for name, run in runs.items():
        measured["parity"][name] = parity(model, inputs, *run)
        measured["ledger"][name] = ledger(model, inputs, *run)
        measured["sparse"][name] = sparse(*with_nabla, *run)
    for kind in KINDS:
        measured["guidance"][kind] = guidance(model, inputs, kind)
    measured["sparse"]["guidance"] = guidance(*with_nabla, "tp")
    # Compiling takes long, so two ranks have to be enough. It needs a C++ compiler and a path without spaces.
    if world_size() == 2 and shutil.which("c++") and " " not in torch.__file__:
        measured["compiled"] = {name: compiled(model, inputs, *run) for name, run in runs.items() if name != "minimal"}
    measured["drawn"], measured["spare_bytes_drawn"] = drawn(inputs)
    measured["spare_bytes_loaded"] = spare_bytes(pipe.dit)
    measured["mini"] = whole_mini(pipe.dit, unsharded_mini(pipe.config))
    video = pipe("a cat in a red hat", time_length=seconds, num_steps=steps, seed=seed, progress=False)
    measured["decoded_in_pieces"] = decoded_in_pieces()
    measured["spread_pieces"] = spread_pieces()
    measured["seeds"] = drawn_seeds(pipe)
    spoilt = with_noise_of_its_own(pipe, seed)
    measured["side_by_side"], others = other_layouts(seed)
    names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]  # exists on Linux only
    measured["gloo_workers"] = names.count("pt_gloo_runloop") / len(dist.distributed_c10d._world.pg_map)
    if rank() == 0:
        torch.save({"video": video, "spoilt": spoilt, "others": others}, out.with_suffix(".pt"))
        out.write_text(json.dumps(measured))
    leave_group()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]), Path(sys.argv[4]))
