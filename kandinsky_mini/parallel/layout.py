"""How a model is spread over ranks: one object that the pipeline, the scripts and the records all use."""

import re
from dataclasses import dataclass

from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from ..config import DiTConfig
from ..models.parallelize import check_divisible

# Each kind of parallelism, and the mesh dimension along which its ranks lie.
KINDS = {"tp": "tensor_parallel", "tp_sp": "tensor_parallel", "ulysses": "context_parallel"}
RUNNABLE = ("tp",)  # the kinds that models/parallelize.py has plans for
TEXT = re.compile(r"(?:cfg(?P<cfg>[1-9]\d*)-)?(?P<kind>[a-z_]+)(?P<size>[1-9]\d*)")


@dataclass(frozen=True)
class ParallelLayout:
    """`cfg` groups of ranks compute the branches of the guidance side by side, and each group has `size` ranks.

    kind says how a group splits the model: "tp" is tensor parallelism, "tp_sp" adds sequence parallelism, "ulysses"
    splits the tokens. The text form is "tp4" or, with both branches side by side on 8 ranks in all, "cfg2-ulysses4".
    So far only "tp" without guidance parallelism can run.

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
        if self.kind not in RUNNABLE or self.cfg > 1:
            raise ValueError(f"the layout {self} cannot run yet: choose tensor parallelism, such as tp2")
        if self.ranks != world_size:
            raise ValueError(
                f"the layout {self} needs {self.ranks} ranks, but {world_size} were started: "
                f"use torchrun --nproc-per-node {self.ranks}"
            )
        check_divisible(config, self.size)
