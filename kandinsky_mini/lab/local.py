"""What a rank itself has of a value."""

from typing import Any

from torch.distributed._functional_collectives import AsyncCollectiveTensor
from torch.distributed.tensor import DTensor


def local_value(value: Any) -> Any:
    """Of a DTensor its shard, of a tensor that a collective still fills the filled one, else the value."""
    if isinstance(value, DTensor):
        value = value.to_local()
    return value.wait() if isinstance(value, AsyncCollectiveTensor) else value
