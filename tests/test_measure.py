"""Records keep the bytes of weights that a rank holds, its peak of memory, and what a step spent its time on."""

import resource
import sys
import time

import pytest
import torch
from helpers import SMALL, random_model

from kandinsky_mini.bench import measure
from kandinsky_mini.models.parallelize import parallelize_dit
from kandinsky_mini.parallel.simulation import simulated_ranks

CPU = torch.device("cpu")


def test_the_weights_of_a_rank_are_its_share_of_the_split_layers_and_all_of_the_others():
    model = random_model()
    parameters = dict(model.named_parameters())
    whole = measure.weight_bytes(model)
    assert whole == 4 * sum(parameter.numel() for parameter in parameters.values())
    with simulated_ranks(4) as mesh:
        held = measure.weight_bytes(parallelize_dit(model, mesh))
    kept = ("text_transformer_blocks.", "norm.", "out_layer.modulation.")  # and what is added after a sum
    rows = ("time_embeddings.out_layer.bias", "out_layer_self.bias", "out_layer_cross.bias")
    alone = sum(
        p.numel() for name, p in parameters.items() if any(part in name for part in kept) or name.endswith(rows)
    )
    split = whole // 4 - alone
    assert held == 4 * (alone + split // 4)
    assert SMALL.num_visual_blocks == 2 and held < 0.6 * whole


def test_the_peak_of_memory_is_in_bytes():
    """A process that has loaded torch holds at least 100 MB, and this one far less than a terabyte."""
    assert 1e8 < measure.peak_bytes(CPU) < 1e12
    unit = 1 if sys.platform == "darwin" else 1024
    assert measure.peak_bytes(CPU) == resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def test_a_stopwatch_gives_the_seconds_between_its_calls(monkeypatch):
    now = iter([10.0, 11.5, 14.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(now))
    watch = measure.Stopwatch(CPU)
    watch()
    watch("a step", "and its latent")
    assert watch.seconds == [1.5, 2.5]


@pytest.mark.parametrize(("whole", "idle"), [(10.0, 4.0), (5.0, 0.0)])
def test_a_step_s_time_is_split_by_kind_and_the_rest_is_idle(monkeypatch, whole, idle):
    """Kernels that overlap count twice, so idle time may come out below zero, which a figure could not show."""
    spent = {"aten::addmm": 3.0, "aten::_scaled_dot_product_flash": 2.0, "c10d::allreduce_": 0.5, "aten::mul": 0.5}
    monkeypatch.setattr(measure, "operators", lambda profiler: spent)
    monkeypatch.setattr(measure, "timed", lambda run, device: whole)
    found = measure.breakdown(lambda: None, CPU)
    kinds = {"communication": 0.5, "attention": 2.0, "linear": 3.0, "rest": 0.5}
    assert found == pytest.approx(kinds | {"idle": idle, "whole": whole})
