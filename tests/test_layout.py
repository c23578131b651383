"""Layouts have a text form and a mesh, and one that does not fit is refused before anything is sharded."""

import dataclasses
import re

import pytest
from helpers import SMALL, random_model

from kandinsky_mini import get_T2V_pipeline
from kandinsky_mini.config import CONFIGS, load_config
from kandinsky_mini.models.parallelize import parallelize_dit
from kandinsky_mini.parallel.guidance import branches_on
from kandinsky_mini.parallel.layout import ParallelLayout, fitting_layouts
from kandinsky_mini.parallel.simulation import simulated_ranks

FORMS = {
    "tp1": ParallelLayout(),
    "tp4": ParallelLayout("tp", 4),
    "tp_sp2": ParallelLayout("tp_sp", 2),
    "cfg2-ulysses4": ParallelLayout("ulysses", 4, cfg=2),
    "ulysses4x2": ParallelLayout("ulysses", 4, queries=2),
}


@pytest.mark.parametrize("text", FORMS)
def test_a_layout_is_printed_as_it_is_parsed(text):
    assert ParallelLayout.parse(text) == FORMS[text]
    assert str(FORMS[text]) == text


def test_the_ranks_of_a_layout_are_those_of_all_branches():
    assert [layout.ranks for layout in FORMS.values()] == [1, 4, 2, 8, 8]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        *((text, f"'{text}' is not a layout") for text in ("", "tp", "4", "tp0", "tp4-cfg2", "tp 4", "tp-4")),
        ("cfg2", "unknown kind of layout 'cfg': choose one of tp, tp_sp, ulysses"),
        ("best4", "unknown kind of layout 'best': choose one of tp, tp_sp, ulysses"),
        ("tp4x2", "only Ulysses can split queries, as in ulysses4x2, but tp4x2 is a layout of tp"),
        ("ulysses4x0", "'ulysses4x0' is not a layout"),
        ("cfg3-tp2", r"cfg must be 1 \(all ranks compute both branches\) or 2 \(half of them each\), not 3"),
    ],
)
def test_text_that_is_no_layout_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        ParallelLayout.parse(text)


def test_the_mesh_has_a_dimension_for_each_way_of_splitting():
    with simulated_ranks(FORMS["tp4"]) as mesh:
        assert (mesh.mesh_dim_names, mesh.mesh.tolist()) == (("tensor_parallel",), [0, 1, 2, 3])
    with simulated_ranks(FORMS["cfg2-ulysses4"]) as mesh:
        assert mesh.mesh_dim_names == ("cfg_parallel", "context_parallel")
        assert mesh.mesh.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]  # the ranks of one branch are neighbours
    with simulated_ranks(FORMS["ulysses4x2"]) as mesh:
        assert mesh.mesh_dim_names == ("query_parallel", "context_parallel")
        assert mesh.mesh.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]  # those that trade tokens for heads are neighbours
    with simulated_ranks(ParallelLayout("ulysses", 2, cfg=2, queries=2)) as mesh:
        assert mesh.mesh_dim_names == ("cfg_parallel", "query_parallel", "context_parallel")
        assert mesh.mesh.tolist() == [[[0, 1], [2, 3]], [[4, 5], [6, 7]]]


@pytest.mark.parametrize(
    ("text", "ranks", "message"),
    [
        ("tp4", 2, "the layout tp4 needs 4 ranks, but 2 were started: use torchrun --nproc-per-node 4"),
        ("tp3", 3, "8 heads are not divisible by 3; it can split this model over 1, 2, 4 or 8 ranks"),
        ("ulysses3", 3, "Ulysses over 3 ranks: 8 heads are not divisible by 3"),
        (
            "tp16",
            16,
            r"\. 16 ranks can split it by ulysses8x2 or ulysses4x4 or ulysses2x8, or by cfg2-tp8 or cfg2-tp_sp8",
        ),
        ("tp16", 16, "or cfg2-ulysses2x4, for which the run must be guided$"),
        ("tp5", 5, "8 heads are not divisible by 5; it can split this model over 1, 2, 4 or 8 ranks$"),
    ],
)
def test_a_layout_that_does_not_fit_is_refused(text, ranks, message):
    with pytest.raises(ValueError, match=message):
        ParallelLayout.parse(text).check(SMALL, ranks)
    ParallelLayout.parse("tp4").check(SMALL, 4)


def test_what_28_heads_can_do_on_8_ranks():
    lite = load_config(CONFIGS / "lite_5s.yaml").dit
    with pytest.raises(
        ValueError, match="28 heads are not divisible by 8; .* 8 ranks can .* by ulysses4x2 .* cfg2-tp4 .* guided"
    ):
        ParallelLayout("tp", 8).check(lite, 8)
    assert list(map(str, fitting_layouts(lite, 7))) == ["ulysses7"]
    guided = ["cfg2-tp4", "cfg2-tp_sp4", "cfg2-ulysses4", "cfg2-ulysses2x2"]
    assert list(map(str, fitting_layouts(lite, 8))) == ["ulysses4x2", "ulysses2x4", *guided]


