"""NABLA keeps the blocks that diffusers keeps, and attends to nothing else.

`sparse_attention` says in plain loops what must come out. All fast forms are compared with it.
"""

import copy
import dataclasses
import itertools
import math
import shutil

import pytest
import torch
import yaml
from diffusers import Kandinsky5T2VPipeline
from diffusers.models.transformers import transformer_kandinsky
from helpers import (
    MODEL_BAR,
    MODULE_BAR,
    SAFE_MARGIN,
    SMALL,
    margin,
    random_inputs,
    random_model,
    relative_difference,
    sparse_model_and_inputs,
)
from torch.nn.functional import scaled_dot_product_attention

from kandinsky_mini.bench.peers import DiffusersDiT
from kandinsky_mini.config import ConfigError, NablaConfig, load_config
from kandinsky_mini.models import nn as model_parts
from kandinsky_mini.models.checkpoint import from_released
from kandinsky_mini.models.dit import DiffusionTransformer3D, compile_blocks
from kandinsky_mini.models.nabla import (
    NablaAttention,
    as_mask,
    attend_by_flex,
    attend_by_mask,
    choose_blocks,
    densities_of,
    near_blocks,
)
from kandinsky_mini.models.parallelize import PLANS, parallelize_dit
from kandinsky_mini.parallel.layout import ParallelLayout
from kandinsky_mini.parallel.simulation import per_rank, simulated_ranks
from kandinsky_mini.sampling import rope_positions

GRID, NABLA = (3, 4, 6), NablaConfig(P=0.6, window=(1, 1, 3), block=(2, 2))
RELEASED = load_config("lite_10s").dit.nabla
NEEDS_A_COMPILER = pytest.mark.skipif(
    not shutil.which("c++") or " " in torch.__file__, reason="needs c++ and a path without spaces"
)


def queries_keys_values(config: NablaConfig, blocks: int, heads: int = 4, head_dim: int = 16) -> list[torch.Tensor]:
    """Draw q, k, v (S, heads, head_dim). Some heads look at few blocks, and others at almost all of them."""
    while True:
        q, k, v = (torch.randn(blocks, config.block_tokens, heads, head_dim) for _ in range(3))
        shared_by_block = torch.randn(blocks, 1, heads, head_dim) * torch.linspace(0, 2, heads)[:, None]
        q, k, v = (x.flatten(0, 1) for x in (q + shared_by_block, k + shared_by_block.roll(1, 0), v))
        if margin(q, k, config) > SAFE_MARGIN:
            return [q, k, v]


