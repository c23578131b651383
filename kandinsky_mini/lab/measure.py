"""What a sampling step takes: seconds, memory, and what the device did in it. On GPUs and on CPUs."""

import json
import re
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from .local import local_value

# What a GPU's kernel, or a CPU's operator, is for: the first pattern that its name has. In NCCL's and PyTorch's words.
# A compiled kernel that prepares attention's inputs (norms and RoPE of queries and keys) is named after it, so that it
# counts as attention.
KINDS = {
    "communication": r"nccl(Dev)?Kernel|c10d|wait_tensor",
    "attention": r"sdpa|fmha|flash|attention|attn",
    "linear": r"gemm|nvjet|cutlass|xmma|cublas|aten::(add)?mm|aten::bmm",
}


def wait(device: torch.device) -> None:
    """Until the device has done all that it was asked to; a CPU has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Stopwatch:
    """Call it after each step: seconds are those since the call before, the device's work included."""

    def __init__(self, device: torch.device):
        self.device, self.seconds = device, []
        wait(device)
        self.last = time.perf_counter()

    def __call__(self, *_: object) -> None:
        wait(self.device)
        now = time.perf_counter()
        self.seconds.append(now - self.last)
        self.last = now


def timed(run: Callable[[], object], device: torch.device) -> float:
    """Seconds that run() takes."""
    watch = Stopwatch(device)
    run()
    watch()
    return watch.seconds[0]


def peak_bytes(device: torch.device) -> int:
    """The most memory in use at once since the counter was reset: of the GPU, or of the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def forget_peak(device: torch.device) -> None:
    """Begin to look for the most memory of a GPU anew; what is cached but not in use is given back."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)


def weight_bytes(model: nn.Module) -> int:
    """Of a sharded model, those that this rank holds."""
    return sum(part.numel() * part.element_size() for part in map(local_value, model.parameters()))


def breakdown(run: Callable[[], object], device: torch.device) -> dict[str, float]:
    """Seconds of the device, or on a CPU of its main thread, that run() spent on each of KINDS and on the rest.

    "idle" is what remains of the whole run: a GPU that waited for Python.
    """
    on_gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu) as profiler:
        whole = timed(run, device)
    spent = kernels(profiler) if on_gpu else operators(profiler)
    seconds = dict.fromkeys((*KINDS, "rest"), 0.0)
    for name, each in spent.items():
        kind = next((kind for kind, pattern in KINDS.items() if re.search(pattern, name)), "rest")
        seconds[kind] += each
    return seconds | {"idle": max(0.0, whole - sum(seconds.values())), "whole": whole}


def kernels(profiler: profile) -> Counter:
    """Seconds of each kernel and copy on the GPU."""
    seconds: Counter = Counter()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(path))
        for event in json.loads(path.read_text(encoding="utf-8"))["traceEvents"]:
            if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset"):
                seconds[event["name"]] += event["dur"] / 1e6
    return seconds


def operators(profiler: profile) -> Counter:
    """Seconds of each operator on the CPU, without those that it calls; gloo's own thread runs beside."""
    averages = profiler.key_averages()
    return Counter({each.key: each.self_cpu_time_total / 1e6 for each in averages if not each.key.startswith("gloo:")})
