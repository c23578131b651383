"""Gradients at the GPU's speed, not at that of the Python that launches its kernels, on one GPU or several.

A training step of a model this small is thousands of short kernels, and Python may launch them more slowly than the GPU
runs them. So a GPU records forward and backward once for each shape of the inputs, as a CUDA graph, and replays them.
"""

from collections.abc import Callable, Iterable

import torch
import torch.distributed as dist
from torch import nn

from ..distributed import world_size


class Gradients:
    """Calls loss(*inputs), a dict of scalars with "loss", and leaves the gradient of "loss" in every parameter's .grad.

    It is the mean over the ranks of a launcher, each with its own inputs, cut to a norm of max_norm. What loss returns
    is returned, this rank's alone and only until the next call. Inputs are tensors on the parameters' device.
    """

    def __init__(self, loss: Callable[..., dict[str, torch.Tensor]], parameters: Iterable[nn.Parameter], max_norm=1.0):
        self.loss, self.max_norm = loss, max_norm
        parameters = list(parameters)
        self.device = parameters[0].device
        # All gradients are pieces of one tensor: to zero, average or cut them is one kernel.
        self.flat = torch.zeros(sum(p.numel() for p in parameters), device=self.device)
        for parameter, piece in zip(parameters, self.flat.split([p.numel() for p in parameters]), strict=True):
            parameter.grad = piece.view_as(parameter)
        self.recorded: dict = {}
        self.memory = None

    def __call__(self, *inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        parts = self.replay(inputs) if self.device.type == "cuda" else self.run(inputs)
        if world_size() > 1:
            dist.all_reduce(self.flat)
            self.flat /= world_size()
        self.flat *= (self.max_norm / (self.flat.norm() + 1e-6)).clamp(max=1.0)
        return parts

    def run(self, inputs: tuple[torch.Tensor, ...]) -> dict[str, torch.Tensor]:
        self.flat.zero_()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            parts = self.loss(*inputs)
        parts["loss"].backward()
        return {name: value.detach() for name, value in parts.items()}

    def replay(self, inputs: tuple[torch.Tensor, ...]) -> dict[str, torch.Tensor]:
        shapes = tuple(x.shape for x in inputs)
        if shapes not in self.recorded:
            self.recorded[shapes] = self.record(inputs)
        graph, places, parts = self.recorded[shapes]
        for place, x in zip(places, inputs, strict=True):
            place.copy_(x)
        graph.replay()
        return parts

    def record(self, inputs: tuple[torch.Tensor, ...]) -> tuple:
        """A graph reads its inputs from, and leaves its results at, the same places every time."""
        places = tuple(x.clone() for x in inputs)
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(2):  # compilers and libraries make their choices now, as they cannot while recording
                self.run(places)
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.memory, capture_error_mode="thread_local"):  # NCCL has threads, too
            parts = self.run(places)
        self.memory = graph.pool()  # shared: no two graphs run at once
        return graph, places, parts