def sparse_attention(q, k, v, near: torch.Tensor, config: NablaConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the output and the kept blocks (heads, blocks, blocks). This is the rule, one row after the other."""
    size, scale = config.block_tokens, math.sqrt(q.shape[-1])
    q, k, v = q.double(), k.double(), v.double()
    out, kept = torch.zeros_like(q), near.repeat(q.shape[1], 1, 1)
    for head in range(q.shape[1]):
        q_mean, k_mean = (torch.stack([part.mean(0) for part in x[:, head].split(size)]) for x in (q, k))
        for i, row in enumerate((q_mean @ k_mean.T / scale).softmax(-1)):
            share = 0.0
            for j in row.argsort(descending=True):
                if share > config.P:
                    break
                kept[head, i, j], share = True, share + row[j]
            mine = slice(i * size, (i + 1) * size)
            others = kept[head, i].repeat_interleave(size)
            scores = (q[mine, head] @ k[others, head].T / scale).softmax(-1)
            out[mine, head] = scores @ v[others, head]
    return out.float(), kept


@pytest.mark.parametrize("P", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("block", [(2, 2), (1, 3), (4, 2)])
def test_the_output_is_that_of_the_rule(P, block):
    config = NablaConfig(P, (3, 1, 3), block)
    near = near_blocks(GRID, config, torch.device("cpu"))
    q, k, v = queries_keys_values(config, len(near))
    expected, kept = sparse_attention(q, k, v, near, config)
    densities = kept.float().mean((1, 2))
    assert densities.max() > densities.min()  # heads differ, or the test would show less
    assert relative_difference(NablaAttention(config)(q, k, v, near=near), expected) < MODULE_BAR


def test_a_batch_gives_what_its_samples_give_alone():
    near = near_blocks(GRID, NABLA, torch.device("cpu"))
    samples = [queries_keys_values(NABLA, len(near)) for _ in range(2)]
    attention = NablaAttention(NABLA)
    together = attention(*(torch.stack(tensors) for tensors in zip(*samples, strict=True)), near=near)
    for out, sample in zip(together, samples, strict=True):
        assert relative_difference(out, attention(*sample, near=near)) < MODULE_BAR


@NEEDS_A_COMPILER
def test_flex_attention_computes_the_kept_blocks_alone():
    near = near_blocks(GRID, NABLA, torch.device("cpu"))
    q, k, v = (x.transpose(0, 1)[None] for x in queries_keys_values(NABLA, len(near)))
    count, order = NablaAttention(NABLA).choose(q, k, near)
    assert 0.1 < as_mask(count, order).float().mean() < 0.9
    with torch.no_grad():
        fast, plain = (attend(q, k, v, count, order, NABLA.block_tokens) for attend in (attend_by_flex, attend_by_mask))
    assert relative_difference(fast, plain) < MODULE_BAR


@NEEDS_A_COMPILER
@torch.no_grad()
def test_compiled_blocks_give_the_same():
    model, inputs = sparse_model_and_inputs()
    expected = model(*inputs)
    compile_blocks(model)
    assert relative_difference(model(*inputs), expected) < MODEL_BAR


def test_kept_blocks_come_first():
    """The order tells flex_attention which blocks to take, and has every block once."""
    near = near_blocks(GRID, NABLA, torch.device("cpu"))
    q, k, _ = queries_keys_values(NABLA, len(near))
    count, order = NablaAttention(NABLA).choose(q.transpose(0, 1), k.transpose(0, 1), near)
    assert count.dtype == order.dtype == torch.int32
    for row, number, places in zip(
        as_mask(count, order).flatten(0, 1), count.flatten(), order.flatten(0, 1), strict=True
    ):
        assert places[:number].tolist() == row.nonzero().flatten().tolist()
        assert sorted(places.tolist()) == list(range(len(near)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_chooses_the_same_blocks():
    for blocks, P in itertools.product((7, 128, 1464), (0.0, 0.1, 0.5, 0.9, 0.999, 1.0)):
        scores = 3 * torch.randn(2, 5, blocks, blocks)
        near = torch.rand(blocks, blocks) < 0.05
        found = [as_mask(*(x.cpu() for x in choose_blocks(scores.to(on), near.to(on), P))) for on in ("cpu", "cuda")]
        # Sums are rounded in another order, which now and then decides about a block.
        assert (found[0] != found[1]).float().mean() < 1e-5, (blocks, P)


@pytest.mark.parametrize("P", [0.01, 0.3, 0.9, 0.999])
def test_the_blocks_are_those_that_diffusers_keeps(P):
    config = dataclasses.replace(RELEASED, P=P)  # diffusers' blocks have 8 x 8 patches
    near = near_blocks((4, 16, 24), config, torch.device("cpu"))
    q, k, _ = queries_keys_values(config, len(near))
    theirs = transformer_kandinsky.nablaT_v2(q[None], k[None], near, P)
    expected = as_mask(theirs.full_kv_num_blocks, theirs.full_kv_indices)[0]
    ours = as_mask(*NablaAttention(config).choose(q.transpose(0, 1), k.transpose(0, 1), near))
    assert torch.equal(ours, expected)


@pytest.mark.parametrize("window", [(1, 1, 1), (11, 3, 3), (3, 1, 5)])
def test_the_blocks_nearby_are_those_of_diffusers(window):
    near = near_blocks((7, 16, 40), dataclasses.replace(RELEASED, window=window), torch.device("cpu"))
    assert torch.equal(near, Kandinsky5T2VPipeline.fast_sta_nabla(7, 2, 5, *window, device="cpu"))


def test_equal_weights_stay_together():
    """A sort would leave out a tenth of them, and which ones would be chance."""
    none = torch.zeros(1, 1000, dtype=torch.bool)
    assert as_mask(*choose_blocks(torch.zeros(1, 1000), none, 0.9)).all()
    kept = as_mask(*choose_blocks(torch.tensor([[0.4, 0.2, 0.2, 0.1, 0.1]]).log(), none[:, :5], 0.7))
    assert kept.tolist() == [[True, True, True, False, False]]


def random_pair(**changes) -> tuple[DiffusionTransformer3D, DiffusersDiT]:
    """Return our model and diffusers' with the same random weights, both with NABLA."""
    sizes = dataclasses.replace(SMALL, nabla=dataclasses.replace(RELEASED, P=0.5, window=(3, 1, 1)), **changes)
    theirs, ours = DiffusersDiT(sizes).eval(), DiffusionTransformer3D(sizes).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    ours.load_state_dict(from_released(theirs.model.state_dict()))
    return ours, theirs


@pytest.fixture
def as_diffusers(monkeypatch):
    """Round rotated queries and keys as diffusers does, and let its attention on a CPU heed its block mask.

    flex_attention ignores that unless it is compiled.
    """
    rotate = model_parts.rotate
    monkeypatch.setattr(model_parts, "rotate", lambda x, rope: rotate(x, rope).bfloat16().type_as(x))

    def attend(q, k, v, attn_mask=None, **_):
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        if attn_mask is None:
            return scaled_dot_product_attention(q, k, v).transpose(1, 2)
        count, order = attn_mask.full_kv_num_blocks, attn_mask.full_kv_indices
        seen.append(as_mask(count, order).float().mean().item())
        return attend_by_mask(q, k, v, count, order, 64)

    seen = []
    monkeypatch.setattr(transformer_kandinsky, "dispatch_attention_fn", attend)
    return seen


@torch.no_grad()
@pytest.mark.parametrize("frame", [(32, 32), (16, 48)])
def test_outputs_are_those_of_diffusers(as_diffusers, frame):
    """Queries and keys are rounded to bfloat16 here. That can decide about a block, so one of ten draws must agree."""
    for _ in range(10):
        as_diffusers.clear()
        ours, theirs = random_pair()
        inputs, x = random_inputs(ours), torch.randn(5, *frame, SMALL.in_visual_dim)
        inputs = (x, *inputs[1:4], rope_positions(ours, x), inputs[5], (1.0, 2.0, 2.0))
        difference = relative_difference(ours(*inputs), theirs(*inputs))
        if difference < MODULE_BAR:
            break
    assert difference < MODULE_BAR
    assert len(as_diffusers) == SMALL.num_visual_blocks
    assert 0.2 < min(as_diffusers) and max(as_diffusers) < 0.95


@torch.no_grad()
def test_with_all_blocks_the_model_is_the_one_with_full_attention():
    """Its tokens are in another order, which nothing but NABLA may notice."""
    model = random_model()
    for P, window in ((1.0, (1, 1, 1)), (0.0, (99, 99, 99))):
        sparse = random_model(nabla=NablaConfig(P, window, (2, 1)))
        sparse.load_state_dict(model.state_dict())
        inputs = random_inputs(model)
        assert relative_difference(sparse(*inputs), model(*inputs)) < MODEL_BAR


def test_frames_hold_whole_blocks():
    with pytest.raises(ValueError, match=r"whole blocks of \(4, 4\) patches, and a frame has \(4, 6\)"):
        near_blocks(GRID, dataclasses.replace(NABLA, block=(4, 4)), torch.device("cpu"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"P": 1.5}, "dit: nabla: P must be a finite number, 0 to 1, not 1.5"),
        ({"P": float("nan")}, "dit: nabla: P must be a finite number"),
        ({"window": [11, 2, 3]}, "dit: nabla: window: 2 is even"),
        ({"window": [11, 3]}, "is not a list of 3"),
        ({"block": [0, 8]}, "dit: nabla: block must be a whole number, 1 to"),
        ({"blocks": 8}, "dit: nabla: unknown key 'blocks'"),
    ],
)
def test_wrong_settings_are_refused(tiny_values, tmp_path, changes, said):
    nabla = {"P": 0.9, "window": [11, 3, 3], "block": [1, 1]}
    path = tmp_path / "conf.yaml"
    path.write_text(yaml.safe_dump(tiny_values | {"dit": tiny_values["dit"] | {"nabla": nabla}}))
    assert load_config(path).dit.nabla == NablaConfig(0.9, (11, 3, 3), (1, 1))
    path.write_text(yaml.safe_dump(tiny_values | {"dit": tiny_values["dit"] | {"nabla": nabla | changes}}))
    with pytest.raises(ConfigError) as error:
        load_config(path)
    assert said in str(error.value)


