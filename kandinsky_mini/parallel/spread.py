"""Independent pieces of work, spread over all ranks."""

from collections.abc import Callable

import torch
import torch.distributed as dist

from .groups import gather_from_all, rank, wait_until_loaded, world_size


def over_ranks(
    function: Callable[[torch.Tensor], torch.Tensor], pieces: list[torch.Tensor]
) -> list[torch.Tensor] | None:
    """Return function(piece) for all pieces, in their order, on rank 0. It takes the place of `map`.

    All ranks call this with the same pieces. Each computes every P-th of them and sends its results to rank 0. The
    others return None.
    """
    owners = [number % world_size() for number in range(len(pieces))]
    mine = [function(piece) for piece, owner in zip(pieces, owners, strict=True) if owner == rank()]
    wait_until_loaded("their pieces")
    shapes = gather_from_all([result.shape for result in mine])
    if rank() > 0:
        for result in mine:
            dist.send(result.contiguous(), dst=0)
        return None
    own = iter(mine)
    return [next(own) if owner == 0 else _receive(shapes[owner].pop(0), owner, mine[0]) for owner in owners]


def _receive(shape: torch.Size, sender: int, like: torch.Tensor) -> torch.Tensor:
    """Receive a tensor of this shape, whose dtype and device are those of another one."""
    result = like.new_empty(shape)
    dist.recv(result, src=sender)
    return result
