"""How a model is spread over ranks: one object that the pipeline, the scripts and the records all use."""

import re
from dataclasses import dataclass
from math import prod

from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from ..config import PIXELS_PER_LATENT, DiTConfig, SamplingConfig
from ..models.parallelize import QUERY_MESH, check_divisible

# Each kind of parallelism, and the mesh dimension along which its ranks lie.
KINDS = {"tp": "tensor_parallel", "tp_sp": "tensor_parallel", "ulysses": "context_parallel"}
SPLITS_TOKENS = ("tp_sp", "ulysses")
TEXT = re.compile(r"(?:cfg(?P<cfg>[1-9]\d*)-)?(?P<kind>[a-z_]+)(?P<size>[1-9]\d*)(?:x(?P<queries>[1-9]\d*))?")


@dataclass(frozen=True)
class ParallelLayout:
    """`cfg` groups of ranks compute the branches of the guidance side by side, and each group splits the model.

    kind says how a group of `size` ranks does it: "tp" is tensor parallelism, "tp_sp" adds sequence parallelism,
    "ulysses" splits the tokens. With Ulysses, `queries` ranks can have the same heads, and each of them computes a part
    of the queries. A group then has size x queries ranks. The text form is "tp4", or "cfg2-ulysses4" with both branches
    side by side on 8 ranks in all, or "ulysses4x2", whose 8 ranks have 4 different parts of the heads.

    Raises:
        ValueError: the kind is unknown, size or queries is below 1, cfg is neither 1 nor 2, or a kind other than
            "ulysses" is asked to split queries.
    """

    kind: str = "tp"
    size: int = 1
    cfg: int = 1
    queries: int = 1

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"unknown kind of layout {self.kind!r}: choose one of {', '.join(KINDS)}")
        if self.size < 1:
            raise ValueError(f"a layout needs at least 1 rank, not {self.size}")
        if self.cfg not in (1, 2):
            raise ValueError(
                f"cfg must be 1 (all ranks compute both branches) or 2 (half of them each), not {self.cfg}"
            )
        if self.queries < 1:
            raise ValueError(f"the queries of a layout need at least 1 rank, not {self.queries}")
        if self.queries > 1 and self.kind != "ulysses":
            raise ValueError(f"only Ulysses can split queries, as in ulysses4x2, but {self} is a layout of {self.kind}")

    def __str__(self) -> str:
        return f"cfg{self.cfg}-" * (self.cfg > 1) + f"{self.kind}{self.size}" + f"x{self.queries}" * (self.queries > 1)

    @classmethod
    def parse(cls, text: str) -> "ParallelLayout":
        """Read the text form, such as "tp4", "cfg2-ulysses4" or "ulysses4x2".

        Raises:
            ValueError: the text does not have this form, or it names an unknown kind or an impossible number.
        """
        match = TEXT.fullmatch(text)
        if match is None:
            raise ValueError(f"{text!r} is not a layout: write a kind and a number of ranks, such as tp4 or cfg2-tp4")
        return cls(match["kind"], int(match["size"]), int(match["cfg"] or 1), int(match["queries"] or 1))

    @property
    def branch_ranks(self) -> int:
        """The number of ranks that one branch is spread over."""
        return self.size * self.queries

    @property
    def ranks(self) -> int:
        return self.cfg * self.branch_ranks

    @property
    def dimensions(self) -> tuple[str, ...]:
        """The names of the mesh dimensions that one branch is spread over."""
        return QUERY_MESH if self.queries > 1 else (KINDS[self.kind],)

    @property
    def plan(self) -> str:
        """The name of the plan in models/parallelize.py. Tensor parallelism is the talk's, unless you name another."""
        return "talk" if self.kind == "tp" else self.kind

    def device_mesh(self, device_type: str) -> DeviceMesh:
        """Arrange the ranks of the process group, which must have been joined, as a mesh with named dimensions.

        The ranks of one branch are neighbours. Within a branch, the ranks that trade tokens for heads are neighbours,
        too. "cfg_parallel" and "query_parallel" are there only if the layout uses them.
        """
        shape, names = (self.size,), self.dimensions
        if self.queries > 1:
            shape = (self.queries, *shape)
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
            fits = fitting_layouts(config, world_size)
            cures = [" or ".join(str(layout) for layout in fits if layout.cfg == cfg) for cfg in (1, 2)]
            cures[1] = cures[1] and f"{cures[1]}, for which the run must be guided"
            cure = f". {world_size} ranks can split it by {', or by '.join(filter(None, cures))}" if fits else ""
            raise ValueError(f"{error}{cure}") from error

    def check_run(self, sampling: SamplingConfig, config: DiTConfig) -> None:
        """Refuse a run whose guidance or whose visual tokens this layout cannot split.

        Raises:
            ValueError: the message says what does not fit, and what would.
        """
        if self.cfg > 1 and not sampling.guided:
            raise ValueError(
                f"the layout {self} computes the two branches of the guidance side by side, but with a guidance weight "
                "of 1 there is only one: use a layout without cfg"
            )
        grid = [size // patch for size, patch in zip(sampling.latent_size, config.patch_size, strict=True)]
        if config.nabla and prod(grid) // config.nabla.block_tokens % self.queries:
            raise ValueError(
                f"the layout {self} splits the queries, and {prod(grid) // config.nabla.block_tokens} blocks of NABLA "
                f"are not divisible by {self.queries}: choose another size, or a layout that splits no queries"
            )
        if self.kind in SPLITS_TOKENS and prod(grid) % self.branch_ranks:
            unit = PIXELS_PER_LATENT * config.patch_size[-1] * self.branch_ranks
            raise ValueError(
                f"the layout {self} splits the visual tokens, and {' x '.join(map(str, grid))} tokens are not "
                f"divisible by {self.branch_ranks}: choose a width that is a multiple of {unit} pixels, "
                "or a layout of kind tp"
            )


def layouts_of(ranks: int) -> list[ParallelLayout]:
    """Return every layout of exactly this number of ranks.

    With one rank for each branch all kinds are the same, so only "tp" is there. Queries are split only where heads are
    split as well.
    """
    found = []
    for cfg in (cfg for cfg in (1, 2) if ranks % cfg == 0):
        size = ranks // cfg
        found += [ParallelLayout(kind, size, cfg) for kind in KINDS if kind == "tp" or size > 1]
        parts = [queries for queries in range(2, size) if size % queries == 0]
        found += [ParallelLayout("ulysses", size // queries, cfg, queries) for queries in parts]
    return found


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
