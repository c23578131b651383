"""Sparse attention in models with random weights, whose share P is set so that a wanted share of the blocks is kept."""

import dataclasses
from collections.abc import Callable

import torch

from ..config import Config, SamplingConfig
from ..models.dit import DiffusionTransformer3D
from ..models.nabla import densities_of, near_blocks, set_share
from ..parallel.groups import gather_from_all
from .peers import DiffusersDiT, densities_of_diffusers

ROUNDS = 8  # of halving the interval that P is in


def with_or_without_nabla(config: Config, density: float | None, sampling: SamplingConfig) -> Config:
    """Return the configuration with full attention if no density is wanted, and otherwise the same one.

    It is checked that NABLA can keep as few blocks as this density says.

    Raises:
        ValueError: the model has no sparse attention, or the density is less than NABLA keeps in any case.
    """
    dit = config.dit
    if density is None:
        return dataclasses.replace(config, dit=dataclasses.replace(dit, nabla=None))
    if dit.nabla is None:
        raise ValueError(f"{config.name} has no sparse attention: leave --density away")
    grid = tuple(size // patch for size, patch in zip(sampling.latent_size, dit.patch_size, strict=True))
    near = near_blocks(grid, dit.nabla, torch.device("cpu")).float().mean().item()
    if density < near:
        raise ValueError(f"the density must be at least {near:.3f}: NABLA always keeps the blocks nearby")
    return config


@torch.no_grad()
def set_density(
    density: float, dit: DiffusionTransformer3D | DiffusersDiT, forward: Callable[[], object]
) -> list[float]:
    """Set P so that a forward keeps about this share of the blocks, and return the share that each rank keeps.

    forward() must run the model, whose blocks must not be compiled yet.
    """
    low, high = 0.0, 1.0
    for _ in range(ROUNDS):
        P = (low + high) / 2
        shares = kept_shares(dit, P, forward)
        low, high = (low, P) if sum(shares) / len(shares) > density else (P, high)
    return kept_shares(dit, (low + high) / 2, forward)


def kept_shares(dit: DiffusionTransformer3D | DiffusersDiT, P: float, forward: Callable[[], object]) -> list[float]:
    """Return the share of the blocks that each rank keeps in a forward with this P."""
    if isinstance(dit, DiffusersDiT):
        dit.set_share(P)
        recorded = densities_of_diffusers()
    else:
        set_share(dit, P)
        recorded = densities_of(dit)
    with recorded as densities:
        forward()
    of_attentions = torch.stack([torch.as_tensor(each).mean().cpu() for each in densities])
    return gather_from_all(of_attentions.mean().item())
