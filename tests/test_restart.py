"""A kernel restarted in the middle of lesson 1, whose ranks are running then, and the lesson run again from the top."""

import asyncio
import os
from pathlib import Path

import nbformat
import psutil
import pytest
from nbclient import NotebookClient

LESSON = Path(__file__).parent.parent / "notebooks" / "01_processes_and_meshes.ipynb"
MARK = "KERNEL_RESTARTED_BY"  # inherited by the kernel and by all that it starts


def started_here() -> list[psutil.Process]:
    marked = psutil.process_iter(["environ"])
    return [p for p in marked if (p.info["environ"] or {}).get(MARK) == str(os.getpid()) and p.pid != os.getpid()]


def cells_until(notebook: nbformat.NotebookNode, text: str) -> int:
    return next(i for i, cell in enumerate(notebook.cells) if cell.cell_type == "code" and text in cell.source)


async def run_restart_run(client: NotebookClient, middle: int) -> list[int]:
    """Run the cells up to `middle`, restart the kernel, run them again, then stop the ranks; numbers of processes."""
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
    assert first > 5  # the kernel, a controller and four ranks at least: there is something to leave behind
    assert second <= first
    _, left = psutil.wait_procs(started_here(), timeout=30)
    assert left == []