def test_queries_are_split_by_ulysses_alone():
    with pytest.raises(ValueError, match="the queries of a layout need at least 1 rank, not 0"):
        ParallelLayout("ulysses", 4, queries=0)
    with simulated_ranks(FORMS["ulysses4x2"]) as mesh:
        with pytest.raises(ValueError, match=r"the plan 'talk' cannot use a mesh with the dimensions \('query_"):
            parallelize_dit(random_model(), mesh, "talk")
    with simulated_ranks(FORMS["cfg2-ulysses4"]) as mesh:
        with pytest.raises(ValueError, match=r"the plan 'ulysses' cannot use a mesh with the dimensions \('cfg_"):
            parallelize_dit(random_model(), mesh, "ulysses")


def test_a_run_without_guidance_has_no_branches_to_split():
    sampling = load_config(CONFIGS / "mini.yaml").sampling
    unguided = dataclasses.replace(sampling, guidance_weight=1.0)
    layout = ParallelLayout("tp", 2, cfg=2)
    layout.check_run(sampling, SMALL)
    with pytest.raises(ValueError, match="cfg2-tp2 computes .* with a guidance weight of 1 there is only one"):
        layout.check_run(unguided, SMALL)


@pytest.mark.parametrize("kind", ["tp_sp", "ulysses"])
def test_tokens_that_do_not_divide_are_refused(kind):
    sampling = load_config(CONFIGS / "mini.yaml").sampling
    odd = dataclasses.replace(sampling, time_length=1, width=80, height=48)
    message = rf"the layout {kind}4 splits .* 7 x 3 x 5 tokens are not divisible by 4: choose a width .* of 64 pixels"
    with pytest.raises(ValueError, match=message):
        ParallelLayout(kind, 4).check_run(odd, SMALL)
    ParallelLayout(kind, 4).check_run(dataclasses.replace(odd, width=64), SMALL)
    if kind == "ulysses":
        with pytest.raises(ValueError, match="tokens are not divisible by 4"):
            ParallelLayout(kind, 2, queries=2).check_run(odd, SMALL)
    ParallelLayout("tp", 4).check_run(odd, SMALL)


def test_ranks_that_split_queries_share_their_heads():
    """So their number need not divide the heads: Lite has 28."""
    ParallelLayout.parse("ulysses4x2").check(load_config("lite_5s").dit, 8)


@pytest.mark.parametrize(("text", "fits"), [("ulysses2", True), ("cfg2-ulysses2", True), ("ulysses2x2", False)])
def test_all_ranks_of_a_branch_share_its_tokens(text, fits):
    """126 tokens are enough for two ranks in each branch, but not where each of two has its queries split as well."""
    sampling = load_config(CONFIGS / "mini.yaml").sampling
    even, layout = dataclasses.replace(sampling, time_length=1, width=96, height=48), ParallelLayout.parse(text)
    if fits:
        layout.check_run(even, SMALL)
        return
    with pytest.raises(ValueError, match="7 x 3 x 6 tokens are not divisible by 4"):
        layout.check_run(even, SMALL)


@pytest.mark.parametrize("text", ["ulysses4", "ulysses2x2", "cfg2-ulysses4x2", "tp_sp8"])
def test_the_width_that_is_named_suits_the_layout(text):
    sampling = load_config(CONFIGS / "mini.yaml").sampling
    odd, layout = dataclasses.replace(sampling, time_length=1, width=80, height=48), ParallelLayout.parse(text)
    with pytest.raises(ValueError, match="choose a width that is a multiple of") as refused:
        layout.check_run(odd, SMALL)
    width = int(re.search(r"multiple of (\d+) pixels", str(refused.value))[1])
    layout.check_run(dataclasses.replace(odd, width=width), SMALL)


def test_the_pipeline_refuses_a_run_that_its_layout_cannot_split(tiny_pipe, monkeypatch):
    monkeypatch.setattr(tiny_pipe, "layout", ParallelLayout("tp", 1, cfg=2))
    with pytest.raises(ValueError, match="there is only one"):
        tiny_pipe("a cat", guidance_weight=1.0)


def test_the_pipeline_refuses_a_layout_before_it_looks_for_weights(tiny_config):
    with pytest.raises(ValueError, match="the layout tp2 needs 2 ranks, but 1 were started"):
        get_T2V_pipeline("cpu", CONFIGS / "lite_5s.yaml", layout="tp2")
    assert get_T2V_pipeline("cpu", tiny_config, layout="tp1").config.name == "tiny"


def test_simulated_ranks_cannot_have_branches_of_their_own():
    with simulated_ranks(ParallelLayout("tp", 1, cfg=2)) as mesh:
        with pytest.raises(ValueError, match="guidance parallelism needs real ranks"):
            branches_on(mesh)(lambda text: text, [None, None])


def test_a_model_with_one_head_cannot_be_split():
    one = dataclasses.replace(SMALL, axes_dims=(SMALL.model_dim // 2, SMALL.model_dim // 4, SMALL.model_dim // 4))
    assert one.num_heads == 1
    with pytest.raises(ValueError, match="1 heads are not divisible by 2; it can split this model over 1 rank, and no"):
        ParallelLayout("ulysses", 2).check(one, 2)
