"""Lessons rely on this: predictions keep a guess, exercises say what is wrong, and pictures show live values."""

import ast
import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from helpers import NOTEBOOKS
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

from kandinsky_mini import lab
from kandinsky_mini.lab.drawings.canvas import MIXED, RANK_COLOURS
from kandinsky_mini.lab.drawings.shards import on_ranks, shard_map
from kandinsky_mini.parallel.ledger import Ledger


def test_without_a_guess_the_measurement_is_shown(capsys):
    guess = lab.predict("1 + 1 =", ["2", "3"])
    assert capsys.readouterr().out.startswith("1 + 1 =\n- 2\n- 3\n")
    guess.reveal("2")
    assert capsys.readouterr().out == "no guess; answer: 2\n"


def test_a_guess_is_shown_beside_the_measurement(capsys):
    guess = lab.predict("1 + 1 =", ["2", "3"])
    guess._buttons.value = "3"  # as a click does
    capsys.readouterr()
    guess.reveal("2")
    assert capsys.readouterr().out == "you guessed 3; answer: 2\n"


def test_a_measurement_that_nobody_could_guess_is_an_error():
    with pytest.raises(ValueError, match="measured '4', which is none of"):
        lab.predict("1 + 1 =", ["2", "3"]).reveal("4")


def own(mesh):
    return lab.own_tensor(lambda rank: torch.tensor([rank, 10.0 * rank]))


def summed(mesh, times=1):
    x = own(mesh)
    for _ in range(times):
        dist.all_reduce(x)
    return x


def gathered(mesh):
    return DTensor.from_local(own(mesh), mesh, [Shard(0)]).full_tensor().view(4, 2).sum(0)


ANSWERS = {
    "not tried yet; target: 1 all_reduce of 8 B": lambda mesh: ...,
    "right: 1 all_reduce of 8 B": summed,
    "not yet: rank 0 has [0.0, 0.0], not [6.0, 60.0]. Ask.": own,
    "not yet: rank 0 has [24.0, 240.0], not [6.0, 60.0]. Ask.": lambda mesh: summed(mesh, times=2),
    "not yet: rank 0 has shape (1,), not (2,). Ask.": lambda mesh: summed(mesh)[:1],
    "not yet: rank 0 gives int, not a tensor. Ask.": lambda mesh: 6,
    "not yet: rank 0 gives NoneType, not a tensor. Ask.": lambda mesh: None,
    "not yet: ZeroDivisionError: division by zero. Ask.": lambda mesh: 1 / 0,
    "right values, but they took 1 all_gather of 32 B; target: 1 all_reduce of 8 B. Ask.": gathered,
}


@pytest.mark.parametrize("verdict", ANSWERS)
def test_an_exercise_says_what_is_wrong(verdict, capsys):
    expected = [torch.tensor([6.0, 60.0])] * 4
    lab.grade(ANSWERS[verdict], ranks=4, expected=expected, target=[("all_reduce", 8)], hint="Ask.")
    assert capsys.readouterr().out == verdict + "\n"


def test_a_large_difference_is_told_by_its_size(capsys):
    right = torch.arange(20.0)
    lab.grade(lambda mesh: right + 0.5, ranks=1, expected=[right], target=[])
    assert capsys.readouterr().out == "not yet: rank 0 is up to 0.5 away from the right values.\n"


def tagged_cells(path: Path) -> list[tuple[str, dict]]:
    """Return the exercises and solutions of a notebook in order, each as its tag and its cell."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    tags = ("exercise", "solution")
    return [(tag, cell) for cell in cells for tag in cell["metadata"].get("tags", []) if tag in tags]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_exercises_are_untouched_and_their_solutions_are_right_and_folded(path):
    tagged = tagged_cells(path)
    assert [tag for tag, _ in tagged] == ["exercise", "solution"] * (len(tagged) // 2)
    for tag, cell in tagged:
        last = "".join(cell["outputs"][-1]["text"]).splitlines()[-1]
        assert last.startswith("not tried yet; target: " if tag == "exercise" else "right: ")
        assert cell["metadata"].get("jupyter", {}).get("source_hidden", False) == (tag == "solution")


def values(path: Path, until: str) -> dict:
    """Return what a notebook defines before the cell `until`, without its real ranks, figures and timing."""
    names = {}
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["id"] == until:
            return names
        for node in ast.parse("".join(cell["source"]) if cell["cell_type"] == "code" else "").body:
            code = ast.unparse(node)
            definition = isinstance(node, (ast.Import, ast.ImportFrom, ast.FunctionDef))
            value = isinstance(node, (ast.Assign, ast.With)) and "ranks.run(" not in code and "processes" not in code
            if definition or value:
                exec(code, names)
    raise ValueError(f"{path} has no cell {until}")


@pytest.mark.parametrize(
    ("path", "cell"),
    [
        pytest.param(path, cell, id=f"{path.stem}-{cell['id']}")
        for path in NOTEBOOKS
        for tag, cell in tagged_cells(path)
        if tag == "exercise"
    ],
)
def test_an_exercise_does_not_take_what_it_starts_with_for_the_answer(path, cell, capsys):
    source = "".join(cell["source"])
    assert source.count("return ...") + source.count("plan = ...") == 1
    names = values(path, until=cell["id"])
    capsys.readouterr()
    exec(source.replace("return ...", "return x").replace("plan = ...", "plan = {}"), names)
    assert capsys.readouterr().out.startswith(("not yet: ", "right values, but "))


def colours(axis) -> list[str]:
    from matplotlib.colors import to_hex

    return [to_hex(patch.get_facecolor()) for patch in axis.patches]


def test_numbers_keep_the_colour_of_the_rank_they_came_from():
    before = [torch.tensor([1.0]), torch.tensor([2.0])]
    first, second = on_ranks({"before": before, "after": [torch.tensor([1.0, 2.0]), torch.tensor([3.0])]}).axes
    assert colours(first) == list(RANK_COLOURS[:2])
    assert colours(second) == [*RANK_COLOURS[:2], MIXED]
    assert [text.get_text() for text in second.texts] == ["1", "2", "3"]


@pytest.mark.parametrize(("placement", "cells"), [(Shard(0), 16), (Shard(1), 16), (Replicate(), 32)])
def test_a_shard_map_shows_what_each_rank_holds(placement, cells):
    def place(mesh):
        return distribute_tensor(torch.arange(32).view(4, 8), mesh, [placement])

    figure = shard_map(lab.ranks(2).run(place), (4, 8))
    assert [int(axis.images[0].get_array().sum()) for axis in figure.axes] == [cells, cells]


@pytest.mark.parametrize(
    ("source", "goal", "collective"),
    [
        (Partial(), Replicate(), "all_reduce"),
        (Partial(), Shard(0), "reduce_scatter"),
        (Shard(0), Replicate(), "all_gather"),
    ],
)
def test_the_ledger_counts_a_redistribution(source, goal, collective):
    def redistribute(mesh):
        with Ledger() as ledger:
            DTensor.from_local(torch.ones(4, 2), mesh, [source]).redistribute(placements=[goal]).to_local()
        return ledger.entries

    for entries in lab.ranks(2).run(redistribute):
        assert [entry.collective for entry in entries] == [collective]
