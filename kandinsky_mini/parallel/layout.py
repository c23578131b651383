"""How a model is spread over ranks: one object that the pipeline, the scripts and the records all use."""

import re
from dataclasses import dataclass
from math import prod

from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from ..config import PIXELS_PER_LATENT, DiTConfig, SamplingConfig
from ..models.parallelize import check_divisible

# Each kind of parallelism, and the mesh dimension along which its ranks lie.
KINDS = {"tp": "tensor_parallel", "tp_sp": "tensor_parallel", "ulysses": "context_parallel"}
SPLITS_TOKENS = ("tp_sp", "ulysses")
TEXT = re.compile(r"(?:cfg(?P<cfg>[1-9]\d*)-)?(?P<kind>[a-z_]+)(?P<size>[1-9]\d*)")


@dataclass(frozen=True)
class ParallelLayout:
    """`cfg` groups of ranks compute the branches of the guidance side by side, and each group has `size` ranks.

    kind says how a group splits the model: "tp" is tensor parallelism, "tp_sp" adds sequence parallelism, "ulysses"
    splits the tokens. The text form is "tp4" or, with both branches side by side on 8 ranks in all, "cfg2-ulysses4".

    Raises:
        ValueError: the kind is unknown, size is below 1, or cfg is neither 1 nor 2.
    """

    kind: str = "tp"
    size: int = 1
    cfg: int = 1

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"unknown kind of layout {self.kind!r}: choose one of {', '.join(KINDS)}")
        if self.size < 1:
            raise ValueError(f"a layout needs at least 1 rank, not {self.size}")
        if self.cfg not in (1, 2):
            raise ValueError(
                f"cfg must be 1 (all ranks compute both branches) or 2 (half of them each), not {self.cfg}"
            )

    def __str__(self) -> str:
        return f"cfg{self.cfg}-" * (self.cfg > 1) + f"{self.kind}{self.size}"

    @classmethod
    def parse(cls, text: str) -> "ParallelLayout":
        """Read the text form, such as "tp4" or "cfg2-ulysses4".

        Raises:
            ValueError: the text does not have this form, or it names an unknown kind or an impossible number.
        """
        match = TEXT.fullmatch(text)
        if match is None:
            raise ValueError(f"{text!r} is not a layout: write a kind and a number of ranks, such as tp4 or cfg2-tp4")
        return cls(match["kind"], int(match["size"]), int(match["cfg"] or 1))

    @property
    def ranks(self) -> int:
        return self.cfg * self.size

    @property
    def dimension(self) -> str:
        """The name of the mesh dimension that one branch is spread over."""
        return KINDS[self.kind]

    @property
    def plan(self) -> str:
        """The name of the plan in models/parallelize.py. Tensor parallelism is the talk's, unless you name another."""
        return "talk" if self.kind == "tp" else self.kind

    def device_mesh(self, device_type: str) -> DeviceMesh:
        """Arrange the ranks of the process group, which must have been joined, as a mesh with named dimensions.

        The ranks of one branch are neighbours. Without guidance parallelism the mesh has one dimension.
        """
        shape, names = (self.size,), (self.dimension,)
        if self.cfg > 1:
            shape, names = (self.cfg, *shape), ("cfg_parallel", *names)
        return init_device_mesh(device_type, shape, mesh_dim_names=names)

    def check(self, config: DiTConfig, world_size: int) -> None:
        """Refuse this layout unless it fits the model's sizes and the number of ranks that were started.

        Raises:
            ValueError: the message says what does not fit, and what would.
        """
        if self.ranks != world_size:
            raise ValueError(
                f"the layout {self} needs {self.ranks} ranks, but {world_size} were started: "
                f"use torchrun --nproc-per-node {self.ranks}"
            )
        try:
            check_divisible(config, self.size, self.plan)
        except ValueError as error:
            others = " or ".join(map(str, fitting_layouts(config, world_size)))
            guided = ", for which the run must be guided" if "cfg" in others else ""
            cure = f". Its heads and widths can be split over {world_size} ranks by {others}{guided}" if others else ""
            raise ValueError(f"{error}{cure}") from error

    def check_run(self, sampling: SamplingConfig, patch_size: tuple[int, int, int]) -> None:
        """Refuse a run whose guidance or whose visual tokens this layout cannot split.

        Raises:
            ValueError: the message says what does not fit, and what would.
        """
        if self.cfg > 1 and not sampling.guided:
            raise ValueError(
                f"the layout {self} computes the two branches of the guidance side by side, but with a guidance weight "
                "of 1 there is only one: use a layout without cfg"
            )
        grid = [size // patch for size, patch in zip(sampling.latent_size, patch_size, strict=True)]
        if self.kind in SPLITS_TOKENS and prod(grid) % self.size:
            unit = PIXELS_PER_LATENT * patch_size[-1] * self.size
            raise ValueError(
                f"the layout {self} splits the visual tokens, and {' x '.join(map(str, grid))} tokens are not "
                f"divisible by {self.size}: choose a width that is a multiple of {unit} pixels, or a layout of kind tp"
            )


def layouts_of(ranks: int) -> list[ParallelLayout]:
    """Return every layout of exactly this number of ranks. With one rank for each branch, only "tp" is there."""
    shapes = [(kind, ranks // cfg, cfg) for cfg in (1, 2) if ranks % cfg == 0 for kind in KINDS]
    return [ParallelLayout(*shape) for shape in shapes if shape[0] == "tp" or shape[1] > 1]


def fitting_layouts(config: DiTConfig, ranks: int) -> list[ParallelLayout]:
    """Return all layouts of exactly this number of ranks that divide the model's heads and widths.

    Those with cfg need guidance as well, and those that split tokens need a number of them that divides.
    """

    def fits(layout: ParallelLayout) -> bool:
        try:
            check_divisible(config, layout.size, layout.plan)
        except ValueError:
            return False
        return True

    return list(filter(fits, layouts_of(ranks)))
