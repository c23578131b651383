"""Build the slides of talks, one page each, which need no network: python .ci/slides.py FOLDER notebooks/talk*.ipynb

The pages show the stored outputs. Keys: S opens the presenter's notes, D switches to a dark page, F fills the screen.
"""

import re
import sys
from importlib.util import find_spec
from pathlib import Path

import nbformat
from nbconvert import SlidesExporter

HERE = Path(__file__).resolve().parent
REVEAL = Path(find_spec("sphinx_revealjs").origin).parent / "_static" / "revealjs"
NOTES = re.compile(r'<details class="notes"><summary>(.*?)</summary>(.*?)</details>', re.DOTALL)
FETCHED = re.compile(r"""(?:src|href)=["']https?:[^"']*\.(?:js|css)["']|url\(["']?https?:""")


def text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def resources_of(path: Path, notebook: nbformat.NotebookNode) -> dict[str, object]:
    """Return what the template puts into the page."""
    scripts = [REVEAL / "dist" / "reveal.js", REVEAL / "plugin" / "notes" / "notes.js", HERE / "slides" / "slides.js"]
    return {
        "title": notebook.cells[0].source.splitlines()[0].lstrip("# "),
        "language": "ru" if path.stem.endswith(".ru") else "en",
        "reveal_css": text(REVEAL / "dist" / "reveal.css"),
        "css": text(HERE / "slides" / "slides.css"),
        "scripts": [text(script).replace("</script", r"<\/script") for script in scripts],
    }


def page_of(path: Path) -> str:
    """Return the page with the slides of a talk.

    Raises:
        ValueError: the page would fetch something, or a slide has no notes.
    """
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        cell.outputs = [output for output in cell.get("outputs", []) if output.get("name") != "stderr"]
    exporter = SlidesExporter(template_name="slides", extra_template_basedirs=[str(HERE)])
    page, _ = exporter.from_notebook_node(notebook, resources={"slides": resources_of(path, notebook)})
    page, notes = NOTES.subn(r'<aside class="notes"><p><b>\1</b></p>\2</aside>', page)
    slides = sum(cell.metadata.slideshow.slide_type == "slide" for cell in notebook.cells)
    if notes != slides:
        raise ValueError(f"{path}: {slides} slides, and {notes} of them have notes")
    if found := FETCHED.search(page.split("<body")[0]):
        raise ValueError(f"{path}: the page would fetch {found[0]}")
    return page


folder = Path(sys.argv[1])
folder.mkdir(parents=True, exist_ok=True)
for path in map(Path, sys.argv[2:]):
    page = folder / f"{path.stem}.html"
    page.write_text(page_of(path), encoding="utf-8")
    print(page)
