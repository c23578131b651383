"""The CrossDiT is the released one: its parameters, modules and outputs are those of diffusers' class."""

import dataclasses

import pytest
import torch
from diffusers import Kandinsky5Transformer3DModel
from helpers import MODULE_BAR, SMALL, random_inputs, random_model, relative_difference
from torch._dynamo.testing import CompileCounter

from kandinsky_mini.bench.peers import diffusers_settings
from kandinsky_mini.config import CONFIGS, SamplingConfig, load_config
from kandinsky_mini.models import dit as dit_module
from kandinsky_mini.models import nn as model_parts
from kandinsky_mini.models.checkpoint import from_released, to_released
from kandinsky_mini.models.dit import DiffusionTransformer3D, check_compiler, compile_blocks
from kandinsky_mini.models.text_embeds import TextEmbeds
from kandinsky_mini.sampling import generate, rope_positions

SIZES = dataclasses.replace(SMALL, model_dim=64, ff_dim=128, num_text_blocks=2, num_visual_blocks=3)


@pytest.fixture(scope="module")
def lite() -> DiffusionTransformer3D:
    with torch.device("meta"):
        return DiffusionTransformer3D(load_config(CONFIGS / "lite_5s.yaml").dit)


def test_lite_has_the_released_number_of_parameters(lite):
    assert sum(p.numel() for p in lite.parameters()) == 2_007_702_848


def test_mini_has_about_ten_million_parameters():
    with torch.device("meta"):
        mini = DiffusionTransformer3D(load_config().dit)
    assert 9e6 < sum(p.numel() for p in mini.parameters()) < 11e6


def test_lite_prints_the_modules_of_the_talk(lite):
    """The talk's cells print these lines. We added only attention, which is a module without parameters."""
    assert str(lite.time_embeddings).splitlines() == [
        "TimeEmbeddings(",
        "  (in_layer): Linear(in_features=1792, out_features=512, bias=True)",
        "  (activation): SiLU()",
        "  (out_layer): Linear(in_features=512, out_features=512, bias=True)",
        ")",
    ]
    assert "(in_layer): Linear(in_features=3584, out_features=1792, bias=True)" in str(lite.text_embeddings)
    assert "(in_layer): Linear(in_features=768, out_features=512, bias=True)" in str(lite.pooled_text_embeddings)
    assert "(in_layer): Linear(in_features=132, out_features=1792, bias=True)" in str(lite.visual_embeddings)

    block = lite.visual_transformer_blocks[0]
    assert type(block).__name__ == "TransformerDecoderBlock"
    linear = "Linear(in_features=1792, out_features=1792, bias=True)"
    printed = [line.strip() for line in str(block).splitlines()]
    for line in (
        "(out_layer): Linear(in_features=512, out_features=16128, bias=True)",
        "(self_attention): MultiheadSelfAttention(",
        f"(to_query): {linear}",
        f"(to_key): {linear}",
        f"(to_value): {linear}",
        "(query_norm): RMSNorm((64,), eps=None, elementwise_affine=True)",
        "(key_norm): RMSNorm((64,), eps=None, elementwise_affine=True)",
        f"(out_layer_self): {linear}",
        "(cross_attention): MultiheadCrossAttention(",
        f"(out_layer_cross): {linear}",
    ):
        assert line in printed


def test_lite_has_exactly_the_released_keys_and_shapes(lite):
    sizes = diffusers_settings(load_config(CONFIGS / "lite_5s.yaml").dit)
    with torch.device("meta"):
        released = Kandinsky5Transformer3DModel(**sizes).state_dict()
    ours = to_released(lite.state_dict())
    assert {key: value.shape for key, value in ours.items()} == {k: v.shape for k, v in released.items()}
    assert from_released(ours).keys() == lite.state_dict().keys()


def random_pair(visual_cond: bool) -> tuple[DiffusionTransformer3D, Kandinsky5Transformer3DModel]:
    """Return our model and diffusers' with the same random weights. The modulation is random as well."""
    sizes = dataclasses.replace(SIZES, visual_cond=visual_cond)
    theirs = Kandinsky5Transformer3DModel(**diffusers_settings(sizes)).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.25)
    ours = DiffusionTransformer3D(sizes).eval()
    ours.load_state_dict(from_released(theirs.state_dict()))
    return ours, theirs


@torch.no_grad()
def largest_difference(ours, theirs, shape: tuple[int, int, int], text_length: int) -> float:
    """Return the largest difference between the outputs for fresh random inputs, as a share of the largest output."""
    channels = 2 * SIZES.in_visual_dim + 1 if ours.config.visual_cond else SIZES.in_visual_dim
    x = torch.randn(*shape, channels)
    text, pooled = torch.randn(text_length, SIZES.in_text_dim), torch.randn(1, SIZES.in_text_dim2)
    time = torch.rand(1) * 1000
    positions, text_positions = rope_positions(ours, x), torch.arange(text_length)
    out = ours(x, text, pooled, time, positions, text_positions, (1.0, 2.0, 2.0))
    expected = theirs(x[None], text[None], time, pooled, positions, text_positions, (1.0, 2.0, 2.0)).sample[0]
    assert out.shape == expected.shape
    return relative_difference(out, expected)


