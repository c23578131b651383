"""Guidance parallelism: the branches of the guidance run at the same time, each on ranks of its own."""

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from ..models.text_embeds import TextEmbeds
from ..sampling import Branches, Velocity


def branches_on(mesh: DeviceMesh | None) -> Branches:
    """Return how the ranks of a layout's mesh run the branches: side by side along "cfg_parallel", if it is there."""
    if mesh is None or "cfg_parallel" not in mesh.mesh_dim_names:
        return map
    return SideBySide(mesh["cfg_parallel"])


class SideBySide:
    """Run each branch on another rank of a one-dimensional mesh. It takes the place of `map` in guided_velocity."""

    def __init__(self, mesh: DeviceMesh):
        self.mesh = mesh

    def __call__(self, velocity: Velocity, texts: list[TextEmbeds]) -> tuple[torch.Tensor, ...]:
        """Compute the velocity of this rank's text, then gather those of all: 1 all-gather, of a latent for each text.

        Raises:
            ValueError: the ranks are simulated. They all run the same function, so they cannot have different texts.
        """
        branch = self.mesh.get_local_rank()
        if not isinstance(branch, int):
            raise ValueError("guidance parallelism needs real ranks: simulated ones all run the same branch")
        mine = velocity(texts[branch])
        return DTensor.from_local(mine[None], self.mesh, [Shard(0)]).full_tensor().unbind()