@pytest.mark.parametrize(("side", "value"), [("width", 720), ("height", 448)])
def test_sides_are_multiples_of_128_pixels(tiny_values, tmp_path, side, value):
    nabla = {"P": 0.9, "window": [11, 3, 3], "block": [8, 8]}
    sampling = tiny_values["sampling"] | {"width": 768, "height": 512}
    values = tiny_values | {"dit": tiny_values["dit"] | {"nabla": nabla}, "sampling": sampling}
    path = tmp_path / "conf.yaml"
    path.write_text(yaml.safe_dump(values))
    load_config(path)
    path.write_text(yaml.safe_dump(values | {"sampling": sampling | {side: value}}))
    with pytest.raises(ConfigError, match=f"{side} must be a multiple of 128 pixels"):
        load_config(path)


@torch.no_grad()
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("ranks", [2, 4])
def test_a_sharded_model_gives_what_the_whole_one_gives(ranks, plan):
    check_parity(ParallelLayout("tp", ranks), plan)


@pytest.mark.parametrize("layout", ["ulysses1x2", "ulysses2x2", "ulysses1x4"])
def test_ranks_with_a_part_of_the_queries_have_their_rows_of_the_map(layout):
    check_parity(ParallelLayout.parse(layout), "ulysses")


@torch.no_grad()
def check_parity(layout: ParallelLayout, plan: str) -> None:
    model, inputs = sparse_model_and_inputs()
    with densities_of(model) as densities:
        whole = model(*inputs)
    dense = random_model()
    dense.load_state_dict(model.state_dict())
    assert relative_difference(whole, dense(*inputs)) > 100 * MODEL_BAR  # that much depends on the blocks
    with simulated_ranks(layout) as mesh:
        sharded = parallelize_dit(copy.deepcopy(model), mesh[layout.dimensions], plan)
        with densities_of(sharded) as of_ranks:
            outputs = per_rank(sharded(*inputs))
        assert max(relative_difference(out, whole) for out in outputs) < MODEL_BAR
        for density, parts in zip(densities, of_ranks, strict=True):
            assert torch.stack(per_rank(parts)).mean().item() == pytest.approx(density.mean().item())


def test_parts_of_the_queries_hold_whole_blocks():
    config, sampling = load_config("lite_10s").dit, load_config("lite_10s").sampling
    layout = ParallelLayout.parse("ulysses4x2")
    layout.check_run(sampling, config)
    odd = dataclasses.replace(sampling, width=640, height=384)  # 61 frames of 3 x 5 blocks
    with pytest.raises(ValueError, match="the layout ulysses4x2 splits the queries, and 915 blocks of NABLA are not"):
        layout.check_run(odd, config)
    ParallelLayout.parse("ulysses4").check_run(odd, config)
    layout.check_run(odd, dataclasses.replace(config, nabla=None))
