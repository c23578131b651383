"""Pages agree with the tree: their commands, links and names lead somewhere, and what README quotes was measured."""

import json
import re
import statistics
from pathlib import Path

import draw_mini
import plan
import plot
import pytest
from helpers import LESSONS, ROOT, TALKS, read

from kandinsky_mini.bench.records import PUBLISHED, load_records
from kandinsky_mini.config import CONFIGS

PAGES = [ROOT / "README.md", *(ROOT / "kandinsky_mini").rglob("README.md"), PUBLISHED / "README.md"]
PAGES += (ROOT / "launch").glob("*.md")
CODE = ("kandinsky_mini", "launch", "tests")
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


def test_the_readme_shows_what_the_ranking_prints(capsys):
    (line,) = re.findall(r"python launch/plan\.py (.*)", read("README.md"))
    plan.main(line.split())
    assert f"```\n{capsys.readouterr().out}```" in read("README.md")


def test_the_readme_quotes_the_records():
    readme = " ".join(read("README.md").split())
    five, ten = (
        (f"{group[0].step / group[-1].step:.2f} times", f"({group[-1].step:.3f} s instead of {group[0].step:.3f} s)")
        for group in plot.on_gpus(load_records())
    )
    assert f"is {five[0]} as fast as on one for a 5-second video {five[1]}, and {ten[0]} as fast for" in readme
    assert f"for a 10-second video {ten[1]}" in readme
    flash4 = {
        r.attention: r.step for r in load_records(PUBLISHED / "flash4") if (r.seconds_of_video, r.ranks) == (5, 1)
    }
    assert f"takes [{100 * (1 - flash4['flash4'] / flash4['cudnn']):.1f} % less time]" in readme
    seconds = json.loads(read("assets", "benchmarks", "time_mini.json"))["seconds"]["2 threads"]
    assert f"took {statistics.median(seconds):.0f} seconds on 2 cores" in readme


def test_the_training_s_page_quotes_the_evaluation():
    page = read("kandinsky_mini", "training", "README.md")
    record = json.loads(read("assets", "benchmarks", "evaluate_mini.json"))
    for name in ("rendered", "generated", "unseen phrasings", "shuffled prompts"):
        cells = [f"{100 * share:.0f} %" for share in record["shares"][name].values()]
        assert f" | {' | '.join(cells)} |" in page, name
    assert f"{record['count']} prompts" in page and record["date"] in page


def links(page: Path) -> list[str]:
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    return [link for link in LINK.findall(text) if not link.startswith(("http:", "https:"))]


@pytest.mark.parametrize("page", [*PAGES, *LESSONS, *TALKS], ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files(page):
    assert [link for link in links(page) if not (page.parent / link).exists()] == []


def test_every_figure_is_shown_on_a_page():
    shown = {(page.parent / link).resolve() for page in PAGES for link in links(page)}
    pictures = [*(ROOT / "assets").glob("*.*"), *(ROOT / "assets" / "figures").glob("*.png")]
    assert [path for path in pictures if path not in shown] == []


def test_the_map_has_every_file_of_the_package():
    page = read("kandinsky_mini", "README.md")
    names = {path.name for path in (ROOT / "kandinsky_mini").rglob("*.py") if path.stat().st_size}
    assert [name for name in sorted(names) if f"`{name}`" not in page and f"/{name}`" not in page] == []


def test_recipes_name_what_is_in_the_code():
    names = set(
        re.findall(r"`(?:\w+\.)?(\w*[A-Z_]\w*)`", read("kandinsky_mini", "README.md").split("## Add a layout")[1])
    )
    code = "".join(path.read_text(encoding="utf-8") for part in CODE for path in (ROOT / part).rglob("*.py"))
    assert len(names) > 10 and [name for name in sorted(names) if not re.search(rf"\b{name}\b", code)] == []


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)
def test_the_readme_promises_the_minutes_that_the_lesson_does(lesson):
    first = "".join(json.loads(lesson.read_text(encoding="utf-8"))["cells"][0]["source"])
    minutes = sum(map(int, re.findall(r"\d+", re.search(r"Time: ([^.]*)", first)[1])))
    (row,) = [line for line in read("README.md").splitlines() if f"(notebooks/{lesson.name})" in line]
    assert row.endswith(f"| {minutes} |")


COMMAND = re.compile(r"launch/(\w+)\.py([^`|#\n]*)")


def options_of(script: str) -> set[str]:
    """Return the options that a script of launch/ declares. The sweep passes others on to the benchmark."""
    names = ("sweep", "benchmark") if script == "sweep" else (script,)
    source = "".join(read("launch", f"{name}.py") for name in names)
    return set(re.findall(r'"(--[\w-]+)"', source)) | {"--help"}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "Makefile"], ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_on_pages_have_only_options_that_exist(page):
    """A reader copies them. They also name files that are there."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    for script, rest in COMMAND.findall(text):
        assert (ROOT / "launch" / f"{script}.py").exists(), script
        assert set(re.findall(r"--[\w-]+", rest)) <= options_of(script), f"{script}.py{rest}"
        files = [part for part in rest.split() if part.endswith(".yaml")]
        assert [file for file in files if not (ROOT / file).exists()] == []


def test_each_part_of_the_talk_is_in_lessons_that_exist():
    table = read("README.md").split("| in the talk | in the lessons |")[1].split("\n\n")[0]
    rows = [line.split("|")[1:3] for line in table.splitlines() if line.startswith("| ") and "---" not in line]
    numbers = {path.stem[:2] for path in LESSONS}
    assert len(rows) == 8 and all(set(re.findall(r"\d+", lessons)) <= numbers for _, lessons in rows)


def test_the_curve_of_the_vae_ends_at_the_quality_that_was_measured(monkeypatch, tmp_path):
    drawn = []
    monkeypatch.setattr(draw_mini, "with_mean", lambda axis, x, y: drawn.append(y))
    draw_mini.curves(tmp_path / "training.png")
    log = (ROOT / "assets" / "weights" / "mini" / "training.jsonl").read_text(encoding="utf-8").splitlines()
    measured = [record["psnr_held_out"] for record in map(json.loads, log) if "psnr_held_out" in record]
    assert statistics.mean(drawn[0][-20:]) == pytest.approx(measured[-1], abs=2)


def test_the_page_of_the_released_weights_names_every_configuration_and_options_that_exist():
    page = read("launch", "released_weights.md")
    rows = re.findall(r"^\| (`lite_\w+`.*?) \|", page, re.MULTILINE)
    named = [name for row in rows for name in re.findall(r"`(lite_\w+)`", row)]
    assert sorted(named) == sorted(path.stem for path in CONFIGS.glob("lite*.yaml"))
    (talk,) = re.findall(r"```\n(torchrun.*?)```", page, re.DOTALL)
    assert [line.split("--path ")[1] for line in talk.splitlines()] == [f"./test{i}.mp4" for i in (1, 2, 3)]
    options = set(re.findall(r"--[a-z-]+", read("launch", "generate.py"))) | {"--nproc-per-node"}
    assert set(re.findall(r"--[a-z-]+", talk)) <= options
