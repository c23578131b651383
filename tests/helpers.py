"""Helpers that several tests share: small random models, their inputs, bars for differences, and paths."""

import dataclasses
from pathlib import Path

import torch

from kandinsky_mini.bench.records import Record
from kandinsky_mini.config import DiTConfig, NablaConfig
from kandinsky_mini.models.dit import DiffusionTransformer3D
from kandinsky_mini.models.nabla import NablaAttention, coarse_scores, sparse_attentions
from kandinsky_mini.sampling import rope_positions

ROOT = Path(__file__).resolve().parent.parent
LESSONS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
TALKS = sorted((ROOT / "notebooks").glob("talk*.ipynb"))

# Differences in float32 must stay below these bars. They are shares of the largest value.
MODULE_BAR, MODEL_BAR = 1e-5, 1e-4
# Tests compare these modules one by one. The empty name stands for the whole model.
MODULES = (
    *("time_embeddings", "text_embeddings", "pooled_text_embeddings", "visual_embeddings"),
    *("visual_transformer_blocks.0", "visual_transformer_blocks.1", "out_layer", ""),
)
SMALL = DiTConfig(
    in_visual_dim=4,
    in_text_dim=24,
    in_text_dim2=20,
    time_dim=32,
    out_visual_dim=4,
    patch_size=(1, 2, 2),
    model_dim=128,
    ff_dim=256,
    num_text_blocks=1,
    num_visual_blocks=2,
    axes_dims=(4, 6, 6),
    visual_cond=False,
)
# NABLA decides where a sum reaches a share. Inputs for which a sum comes closer than this are drawn again, because two
# right ways to compute it round differently, and could keep different blocks.
SAFE_MARGIN = 1e-5
TOKENS, TEXT_TOKENS = 4 * 2 * 4, 7  # the numbers of visual and of text tokens in random_inputs


def read(*parts: str) -> str:
    """Read a text file of the repository."""
    return ROOT.joinpath(*parts).read_text(encoding="utf-8")


def gpu(record: Record) -> str:
    """Return the kind of a record's GPU, such as H200."""
    return record.device.split()[1]


def spread(record: Record) -> str:
    """Return the seconds of a record's step as pages quote them: the median, the fastest and the slowest."""
    return f"{record.step:.3f} ({min(record.slowest()):.3f} to {max(record.slowest()):.3f})"


def random_model(**changes) -> DiffusionTransformer3D:
    """Build a model of SMALL's sizes, apart from the changes, with random weights everywhere.

    A fresh model has zeros in its modulation, which would let any error pass.
    """
    model = DiffusionTransformer3D(dataclasses.replace(SMALL, **changes)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    return model


def random_inputs(model: DiffusionTransformer3D) -> tuple:
    """Draw the arguments of one forward: a latent of 4 frames of 4 x 8, and a text of TEXT_TOKENS tokens."""
    x, text = torch.randn(4, 4, 8, SMALL.in_visual_dim), torch.randn(TEXT_TOKENS, SMALL.in_text_dim)
    pooled, time = torch.randn(1, SMALL.in_text_dim2), torch.rand(1) * 1000
    return x, text, pooled, time, rope_positions(model, x), torch.arange(TEXT_TOKENS)


@torch.no_grad()
def sparse_model_and_inputs() -> tuple[DiffusionTransformer3D, tuple]:
    """Draw a model with NABLA and its inputs, with a safe margin."""
    while True:
        model = random_model(nabla=NablaConfig(P=0.5, window=(1, 1, 1), block=(2, 1)))
        inputs = random_inputs(model)
        if smallest_margin(model, inputs) > SAFE_MARGIN:
            return model, inputs


def margin(q: torch.Tensor, k: torch.Tensor, config: NablaConfig) -> float:
    """Return how far the shares that NABLA sums up are from the one at which it decides, at least.

    q and k are (S, heads, head_dim).
    """
    scores = coarse_scores(q.transpose(0, 1), k.transpose(0, 1), config.block_tokens)
    weights = scores.softmax(-1).sort(-1).values
    return (weights.cumsum(-1) - (1 - config.P)).abs().min().item()


def smallest_margin(model: DiffusionTransformer3D, inputs: tuple) -> float:
    """Return the smallest margin of all blocks of a model."""
    margins = []

    def measure(module: NablaAttention, args: tuple) -> None:
        margins.append(margin(*args[:2], module.config))

    hooks = [module.register_forward_pre_hook(measure) for module in sparse_attentions(model)]
    model(*inputs)
    for hook in hooks:
        hook.remove()
    return min(margins)


def without_zeros(dit: torch.nn.Module) -> torch.nn.Module:
    """Give the modulation of a fresh model random weights, in place.

    Its zeros make every block the identity, which hides what the blocks compute.
    """
    for name, parameter in dit.named_parameters():
        if "modulation" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    return dit


def relative_difference(output: torch.Tensor, reference: torch.Tensor) -> float:
    """Return the largest difference as a share of the reference's largest value."""
    return ((output - reference).abs().max() / reference.abs().max()).item()


def inputs_and_outputs(model: torch.nn.Module, inputs: tuple) -> dict[str, tuple]:
    """Run a forward, and return the arguments and the output of each of MODULES.

    The hooks stay on the model, so pass a copy that you do not need afterwards.
    """
    seen = {}
    for name in MODULES:
        model.get_submodule(name).register_forward_hook(
            lambda module, args, output, name=name: seen.__setitem__(name, (args, output))
        )
    model(*inputs)
    return seen


def share_of_rank(plan: str, name: str, args: tuple, output: torch.Tensor, rank: int, ranks: int) -> tuple:
    """Return what a rank gives to one of MODULES and what it must get, from the arguments and output of the whole one.

    In plans that split the tokens, a rank has its own share of them from the visual embeddings to the output layer.
    """
    if plan in ("tp_sp", "ulysses"):
        if name == "visual_embeddings":
            output = output.chunk(ranks)[rank]
        elif name == "out_layer":
            args = (args[0].chunk(ranks)[rank], *args[1:])
        elif name.startswith("visual_transformer_blocks"):
            x, text, time, rope = args
            rope = rope.chunk(ranks)[rank] if plan == "ulysses" else rope
            args, output = (x.chunk(ranks)[rank], text, time, rope), output.chunk(ranks)[rank]
    return args, output
