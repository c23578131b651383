"""Measure a sampling step on a GPU or a CPU: its seconds, its memory, and how the device spent the time."""

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

from ..parallel.tensors import local_value

# GPU kernels and CPU operators are sorted by the first pattern that their name matches. A compiled kernel that prepares
# the inputs of attention (norms and RoPE of queries and keys) is named after attention, so it counts as attention.
KINDS = {
    "communication": r"nccl(Dev)?Kernel|c10d|wait_tensor",
    "attention": r"sdpa|fmha|flash|attention|attn",
    "linear": r"gemm|nvjet|cutlass|xmma|cublas|aten::(add)?mm|aten::bmm",
}


def wait(device: torch.device) -> None:
    """Wait for the GPU to finish. On a CPU there is nothing to wait for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Stopwatch:
    """Call it after each step. It waits for the device, and records the seconds since the previous call."""

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
    """Return the seconds that run() takes."""
    watch = Stopwatch(device)
    run()
    watch()
    return watch.seconds[0]


def peak_bytes(device: torch.device) -> int:
    """Return the largest memory in use at once: on a GPU since forget_peak, on a CPU since the process started."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def forget_peak(device: torch.device) -> None:
    """Start counting a GPU's peak memory anew, after giving back what is cached but not in use."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)


def weight_bytes(model: nn.Module) -> int:
    """Return the bytes of the weights that this rank holds."""
    return sum(part.numel() * part.element_size() for part in map(local_value, model.parameters()))


def breakdown(run: Callable[[], object], device: torch.device) -> dict[str, float]:
    """Run once under the profiler, and return seconds for each of KINDS, "rest", "idle" and "whole".

    The kinds are summed over all GPU kernels, or over the operators of a CPU's main thread. "idle" is "whole" minus
    these sums, at least 0: on a GPU the wait for Python, on a CPU the time of Python itself. Kernels that overlap count
    twice, so "idle" may be too small.
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
    """Return the seconds of each kernel and each copy on the GPU."""
    seconds: Counter = Counter()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(path))
        for event in json.loads(path.read_text(encoding="utf-8"))["traceEvents"]:
            if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset"):
                seconds[event["name"]] += event["dur"] / 1e6
    return seconds


def operators(profiler: profile) -> Counter:
    """Return the seconds of each operator on the CPU, without those that it calls and without gloo's own thread."""
    averages = profiler.key_averages()
    return Counter({each.key: each.self_cpu_time_total / 1e6 for each in averages if not each.key.startswith("gloo:")})
