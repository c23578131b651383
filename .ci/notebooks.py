"""Run notebooks and store their outputs: python .ci/notebooks.py notebooks/*.ipynb (make notebooks).

A progress bar is stored as its last line of text. Pages that do not run widgets then show this line and not "0%". In a
talk, the presenter's notes of each slide say how long its cells took.
"""

import html
import math
import re
import sys
from datetime import datetime
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from kandinsky_mini.files import write_text

NOTED = re.compile(r"\d[\d, ]*(?= [sс]</summary>)")  # seconds in the notes, in English and in Russian
VIEW, STATE = "application/vnd.jupyter.widget-view+json", "application/vnd.jupyter.widget-state+json"


def last_line(models: dict, model_id: str) -> str | None:
    """Return the text that a tqdm bar shows at its end, or None for any other widget.

    Such a text is "sampling: 100% 25/25 [00:10<00:00, 2.4it/s]".
    """
    children = [models[name.removeprefix("IPY_MODEL_")] for name in models[model_id]["state"].get("children", [])]
    if [child["model_name"] for child in children] != ["HTMLModel", "FloatProgressModel", "HTMLModel"]:
        return None
    line = children[0]["state"]["value"] + children[2]["state"]["value"]
    return html.unescape(line).replace("\u2007", " ")  # tqdm pads with a space that is as wide as a digit


def seconds_of(cell: nbformat.NotebookNode) -> float:
    """Return how long a code cell took. Its metadata no longer says so afterwards."""
    times = cell.metadata.pop("execution")
    first, last = (datetime.fromisoformat(times[name]) for name in ("iopub.execute_input", "shell.execute_reply"))
    return (last - first).total_seconds()


def note_seconds(cells: list[nbformat.NotebookNode]) -> None:
    """Write into the notes of each slide how long each cell up to the next one took, rounded up to whole seconds."""
    notes, seconds = None, []
    for cell in cells:
        if cell.cell_type == "markdown":
            notes, seconds = cell, []
            continue
        seconds.append(str(math.ceil(seconds_of(cell))))
        if notes is not None:
            notes.source = NOTED.sub(", ".join(seconds), notes.source)


def run(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(path.parent)}}
    NotebookClient(notebook, timeout=120, coalesce_streams=True, resources=resources).execute()
    note_seconds(notebook.cells)
    models = notebook.metadata.pop("widgets", {}).get(STATE, {}).get("state", {})
    for cell in (cell for cell in notebook.cells if cell.cell_type == "code"):
        for output in cell.outputs:
            if VIEW in output.get("data", {}) and (line := last_line(models, output.data[VIEW]["model_id"])):
                output.data = {"text/plain": line}
        # Other widgets show nothing on a page without a kernel. Each of them has text or a figure beside it.
        cell.outputs = [output for output in cell.outputs if VIEW not in output.get("data", {})]
    write_text(path, nbformat.writes(notebook) + "\n")


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        print(argument, flush=True)
        run(Path(argument))