@pytest.fixture
def bfloat16_rotary(monkeypatch):
    """Round rotated queries and keys to bfloat16, as diffusers does even in a float32 model."""
    rotate = model_parts.rotate
    monkeypatch.setattr(model_parts, "rotate", lambda x, rope: rotate(x, rope).bfloat16().type_as(x))


@pytest.mark.parametrize("visual_cond", [False, True])
@pytest.mark.parametrize(("shape", "text_length"), [((1, 4, 4), 1), ((3, 4, 6), 7), ((5, 8, 4), 12)])
def test_outputs_are_those_of_diffusers(bfloat16_rotary, visual_cond, shape, text_length):
    assert largest_difference(*random_pair(visual_cond), shape, text_length) < MODULE_BAR


def test_without_the_rounding_only_its_error_is_left(capsys):
    difference = largest_difference(*random_pair(False), (3, 4, 6), 7)
    with capsys.disabled():
        print(f"\nfloat32 RoPE against diffusers' bfloat16 rounding of it: {difference:.1e} of the largest output")
    # bfloat16 keeps 8 bits, which costs each rotated value up to 2^-8 = 4e-3. With the rounding the difference is 0.
    assert 0 < difference < 5e-2


def test_without_rope_the_outputs_differ(bfloat16_rotary, monkeypatch):
    monkeypatch.setattr(model_parts, "rotate", lambda x, rope: x)
    assert largest_difference(*random_pair(False), (3, 4, 6), 7) > MODULE_BAR


def test_without_one_head_the_outputs_differ(bfloat16_rotary):
    ours, theirs = random_pair(False)
    head = slice(0, SIZES.head_dim)
    with torch.no_grad():
        ours.visual_transformer_blocks[1].out_layer_self.weight[:, head] = 0.0
    assert largest_difference(ours, theirs, (3, 4, 6), 7) > MODULE_BAR


@torch.no_grad()
def test_a_batch_gives_what_its_samples_give_alone():
    model, _ = random_pair(False)
    x, text = torch.randn(2, 3, 4, 6, 4), torch.randn(2, 7, SIZES.in_text_dim)
    pooled, time = torch.randn(2, 1, SIZES.in_text_dim2), torch.rand(2, 1) * 1000
    rest = (rope_positions(model, x), torch.arange(7))
    together = model(x, text, pooled, time, *rest)
    alone = torch.stack([model(x[i], text[i], pooled[i], time[i], *rest) for i in range(2)])
    assert relative_difference(together, alone) < MODULE_BAR


def test_a_fresh_model_has_identity_blocks():
    """Zero modulation lets any error pass. This is why parity is never measured with fresh weights."""
    block = DiffusionTransformer3D(SIZES).visual_transformer_blocks[0]
    x = torch.randn(6, 64)
    rope = torch.randn(6, 1, 2, 16)
    assert torch.equal(block(x, torch.randn(5, 64), torch.randn(1, 32), rope), x)


def test_model_dim_must_hold_whole_heads():
    with pytest.raises(ValueError, match="model_dim 60 is not a multiple of the head dimension 16"):
        DiffusionTransformer3D(dataclasses.replace(SIZES, model_dim=60))


def test_compiling_without_a_compiler_is_refused_in_a_line(monkeypatch):
    monkeypatch.setenv("CXX", "no_such_compiler")
    with pytest.raises(
        ValueError, match="^compiling needs a C.. compiler, and 'no_such_compiler' was not found: install"
    ):
        compile_blocks(random_model())


def test_the_compiler_is_that_of_the_device_on_which_the_blocks_will_run(monkeypatch):
    """With offload the weights wait on a CPU, for which nothing is compiled."""
    monkeypatch.setenv("CXX", "no_such_compiler")
    monkeypatch.setenv("CC", "true")
    compile_blocks(random_model(), torch.device("cuda"))


def test_compiling_for_a_gpu_needs_a_compiler_as_well(monkeypatch, tmp_path):
    gpu = torch.device("cuda")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    missing = r"^compiling needs a C compiler, and 'gcc' or 'clang' was not found: install one \(apt install gcc\)"
    with pytest.raises(ValueError, match=missing):
        check_compiler(gpu)
    (tmp_path / "clang").touch(mode=0o755)
    check_compiler(gpu)
    monkeypatch.setenv("CC", "no_such_compiler")
    with pytest.raises(ValueError, match="and 'no_such_compiler' was not found: .* name yours in CC"):
        check_compiler(gpu)


@torch.no_grad()
def test_blocks_are_compiled_in_the_first_step_only(monkeypatch):
    """Once for the prompt, and once for all other lengths of text: the blocks share their graphs."""
    compilations, compile_module = CompileCounter(), torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module,
        "compile",
        lambda self, fullgraph, options: compile_module(self, fullgraph=fullgraph, backend=compilations),
    )
    monkeypatch.setattr(dit_module, "check_compiler", lambda device: None)
    model = random_model(num_visual_blocks=3)
    x, text, pooled, *_ = random_inputs(model)
    texts = [TextEmbeds(text, pooled), TextEmbeds(text[:-3], pooled)]
    compile_blocks(model)
    sampling = SamplingConfig(0, 16, 16, num_steps=4, guidance_weight=5.0, scheduler_scale=5.0, scale_factor=(1, 1, 1))
    after = []
    generate(model, x, *texts, sampling, callback=lambda step, latent: after.append(compilations.frame_count))
    generate(model, x, *texts, sampling)
    assert after == [2, 2, 2, 2] and compilations.frame_count == 2
