"""The attention kernel is a choice: what "auto" takes, what it falls back to, and that all kernels give the same.

flash-attn-4 needs a GPU, so a stand-in takes its place here. launch/precision.py measures the real one.
"""

import re
import sys
import warnings
from functools import partial
from math import prod
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from helpers import SMALL, random_inputs, random_model, relative_difference

from kandinsky_mini import build, get_T2V_pipeline
from kandinsky_mini.bench.peers import DiffusersDiT
from kandinsky_mini.bench.random_models import draw_weights
from kandinsky_mini.models import attention
from kandinsky_mini.models.attention import Attention, choose_kernel, flash4, kernel_of, set_kernel

CPU, GPU = torch.device("cpu"), torch.device("cuda")
USUAL = {"dtype": torch.bfloat16, "head_dim": 64}


@pytest.fixture
def hopper(monkeypatch) -> list[torch.Size]:
    """Put a stand-in in place of flash-attn-4, on a GPU that it serves. Return the shapes of the queries it gets."""
    shapes = []

    def flash_attn_func(q, k, v):
        shapes.append(q.shape)
        out = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)))
        return out.transpose(1, 2).contiguous(), None

    for name in ("flash_attn", "flash_attn.cute"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["flash_attn.cute"].flash_attn_func = flash_attn_func
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(attention, "FEW_KEYS", 0)
    return shapes


def test_auto_takes_flash4_where_it_can_run(hopper):
    assert choose_kernel("auto", GPU, **USUAL) == choose_kernel("flash4", GPU, **USUAL) == ("flash4", "")
    assert choose_kernel("auto", CPU, **USUAL) == ("sdpa", "")
    assert choose_kernel("auto", GPU, torch.float16, 128) == ("flash4", "")
    for kernel in ("cudnn", "sdpa"):
        assert choose_kernel(kernel, GPU, **USUAL) == (kernel, "")


@pytest.mark.parametrize(
    ("changes", "capability", "reason"),
    [
        ({"dtype": torch.float32}, (9, 0), "it does not compute in float32"),
        ({"head_dim": 136}, (9, 0), "it has no kernel for heads of 136 channels"),
        ({"head_dim": 20}, (9, 0), "it has no kernel for heads of 20 channels"),
        ({}, (8, 6), "it needs a GPU of compute capability 9 or 10 (H100, B200), and this one has 8.6"),
        ({}, (12, 0), "it needs a GPU of compute capability 9 or 10"),
    ],
)
def test_auto_falls_back_and_says_why(hopper, monkeypatch, changes, capability, reason):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    kernel, missing = choose_kernel("auto", GPU, **USUAL | changes)
    assert kernel == "cudnn" and missing.startswith(reason)
    with pytest.raises(ValueError, match=re.escape(f"the attention kernel flash4 cannot run here: {reason}")):
        choose_kernel("flash4", GPU, **USUAL | changes)


@pytest.mark.parametrize(
    "error", [ImportError("no module"), OSError("libcute_dsl_runtime.so"), RuntimeError("CUDA 12")]
)
def test_an_installation_that_cannot_be_imported_is_no_error(hopper, monkeypatch, error):
    def broken(name):
        raise error

    monkeypatch.setattr("kandinsky_mini.models.attention.import_module", broken)
    kernel, missing = choose_kernel("auto", GPU, **USUAL)
    assert kernel == "cudnn" and missing == f"flash-attn-4 cannot be imported (pip install -e '.[flash]'): {error}"


def test_other_names_and_devices_are_refused():
    with pytest.raises(ValueError, match="unknown attention kernel 'best': choose one of auto, flash4, cudnn, sdpa"):
        get_T2V_pipeline("cpu", attention="best")
    for kernel in ("flash4", "cudnn"):
        with pytest.raises(ValueError, match=f"the attention kernel {kernel} cannot run here: it needs a GPU"):
            get_T2V_pipeline("cpu", attention=kernel)


@pytest.mark.parametrize("shape", [(12, 4, 16), (2, 12, 4, 16), (2, 3, 12, 4, 16)])
def test_all_kernels_give_the_same(hopper, shape):
    attend, qkv = Attention(), [torch.randn(shape) for _ in range(3)]
    expected = attend(*qkv)
    set_kernel(attend, "flash4")
    torch.testing.assert_close(attend(*qkv), expected)
    assert hopper == [torch.Size((prod(shape[:-3]), *shape[-3:]))]


def test_flash4_is_given_strided_inputs_as_they_are(hopper):
    """The kernel takes strides, so nothing is copied for it."""
    given = []
    stand_in = sys.modules["flash_attn.cute"].flash_attn_func
    sys.modules["flash_attn.cute"].flash_attn_func = lambda *qkv: (given.extend(qkv), stand_in(*qkv))[1]
    packed = torch.randn(12, 3, 4, 16)
    set_kernel(attend := Attention(), "flash4")
    attend(*packed.unbind(1))
    assert [x.data_ptr() for x in given] == [x.data_ptr() for x in packed.unbind(1)]


def test_keys_that_are_few_are_left_to_cudnn(hopper, monkeypatch):
    """Those of a prompt are, however many queries there are."""
    monkeypatch.setattr(attention, "FEW_KEYS", 5)
    set_kernel(attend := Attention(), "flash4")
    for keys, calls in ((5, 0), (6, 1)):
        q, k, v = (torch.randn(tokens, 4, 16) for tokens in (12, keys, keys))
        expected = F.scaled_dot_product_attention(*(x.transpose(0, 1) for x in (q, k, v))).transpose(0, 1)
        torch.testing.assert_close(attend(q, k, v), expected)
        assert len(hopper) == calls


def test_a_block_with_flash4_compiles_to_one_graph(hopper):
    torch.library.opcheck(flash4, tuple(torch.randn(1, 12, 4, 16) for _ in range(3)), test_utils="test_faketensor")
    model = random_model()
    inputs = random_inputs(model)
    expected = model(*inputs)
    set_kernel(model, "flash4")
    hopper.clear()
    for block in model.visual_transformer_blocks:
        block.compile(fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert relative_difference(model(*inputs), expected) < 1e-5
    texts, visual = SMALL.num_text_blocks, 2 * SMALL.num_visual_blocks
    assert len(hopper) == texts + visual


@torch.no_grad()
def test_diffusers_runs_on_flash4_where_it_is_told_to(hopper):
    """Every attention does, and the output stays the same."""
    model = draw_weights(DiffusersDiT(SMALL), CPU)
    inputs = random_inputs(random_model())
    expected = model(*inputs, (1.0, 1.0, 1.0))
    assert (kernel_of(model), hopper) == ("sdpa", [])
    model.use_flash4()
    output = model(*inputs, (1.0, 1.0, 1.0))
    assert kernel_of(model) == "flash4"
    assert len(hopper) == SMALL.num_text_blocks + 2 * SMALL.num_visual_blocks
    assert relative_difference(output, expected) < 1e-5
    model.model.visual_transformer_blocks[0].compile(fullgraph=True, backend="aot_eager")
    assert relative_difference(model(*inputs, (1.0, 1.0, 1.0)), expected) < 1e-5


def test_the_model_says_which_kernel_it_uses(monkeypatch):
    fill = partial(draw_weights, device=CPU)
    assert kernel_of(build.build_dit(SMALL, CPU, fill)) == "sdpa"
    assert kernel_of(torch.nn.Linear(1, 1)) == "sdpa"  # another library's model
    monkeypatch.setattr(build, "choose_kernel", lambda *_: ("cudnn", "it is not there"))
    with pytest.warns(UserWarning, match="attention runs on cuDNN and not on flash-attn-4: it is not there") as caught:
        build.build_dit(SMALL, CPU, fill)
    assert len(caught) == 1
    monkeypatch.setattr(build, "rank", lambda: 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build.build_dit(SMALL, CPU, fill)  # the other ranks say nothing
