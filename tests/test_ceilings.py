"""launch/ceilings.py times what the cost model needs, and writes it as the cost model reads it."""

import json

import ceilings
import pytest
import torch
import torch.distributed as dist
from torch import nn

from kandinsky_mini.parallel.ceilings import PUBLISHED_CEILINGS, load_ceilings
from kandinsky_mini.parallel.ledger import Ledger

PUBLISHED = sorted(PUBLISHED_CEILINGS.glob("ceilings-*.json"))[:1]
CPU = torch.device("cpu")
SMALL, TEXT, D, F, HEADS, HEAD_DIM, REPEATS = (16, 32), 8, 8, 16, 4, 4, 3


@pytest.fixture(autouse=True)
def small(monkeypatch, one_thread):
    """A few tokens instead of the real model's, and a clock that shows a millisecond for each call."""
    monkeypatch.setattr(ceilings, "TOKENS", SMALL)
    monkeypatch.setattr(ceilings, "TEXT_TOKENS", TEXT)
    monkeypatch.setattr(ceilings, "repeated", lambda call, device, repeats: [(call(), 1e-3)[1]] * repeats)


def test_a_call_is_timed_in_batches(monkeypatch):
    """A batch fills 50 ms, has at least one call and at most 200, and its time is divided by its calls."""
    monkeypatch.undo()
    for one, batch in ((0.01, 5), (0.2, 1), (1e-9, 200)):
        calls = []

        def timed(run, device, calls=calls, one=one):
            before = len(calls)
            run()
            return one * (len(calls) - before)

        monkeypatch.setattr(ceilings, "timed", timed)
        assert ceilings.repeated(lambda calls=calls: calls.append(1), CPU, REPEATS) == pytest.approx([one] * REPEATS)
        assert len(calls) == 2 + 1 + REPEATS * batch  # two to warm up, and one to choose the size of a batch


def test_linear_layers_are_those_of_a_block_whole_and_split(monkeypatch):
    seen = set()
    forward = nn.Linear.forward

    def watched(layer, x):
        assert x.dtype == layer.weight.dtype == torch.bfloat16
        seen.add((len(x), layer.in_features, layer.out_features))
        return forward(layer, x)

    monkeypatch.setattr(nn.Linear, "forward", watched)
    measured = ceilings.measure_linear(D, F, CPU, REPEATS)
    assert {tuple(each["shape"]) for each in measured} == seen
    for parts in (1, 2, 4):
        assert {(16, D, D // parts), (16, D // parts, D), (16, D, F // parts), (16, F // parts, D)} <= seen
        assert (16 // parts, D, D) in seen
    assert {(rows, *each) for rows in (4, TEXT) for each in ((D, D), (D, F), (F, D))} <= seen
    assert all(len(each["seconds"]) == REPEATS for each in measured)


def test_attention_is_over_all_tokens_with_a_share_of_the_heads():
    measured = ceilings.measure_attention(HEADS, HEAD_DIM, "cudnn", CPU, REPEATS)
    shapes = [[tokens, heads] for tokens in SMALL for heads in (4, 2, 1)]
    assert [each["shape"] for each in measured] == shapes


def test_the_bytes_of_a_gated_sum_are_two_tensors_read_and_one_written(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function: function)
    (measured,) = ceilings.measure_elementwise(D, CPU, REPEATS)
    assert measured["bytes"] == 3 * 16 * D * 2


@pytest.fixture
def four_ranks(monkeypatch):
    """Let this process be rank 0 of four. The others do not exist, and collectives return at once."""
    dist.init_process_group("fake", rank=0, world_size=4)
    for name, value in (("world_size", 4), ("rank", 0)):
        monkeypatch.setattr(ceilings, name, lambda value=value: value)
    yield
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")  # the new names are not in torch 2.11
def test_collectives_have_the_payload_that_the_record_says(four_ranks):
    """Between 2 and 4 ranks. Each is called 3 times to warm up, and 20 times for each measurement."""
    with Ledger() as ledger:
        measured = ceilings.measure_collectives(D, CPU, REPEATS)
    payloads = [*ceilings.SMALL_PAYLOADS, *(2 * tokens * D for tokens in SMALL)]
    wanted = [(kind, ranks, size) for ranks in (2, 4) for kind in ceilings.KINDS for size in payloads]
    assert [(each["kind"], each["ranks"], each["bytes"]) for each in measured] == wanted
    calls = [(entry.collective, entry.ranks, entry.payload) for entry in ledger.entries]
    assert calls == [each for each in wanted for _ in range(3 + 20 * REPEATS)]
    assert all(len(each["seconds"]) == REPEATS and min(each["seconds"]) > 0 for each in measured)


@pytest.fixture
def on_a_gpu(monkeypatch):
    """Let the script take the CPU for a GPU of 10 GB. It then measures everything but collectives."""
    monkeypatch.setattr(torch, "compile", lambda function: function)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: type("", (), {"total_memory": 10**10}))
    for name, value in (("local_device", "cpu"), ("device_name", "NVIDIA H9 80GB"), ("versions", {"torch": "x"})):
        monkeypatch.setattr(ceilings, name, lambda *_, value=value: value)


def test_the_record_is_one_that_the_cost_model_reads(on_a_gpu, tmp_path, capsys):
    ceilings.main(["--out", str(tmp_path), "--repeats", "2"])
    path = tmp_path / "ceilings-h9_80gb.json"
    assert capsys.readouterr().out == f"{path}\n"
    record, read = json.loads(path.read_text()), load_ceilings(folder=tmp_path)
    assert (read.device, read.memory_bytes, read.head_dim) == ("NVIDIA H9 80GB", 10**10, 64)
    assert len(read.linear) == len(record["linear"]) and len(read.attention) == 6
    assert {*read.linear.values(), *read.attention.values(), *read.elementwise.values()} == {1e-3}
    assert read.collectives == {} and record["interconnect"] == "none"
    assert record["linear"][0]["seconds"] == [1e-3] * 2


def test_the_published_record_has_what_the_script_measures(on_a_gpu, tmp_path):
    """All fields, and for each list the same fields of an entry."""
    ceilings.main(["--out", str(tmp_path)])
    (path,) = tmp_path.glob("*.json")
    new, published = (json.loads(each.read_text(encoding="utf-8")) for each in (path, *PUBLISHED))
    assert new.keys() == published.keys()
    for name in ("linear", "attention", "elementwise"):
        assert new[name][0].keys() == published[name][0].keys()
    assert {(each["kind"], each["ranks"]) for each in published["collectives"]} == {
        (kind, ranks) for kind in ceilings.KINDS for ranks in (2, 4)
    }


def test_without_a_gpu_nothing_is_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        ceilings.main(["--out", str(tmp_path)])
    assert "ceilings are those of a GPU, and there is none here" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
