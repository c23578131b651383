"""You can restart the kernel in the middle of lesson 1, while its ranks are running, and run the lesson again."""

import asyncio
import os

import nbformat
import psutil
import pytest
from helpers import ROOT
from nbclient import NotebookClient

LESSON = ROOT / "notebooks" / "01_processes_and_meshes.ipynb"
MARK = "KERNEL_RESTARTED_BY"  # the kernel and all processes that it starts inherit this variable


def started_here() -> list[psutil.Process]:
    marked = psutil.process_iter(["environ"])
    return [p for p in marked if (p.info["environ"] or {}).get(MARK) == str(os.getpid()) and p.pid != os.getpid()]


def cells_until(notebook: nbformat.NotebookNode, text: str) -> int:
    return next(i for i, cell in enumerate(notebook.cells) if cell.cell_type == "code" and text in cell.source)


async def run_restart_run(client: NotebookClient, middle: int) -> list[int]:
    """Run the cells up to `middle` and restart the kernel, twice. Return the number of processes before each restart.

    The first restart kills the kernel. The second one lets it end by itself, so that it stops the ranks.
    """
    counts = []
    async with client.async_setup_kernel():
        for _ in range(2):
            for index, cell in enumerate(client.nb.cells[: middle + 1]):
                await client.async_execute_cell(cell, index)
            counts.append(len(started_here()))
            await client.km.restart_kernel(now=not counts[1:])
            await client.kc.wait_for_ready(timeout=60)
    return counts


@pytest.mark.timeout(180)
def test_a_restart_in_the_middle_leaves_nothing_behind(monkeypatch):
    monkeypatch.setenv(MARK, str(os.getpid()))
    notebook = nbformat.read(LESSON, as_version=4)
    client = NotebookClient(notebook, timeout=90, resources={"metadata": {"path": str(LESSON.parent)}})
    first, second = asyncio.run(run_restart_run(client, cells_until(notebook, "def all_reduce(mesh)")))
    assert first > 5  # at least the kernel, a controller and four ranks could be left behind
    assert second <= first
    _, left = psutil.wait_procs(started_here(), timeout=30)
    assert left == []
