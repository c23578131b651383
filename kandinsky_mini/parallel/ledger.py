"""The communication ledger: which collective ran in which module, with how many bytes and over how many ranks.

The payload is the size of the whole logical tensor in bytes. Wire bytes are the bytes that each rank sends. An
all-reduce sends 2 (P-1)/P of the payload, an all-gather or a reduce-scatter (P-1)/P: P ranks in a ring need no more,
and for large tensors no algorithm needs less (Patarasuk and Yuan 2009). In an all-to-all each rank sends (P-1)/P^2 of
the payload, directly to the others. For broadcast and scatter the number is the average over the ranks.
"""

from collections import Counter
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.distributed_c10d import _resolve_process_group
from torch.distributed.tensor import DTensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

RING = {
    "all_reduce": lambda p: 2 * (p - 1) / p,
    "all_gather": lambda p: (p - 1) / p,
    "reduce_scatter": lambda p: (p - 1) / p,
    "all_to_all": lambda p: (p - 1) / p**2,
    "broadcast": lambda p: (p - 1) / p,  # around the ring, so that the last rank sends nothing
    "reduce": lambda p: (p - 1) / p,  # the same in the other direction
    "scatter": lambda p: (p - 1) / p**2,  # only one rank sends
    "gather": lambda p: (p - 1) / p**2,  # all but one send their part
    "send": lambda p: 1,  # by this rank
}
# For each PyTorch operator: our name for it, the index of the argument to measure, and whether that argument is only
# one of the P parts of the payload. Where the argument is a list of tensors, their bytes are added.
COLLECTIVES = {
    "_c10d_functional::all_reduce": ("all_reduce", 0, False),
    "_c10d_functional::all_reduce_": ("all_reduce", 0, False),
    "_c10d_functional::all_reduce_coalesced": ("all_reduce", 0, False),
    "_c10d_functional::all_reduce_coalesced_": ("all_reduce", 0, False),
    "_c10d_functional::all_gather_into_tensor": ("all_gather", 0, True),
    "_c10d_functional::all_gather_into_tensor_out": ("all_gather", 0, True),
    "_c10d_functional::all_gather_into_tensor_coalesced": ("all_gather", 0, True),
    "_c10d_functional::reduce_scatter_tensor": ("reduce_scatter", 0, False),
    "_c10d_functional::reduce_scatter_tensor_out": ("reduce_scatter", 0, False),
    "_c10d_functional::reduce_scatter_tensor_coalesced": ("reduce_scatter", 0, False),
    "_c10d_functional::all_to_all_single": ("all_to_all", 0, True),
    "_c10d_functional::broadcast": ("broadcast", 0, False),
    "_c10d_functional::broadcast_": ("broadcast", 0, False),
    "_dtensor::shard_dim_alltoall": ("all_to_all", 0, True),
    # torch.distributed's own functions, such as dist.all_reduce, call these.
    "c10d::allreduce_": ("all_reduce", 0, False),
    "c10d::allreduce_coalesced_": ("all_reduce", 0, False),
    "c10d::allgather_": ("all_gather", 1, True),
    "c10d::allgather_coalesced_": ("all_gather", 1, True),
    "c10d::allgather_into_tensor_coalesced_": ("all_gather", 1, True),
    "c10d::_allgather_base_": ("all_gather", 1, True),
    "c10d::_reduce_scatter_base_": ("reduce_scatter", 1, False),
    "c10d::reduce_scatter_": ("reduce_scatter", 1, False),
    "c10d::reduce_scatter_tensor_coalesced_": ("reduce_scatter", 1, False),
    "c10d::alltoall_": ("all_to_all", 1, True),
    "c10d::alltoall_base_": ("all_to_all", 1, True),
    "c10d::broadcast_": ("broadcast", 0, False),
    "c10d::reduce_": ("reduce", 0, False),
    "c10d::scatter_": ("scatter", 0, True),
    "c10d::gather_": ("gather", 1, True),
    "c10d::send": ("send", 0, False),
}
# These send no data, or are the other end of what is counted already.
UNCOUNTED = {
    *("barrier", "monitored_barrier_", "check_for_nan", "recv_", "recv_any_source_", "wait_tensor"),
    "_wrap_tensor_autograd",
}
NAMESPACES = {"c10d", "_c10d_functional", "_c10d_functional_autograd", "_dtensor", "symm_mem"}


