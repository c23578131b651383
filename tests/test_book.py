"""The book's table of contents has every page, and the check of its links finds broken ones."""

import runpy

import pytest
from helpers import LESSONS, ROOT, TALKS

CHECK = runpy.run_path(str(ROOT / ".ci" / "links.py"))["main"]


def test_the_contents_have_every_page_and_notebook():
    """README.md is the first page. Everything else is in a table of contents, by its name or by a pattern."""
    lines = [line for page in (ROOT / "book").glob("*.md") for line in page.read_text(encoding="utf-8").splitlines()]
    names = [line.removeprefix("/") for line in lines if line.startswith("/")]
    listed = {path for name in names for path in ROOT.glob(f"{name}.*")}
    folders = ("assets", "kandinsky_mini", "launch", "notebooks")
    pages = {page for folder in folders for page in (ROOT / folder).rglob("*.md")}
    modules = {path for path in (ROOT / "kandinsky_mini").rglob("*.py") if path.stat().st_size}
    assert [name for name in names if not list(ROOT.glob(f"{name}.*"))] == []
    assert len(pages) >= 5 and pages | modules | {*LESSONS, *TALKS} <= listed


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ("<a href='b.html#here'>b</a> <a href='#top'>a</a> <a href='https://example.org'>elsewhere</a>", None),
        ("<img src='data:image/png;base64,AA=='>", None),
        ("<a href='b.html#%D1%91'>b</a>", None),
        ("<a href='c.html'>c</a>", "c.html leads to no file"),
        ("<a href='b.html#there'>b</a>", "b.html#there leads to no place in its page"),
        ("<script src='https://example.org/x.js'></script>", "x.js is loaded from another server"),
        ("<img src='//example.org/x.png'>", "x.png is loaded from another server"),
    ],
)
def test_the_check_of_links_finds(body, problem, tmp_path, capsys):
    (tmp_path / "a.html").write_text(body)
    (tmp_path / "b.html").write_text("<p id='here'><p id='ё'>", encoding="utf-8")
    assert CHECK(tmp_path) == bool(problem)
    told = capsys.readouterr().out
    assert (problem or ", 0 wrong") in told


def test_the_check_of_links_reads_styles(tmp_path, capsys):
    (tmp_path / "a.css").write_text("p { background: url('https://example.org/x.png') }")
    assert CHECK(tmp_path)
    assert "a.css loads something from another server" in capsys.readouterr().out
