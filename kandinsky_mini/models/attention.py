"""Scaled dot-product attention: the choice of a kernel, and a module that plans can hook into."""

import contextlib
from importlib import import_module

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

# "flash4" is flash-attn-4, "cudnn" lets PyTorch prefer cuDNN's kernel, and "sdpa" is what PyTorch itself chooses.
# "auto" is flash4 where that can run, and otherwise cudnn on a GPU and sdpa on a CPU.
KERNELS = ("auto", "flash4", "cudnn", "sdpa")
# PyTorch by itself would take its flash kernel first, but on an H100 cuDNN's is faster. A kernel that does not support
# the device or the shape is skipped.
CUDNN_FIRST = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]
# Up to this number of keys, cuDNN's kernel runs in place of flash-attn-4. A prompt of Lite has at most 256, and with so
# few flash-attn-4 is slower.
FEW_KEYS = 1024


@torch.library.custom_op("kandinsky_mini::flash4", mutates_args=())
def flash4(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Run flash-attn-4: q, k, v (B, S, heads, head_dim) -> (B, S, heads, head_dim).

    It is an operator of its own, so that a compiled block stays one graph with this call in it.
    """
    out = import_module("flash_attn.cute").flash_attn_func(q, k, v)
    return out[0] if isinstance(out, tuple) else out


@flash4.register_fake
def _(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return q.new_empty(q.shape)


def choose_kernel(wanted: str, device: torch.device, dtype: torch.dtype, head_dim: int) -> tuple[str, str]:
    """Return the kernel to use and, where a GPU cannot run flash-attn-4, the reason why "auto" does not take it.

    Raises:
        ValueError: the kernel is unknown, or it is wanted by name and cannot run.
    """
    if wanted not in KERNELS:
        raise ValueError(f"unknown attention kernel {wanted!r}: choose one of {', '.join(KERNELS)}")
    if wanted == "cudnn" and device.type != "cuda":
        raise ValueError("the attention kernel cudnn cannot run here: it needs a GPU")
    if wanted in ("cudnn", "sdpa"):
        return wanted, ""
    missing = _what_flash4_lacks(device, dtype, head_dim)
    if wanted == "flash4" and missing:
        raise ValueError(f"the attention kernel flash4 cannot run here: {missing}")
    if not missing:
        return "flash4", ""
    return ("cudnn", missing) if device.type == "cuda" else ("sdpa", "")


def _what_flash4_lacks(device: torch.device, dtype: torch.dtype, head_dim: int) -> str:
    """Return why flash-attn-4 cannot run, or nothing if it can."""
    if device.type != "cuda":
        return "it needs a GPU"
    major, minor = torch.cuda.get_device_capability(device)
    if major not in (9, 10):
        return f"it needs a GPU of compute capability 9 or 10 (H100, B200), and this one has {major}.{minor}"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"it does not compute in {str(dtype).removeprefix('torch.')}"
    if head_dim > 128 or head_dim % 8:
        return f"it has no kernel for heads of {head_dim} channels"
    try:
        import_module("flash_attn.cute")
    except Exception as error:  # its own dependencies can fail in many ways
        return f"flash-attn-4 cannot be imported (pip install -e '.[flash]'): {error}"
    return ""


def set_kernel(model: nn.Module, kernel: str) -> None:
    """Let every attention in the model use a kernel that choose_kernel returned."""
    for module in model.modules():
        if isinstance(module, Attention):
            module.kernel = kernel


def kernel_of(model: nn.Module) -> str:
    """Return the name of the kernel that a model's attention uses. A model that does not say leaves it to PyTorch."""
    return next((module.kernel for module in model.modules() if hasattr(module, "kernel")), "sdpa")


def preferred_kernels(kernel: str) -> contextlib.AbstractContextManager:
    """A context in which PyTorch's attention prefers cuDNN's kernel, unless it is to choose by itself ("sdpa")."""
    return contextlib.nullcontext() if kernel == "sdpa" else sdpa_kernel(CUDNN_FIRST, set_priority=True)


class Attention(nn.Module):
    """Scaled dot-product attention: q, k, v (..., S, heads, head_dim) -> (..., S, heads, head_dim).

    It is a module without parameters so that a plan can re-shard its inputs and its output. `near` is for sparse
    attention alone, as in nabla.py.
    """

    kernel = "sdpa"

    def forward(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, near: torch.Tensor | None = None
    ) -> torch.Tensor:
        # All kernels want exactly one batch dimension. PyTorch's want heads before tokens.
        batched = [x.reshape(-1, *x.shape[-3:]) for x in (q, k, v)]
        if self.kernel == "flash4" and k.shape[-3] > FEW_KEYS:
            return flash4(*batched).reshape(q.shape)
        heads_first = [x.transpose(1, 2) for x in batched]
        return F.scaled_dot_product_attention(*heads_first).transpose(1, 2).reshape(q.shape)
