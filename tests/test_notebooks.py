"""Stored notebooks are whole and small. They were run from top to bottom, and are true on any machine."""

import itertools
import re
import statistics
from pathlib import Path

import nbformat
import pytest
from helpers import LESSONS, ROOT, TALKS

MOST_BYTES, MOST_LINES, MOST_COLUMNS = 2_000_000, 25, 100
GLOSSARY = re.compile(r"\]\(glossary\.md#([^)]+)\)")


@pytest.fixture(params=[*LESSONS, *TALKS], ids=lambda path: path.stem)
def notebook(request) -> nbformat.NotebookNode:
    assert request.param.stat().st_size < MOST_BYTES
    return nbformat.read(request.param, as_version=4)


def code_cells(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_there_are_notebooks():
    assert LESSONS and TALKS


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


def markdown(path: Path) -> str:
    cells = nbformat.read(path, as_version=4).cells
    return "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


def mistakes(path: Path) -> list[str]:
    """Return the rows of a lesson's table of mistakes, without the marks of new ones."""
    _, _, section = markdown(path).partition("## Mistakes so far")
    rows = [line for line in section.partition("\n## ")[0].splitlines() if line.startswith("|")]
    return [row.replace("**", "") for row in rows[2:]]  # after the heading and its rule


def test_the_table_of_mistakes_grows_from_lesson_to_lesson():
    lessons = [path for path in LESSONS if path.stem >= "01"]
    for before, lesson in itertools.pairwise(lessons):
        assert mistakes(before) and mistakes(lesson)[: len(mistakes(before))] == mistakes(before), lesson.stem


def test_links_to_the_glossary_lead_to_its_terms():
    page = (ROOT / "notebooks" / "glossary.md").read_text(encoding="utf-8")
    terms = {term.lower().replace(" ", "-").replace("'", "") for term in re.findall(r"^## (.+)$", page, re.M)}
    linked = {anchor for text in [page, *map(markdown, [*LESSONS, *TALKS])] for anchor in GLOSSARY.findall(text)}
    assert linked and linked <= terms
    assert {anchor for anchor in re.findall(r"\]\(#([^)]+)\)", page)} <= terms


def test_the_course_has_few_exercises():
    tags = [cell.metadata.get("tags", []) for path in LESSONS for cell in nbformat.read(path, as_version=4).cells]
    assert 8 <= sum("exercise" in each for each in tags) <= 14
