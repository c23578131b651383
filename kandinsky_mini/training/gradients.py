"""Gradients on one GPU or several, at the speed of the GPU and not of the Python code that launches its kernels.

A training step of a model this small consists of thousands of short kernels, and Python may launch them more slowly
than the GPU runs them. So a GPU records forward and backward as a CUDA graph, once for each shape of the inputs, and
replays the graph.
"""

from collections.abc import Callable, Iterable

import torch
import torch.distributed as dist
from torch import nn

from ..parallel.groups import world_size


class Gradients:
    """A callable that runs loss(*inputs) and leaves the gradient of its "loss" in every parameter's .grad.

    loss returns a dict of scalars, one of which is "loss". Inputs are tensors on the parameters' device. Under a
    launcher each rank has its own inputs, and the gradient is the mean over the ranks. Its norm is clipped to
    max_norm.

    A call returns the dict that loss returned on this rank alone. The dict is valid only until the next call.
    """

    def __init__(self, loss: Callable[..., dict[str, torch.Tensor]], parameters: Iterable[nn.Parameter], max_norm=1.0):
        self.loss, self.max_norm = loss, max_norm
        parameters = list(parameters)
        self.device = parameters[0].device
        # All gradients are pieces of one tensor, so that one kernel is enough to zero, average or clip them.
        self.flat = torch.zeros(sum(p.numel() for p in parameters), dtype=parameters[0].dtype, device=self.device)
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
        """Record a graph, and return it with the places of its inputs and with its results.

        The graph reads its inputs from the same places every time, and leaves its results at the same places.
        """
        places = tuple(x.clone() for x in inputs)
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(2):  # compilers and libraries make their choices now, because they cannot while recording
                self.run(places)
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        # "thread_local", because NCCL has threads of its own.
        with torch.cuda.graph(graph, pool=self.memory, capture_error_mode="thread_local"):
            parts = self.run(places)
        self.memory = graph.pool()  # the graphs share memory, because no two run at once
        return graph, places, parts
