"""Ranks that live in one process: every shard can be looked at, and the results are deterministic.

PyTorch's LocalTensorMode is a private API, in torch.distributed._local_tensor since 2.10, so only this file uses it.
Build the model and its inputs before you simulate ranks, so that every rank gets the same ones.

The function runs once for all ranks. Where it would therefore do something else than on real ranks, it is refused, or
a note says so.
"""

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch.distributed._functional_collectives import AsyncCollectiveTensor
from torch.distributed._local_tensor import (
    LocalIntNode,
    LocalTensor,
    LocalTensorMode,
    _LocalDeviceMesh,
    enabled_local_tensor_mode,
)
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from .layout import ParallelLayout
from .tensors import local_value

# The mode logs a traceback for every shape that does not fit, and raises the error as well. One of them is enough.
logging.getLogger("torch._subclasses.fake_tensor").setLevel(logging.CRITICAL)


@contextmanager
def simulated_ranks(layout: ParallelLayout | int, device_type: str = "cpu") -> Iterator[DeviceMesh]:
    """Run the block on all ranks of a layout at once, on one device, and yield the layout's mesh.

    layout may be a number of tensor-parallel ranks. Random numbers differ between the ranks, as on real ones, unless
    the block calls torch.manual_seed. They are the same in each run, and the caller's generator stays as it was.

    Raises:
        ValueError: in the block, a collective is given a tensor that the ranks do not have one each of.
    """
    if isinstance(layout, int):
        layout = ParallelLayout("tp", layout)
    dist.init_process_group("fake", rank=0, world_size=layout.ranks)
    try:
        seeds = {rank: (torch.initial_seed() + rank) % 2**63 for rank in range(layout.ranks)}
        with torch.random.fork_rng(devices=[]), LocalTensorMode(layout.ranks), _Refuse():
            torch.manual_seed(torch.SymInt(LocalIntNode(seeds)) if layout.ranks > 1 else seeds[0])
            yield layout.device_mesh(device_type)
    finally:
        dist.destroy_process_group()


class _Refuse(TorchDispatchMode):
    """Refuse collectives that would not do what they do on real ranks.

    One on a tensor from outside of the simulation, which all ranks share, would do nothing. A message from one rank to
    another one cannot be sent, because the function runs once for all.
    """

    NO_CHANGE = ("broadcast_", "broadcast", "scatter_", "wait_tensor", "barrier", "monitored_barrier_")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(issubclass(each, DTensor) for each in types):
            return NotImplemented  # DTensor goes first, and comes back with the collectives that it makes
        space, name = func._schema.name.split("::")
        if space in ("c10d", "_c10d_functional", "_dtensor") and name not in self.NO_CHANGE:
            if name in ("send", "recv_", "recv_any_source_"):
                raise ValueError(f"simulated ranks cannot {name.split('_')[0]}: use real ones, kind='processes'")
            tensors = [leaf for leaf in pytree.tree_leaves(args) if isinstance(leaf, torch.Tensor)]
            if not all(isinstance(tensor, (LocalTensor, AsyncCollectiveTensor)) for tensor in tensors):
                raise ValueError(
                    f"{name.strip('_')} of a tensor that simulated ranks share, because it was made outside of them: "
                    "give it to run as an input, or make it with lab.own_tensor(lambda rank: ...)"
                )
        return func(*args, **(kwargs or {}))


@contextmanager
def watch_questions() -> Iterator[set[str]]:
    """Yield a set that collects the names of calls in the block that ask for the rank. PyTorch's own do not count."""
    asked: set[str] = set()

    def watch(owner: Any, name: str, shown: str):
        function = getattr(owner, name)

        def call(*args, **kwargs):
            if not sys._getframe(1).f_globals.get("__name__", "").startswith("torch."):
                asked.add(shown)
            return function(*args, **kwargs)

        return mock.patch.object(owner, name, call)

    # The mode puts the methods of _LocalDeviceMesh in place of DeviceMesh's.
    with (
        watch(dist, "get_rank", "dist.get_rank()"),
        watch(_LocalDeviceMesh, "get_rank", "mesh.get_rank()"),
        watch(_LocalDeviceMesh, "get_local_rank", "mesh.get_local_rank()"),
    ):
        yield asked


def per_rank(value: torch.Tensor) -> list[torch.Tensor]:
    """Return each simulated rank's own data of a tensor.

    Raises:
        TypeError: the tensor was not made under simulated ranks.
    """
    value = local_value(value)
    if not isinstance(value, LocalTensor):
        raise TypeError(f"not a tensor of simulated ranks, but {type(value).__name__}")
    return list(value._local_tensors.values())


def own_tensor(make: Callable[[int], torch.Tensor]) -> torch.Tensor:
    """Make a tensor that differs between ranks, make(rank) on each. It works on simulated ranks and on real ones."""
    mode = enabled_local_tensor_mode()
    return mode.rank_map(make) if mode else make(dist.get_rank())


def run_simulated(count: int, function: Callable, inputs: tuple) -> tuple[list, set[str]]:
    """Call function(mesh, *inputs) on simulated ranks. Return one output for each rank, and the questions in vain.

    Each rank has its own copy of the tensors in the inputs.
    """

    def of_each_rank(leaf: Any) -> list:
        leaf = local_value(leaf)
        return per_rank(leaf) if isinstance(leaf, LocalTensor) else [leaf] * count

    with watch_questions() as asked, simulated_ranks(count) as mesh, torch.no_grad():
        inputs = pytree.tree_map_only(torch.Tensor, lambda x: own_tensor(lambda _: x.detach().clone()), inputs)
        leaves, structure = pytree.tree_flatten(function(mesh, *inputs))
        columns = [of_each_rank(leaf) for leaf in leaves]
    rows = zip(*columns, strict=True) if columns else [()] * count
    return [pytree.tree_unflatten(row, structure) for row in rows], asked


class SimulatedRanks:
    """The simulated ranks of `lab.ranks`. Each run has a mesh of its own, and nothing is left after it."""

    def __init__(self, count: int):
        self.count = count

    def __repr__(self) -> str:
        return f"{self.count} simulated ranks, in this process"

    def run(self, function: Callable, *inputs: Any) -> list:
        """Call function(mesh, *inputs) on every rank, without gradients, and return one output for each rank.

        Each tensor in an output is that rank's own data; a DTensor is replaced by the rank's local shard. Any other
        value is the same for all ranks. A note is printed if the function asks for its rank, because the answer is the
        same for all ranks, too.
        """
        try:
            outputs, asked = run_simulated(self.count, function, inputs)
        except (TypeError, RuntimeError) as error:
            if "non-nested SymInt" in str(error):  # PyTorch's word for a size that differs between ranks
                error.add_note(f"The ranks have parts of different sizes: a width does not divide by {self.count}.")
            raise
        for call in sorted(asked):
            print(f"note: {call} does not tell simulated ranks apart, but lab.own_tensor(lambda rank: ...) does")
        return outputs

    def stop(self) -> None:
        """Do nothing: only real ranks have to be stopped."""

    def __enter__(self) -> "SimulatedRanks":
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()
