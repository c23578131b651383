"""Stored notebooks are whole and small. They were run from top to bottom, and are true on any machine."""

import re
import statistics

import nbformat
import pytest
from helpers import NOTEBOOKS

MOST_BYTES, MOST_LINES, MOST_COLUMNS = 2_000_000, 25, 100


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request) -> nbformat.NotebookNode:
    assert request.param.stat().st_size < MOST_BYTES
    return nbformat.read(request.param, as_version=4)


def code_cells(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_there_are_notebooks():
    assert NOTEBOOKS


def test_cells_ran_once_each_in_order(notebook):
    assert [cell.execution_count for cell in code_cells(notebook)] == list(range(1, len(code_cells(notebook)) + 1))


def test_cells_can_be_read_on_one_screen(notebook):
    for cell in code_cells(notebook):
        lines = cell.source.splitlines()
        assert len(lines) <= MOST_LINES and max(map(len, lines)) <= MOST_COLUMNS, cell.source


def test_most_cells_are_short(notebook):
    assert statistics.median(len(cell.source.splitlines()) for cell in code_cells(notebook)) < 12


def test_no_output_is_an_error_a_live_widget_or_of_one_machine(notebook):
    for cell in code_cells(notebook):
        for output in cell.outputs:
            assert output.output_type != "error"
            assert "application/vnd.jupyter.widget-view+json" not in output.get("data", {})  # blank without a kernel
            text = output.get("text", "") + output.get("data", {}).get("text/plain", "")
            assert not re.search(r"(?:/home/|/root/|/Users/|/tmp/|[A-Z]:\\)", text), text