@dataclass(frozen=True)
class Entry:
    """One collective: the module that it ran in, its kind, its payload in bytes, and the size of its group."""

    module: str
    collective: str
    payload: int
    ranks: int

    @property
    def wire(self) -> float:
        """The bytes that each rank sends."""
        return RING[self.collective](self.ranks) * self.payload


class Ledger(TorchDispatchMode):
    """Record every collective that runs while the ledger is active. `entries` holds them in order.

    If the ledger is given a model, each entry names the module that the collective ran in. A collective that the ledger
    cannot count raises a NotImplementedError.

    with Ledger(dit) as ledger:
        dit(...)
    """

    def __init__(self, model: nn.Module | None = None):
        super().__init__()
        self.model = model or nn.Module()
        self.entries: list[Entry] = []
        self._inside: list[str] = []
        self._hooks: list = []

    def __enter__(self):
        for name, module in self.model.named_modules():
            # First in and last out, so that collectives of the plan's own hooks are counted in their module.
            enter = module.register_forward_pre_hook(lambda *_, name=name: self._inside.append(name), prepend=True)
            leave = module.register_forward_hook(self._leave, always_call=True)
            self._hooks += [enter, leave]
        return super().__enter__()

    def __exit__(self, *error):
        for hook in self._hooks:
            hook.remove()
        return super().__exit__(*error)

    def _leave(self, *_) -> None:
        self._inside.pop()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(issubclass(each, DTensor) for each in types):
            return NotImplemented  # DTensor goes first, and comes back with the collectives that it makes
        if func._schema.name in COLLECTIVES:
            collective, index, is_part = COLLECTIVES[func._schema.name]
            ranks, tensors = group_size(func, args), pytree.tree_leaves(args[index])
            payload = sum(tensor.numel() * tensor.element_size() for tensor in tensors) * (ranks if is_part else 1)
            if not isinstance(payload, int):  # on simulated ranks it then is a number for each
                raise NotImplementedError(f"the ledger cannot count {collective} of parts that differ in size")
            self.entries.append(Entry(self._inside[-1] if self._inside else "", collective, payload, ranks))
        elif func.namespace in NAMESPACES and func._schema.name.split("::")[1] not in UNCOUNTED:
            raise NotImplementedError(f"the ledger cannot count {func._schema.name}: use another collective")
        return func(*args, **(kwargs or {}))


def group_size(collective: torch._ops.OpOverload, args: tuple) -> int:
    """Return how many ranks take part in a collective, given PyTorch's operator and the arguments of the call."""
    given = {argument.name: value for argument, value in zip(collective._schema.arguments, args, strict=False)}
    if "process_group" in given:
        return dist.ProcessGroup.unbox(given["process_group"]).size()
    group = given["group_name"]
    return (group if isinstance(group, dist.ProcessGroup) else _resolve_process_group(group)).size()


def summary(entries: list[Entry]) -> str:
    """Put the collectives into words, such as "1 all_reduce of 64 KiB, 2 all_gather of 16 B"."""
    counts = Counter((entry.collective, entry.payload) for entry in entries)
    return ", ".join(f"{count} {name} of {size(payload)}" for (name, payload), count in counts.items()) or "none"


def compare(predicted: list[Entry], counted: list[Entry]) -> str:
    """Return a table of each module's collectives, predicted and counted. Its last line has the bytes sent."""

    def by_module(entries: list[Entry]) -> dict[str, str]:
        groups: dict[str, list[Entry]] = {}
        for entry in entries:
            groups.setdefault(entry.module, []).append(entry)
        return {module: summary(group) for module, group in groups.items()}

    def with_sum(entries: list[Entry]) -> dict[str, str]:
        return by_module(entries) | {"sent by each rank": size(sum(entry.wire for entry in entries))}

    left, right = with_sum(predicted), with_sum(counted)
    modules = sorted(left | right, key="sent by each rank".__eq__)  # puts the sum last
    widths = [max(map(len, column)) for column in (["module", *modules], ["predicted", *left.values()])]
    lines = [f"{'module':{widths[0]}}  {'predicted':{widths[1]}}  counted"]
    for module in modules:
        lines.append(f"{module:{widths[0]}}  {left.get(module, '-'):{widths[1]}}  {right.get(module, '-')}")
    return "\n".join(lines)


def size(count: float) -> str:
    """Put a number of bytes into words, such as "1.5 KiB"."""
    for unit, name in ((2**20, "MiB"), (2**10, "KiB")):
        if count >= unit:
            return f"{count / unit:,.1f} {name}".replace(".0 ", " ")
    return f"{count:.0f} B"
