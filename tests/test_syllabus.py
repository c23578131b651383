"""The syllabus and the Russian pages agree with the lessons, with the README and with the Makefile."""

import json
import re
from pathlib import Path

import plot
import pytest
import yaml
from helpers import LESSONS, ROOT

from kandinsky_mini.bench.records import load_records

SYLLABUS = ROOT / "notebooks" / "syllabus.md"
RUSSIAN, TERMS = ROOT / "README.ru.md", ROOT / "notebooks" / "glossary.ru.md"
FORMS = ("Half a day", "One day", "Self-study")
LINK = re.compile(r"\]\(([^)#\s]*)(#[^)\s]*)?\)")


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


MINUTES = dict(re.findall(r"\(notebooks/(\d\d_\w+\.ipynb)\) \|.*\| (\d+) \|$", read("README.md"), re.M))


def cells(lesson: Path) -> list[dict]:
    return json.loads(lesson.read_text(encoding="utf-8"))["cells"]


def headings(page: Path) -> list[str]:
    """Return the headings of a page or of a notebook."""
    texts = [page.read_text(encoding="utf-8")]
    if page.suffix == ".ipynb":
        texts = ["".join(cell["source"]) for cell in cells(page) if cell["cell_type"] == "markdown"]
    return [heading for text in texts for heading in re.findall(r"^#+ (.+)$", text, re.M)]


def exercises(lesson: Path) -> list[str]:
    """Return the names that the exercises of a lesson leave open."""
    sources = ["".join(cell["source"]) for cell in cells(lesson) if "exercise" in cell["metadata"].get("tags", [])]
    names = [re.findall(r"^def (\w+)\(|^(\w+) = \.\.\.", source, re.M)[-1] for source in sources]
    return [function or plan for function, plan in names]


def section(name: str) -> str:
    return read("notebooks/syllabus.md").split(f"\n## {name}\n")[1].split("\n## ")[0]


def rows(form: str) -> list[list[str]]:
    """Return the rows of a form's timetable: clock, minutes, lesson, sections, exercises."""
    lines = [line for line in section(form).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def lesson_of(row: list[str]) -> Path | None:
    link = LINK.search(row[2])
    return SYLLABUS.parent / link[1] if link else None


def minutes_past_midnight(clock: str) -> int:
    hours, minutes = clock.split(":")
    return 60 * int(hours) + int(minutes)


@pytest.mark.parametrize("form", FORMS)
def test_each_row_of_a_timetable_ends_when_the_next_one_begins(form):
    table = rows(form)
    for row, following in zip(table, table[1:], strict=False):
        assert minutes_past_midnight(row[0]) + int(row[1]) == minutes_past_midnight(following[0]), row
    assert table[-1][1:3] == ["", "end"]


def test_the_forms_take_as_long_as_their_names_say():
    hours = {form: sum(int(row[1]) for row in rows(form)[:-1]) / 60 for form in FORMS}
    assert hours == {"Half a day": 4, "One day": 8.5, "Self-study": sum(map(int, MINUTES.values())) / 60}


@pytest.mark.parametrize("form", FORMS)
def test_a_timetable_gives_lessons_the_minutes_that_they_promise(form):
    given: dict[str, list[list[str]]] = {}
    for row in rows(form):
        if lesson := lesson_of(row):
            given.setdefault(lesson.name, []).append(row)
    for name, table in given.items():
        total, promised = sum(int(row[1]) for row in table), int(MINUTES[name])
        whole = any(row[3].startswith("all") for row in table)
        assert total == promised if whole else total < promised, name
    assert form != "Self-study" or given.keys() == MINUTES.keys()


@pytest.mark.parametrize("form", FORMS)
def test_a_timetable_names_sections_and_exercises_that_exist_in_their_order(form):
    for row in rows(form):
        if lesson := lesson_of(row):
            assert re.match(r"\[(\d\d)\]", row[2])[1] == lesson.name[:2]
            known, named = headings(lesson), re.findall(r"\*(.+?)\*", row[3])
            assert named or row[3] == "all", row
            assert named == [heading for heading in known if heading in named], lesson.name
            known, named = exercises(lesson), re.findall(r"`(\w+)`", row[4])
            assert named == [name for name in known if name in named], lesson.name
        else:
            assert row[3:] == ["", ""], row


def test_the_text_around_a_timetable_names_sections_that_exist():
    known = {heading for lesson in LESSONS for heading in headings(lesson)}
    text = " ".join(line for form in FORMS for line in section(form).splitlines() if not line.startswith("|"))
    named = re.findall(r"\*(\w.*?)\*", text)
    assert named and [heading for heading in named if heading not in known] == []


def test_self_study_has_all_exercises_and_one_day_leaves_five():
    everything = [name for lesson in LESSONS for name in exercises(lesson)]
    of = {form: [name for row in rows(form) for name in re.findall(r"`(\w+)`", row[4])] for form in FORMS}
    assert of["Self-study"] == everything and f"{len(everything)}\nexercises" in read("notebooks/syllabus.md")
    assert len(everything) - len(of["One day"]) == 5 and "The five exercises that are not" in section("One day")
    assert len(of["Half a day"]) == 2 and "the two exercises" in section("Half a day")


@pytest.mark.parametrize("page", [SYLLABUS, RUSSIAN, TERMS], ids=lambda page: page.name)
def test_links_lead_to_files_and_headings(page):
    text = page.read_text(encoding="utf-8")
    links = [(file, anchor) for file, anchor in LINK.findall(text) if not file.startswith("http")]
    assert links
    for file, anchor in links:
        target = page.parent / file if file else page
        assert target.exists(), file
        if anchor:
            names = (re.sub(r"[^\w -]", "", name.lower()).replace(" ", "-") for name in headings(target))
            assert anchor in {"#" + name for name in names}, file + anchor


def test_the_pages_call_targets_of_make_that_exist():
    targets = set(re.findall(r"^([a-z]+):.*## ", read("Makefile"), re.M))
    for text in (read("README.ru.md"), *map(section, ("A talk of 45 minutes", *FORMS, "A room without a network"))):
        code = "\n".join(re.findall(r"`+([^`]+)`+", text))
        called = set(re.findall(r"\bmake ([a-z]+)\b", code))
        assert called <= targets and (called or "make" not in text)


def test_the_syllabus_has_the_number_of_wheels_and_the_minutes_of_the_tests():
    wheels = [line for line in read("requirements.lock").splitlines() if not re.search("== 'darwin'|!= 'linux'", line)]
    assert f"has {len(wheels)} wheels" in section("A room without a network")
    minutes = re.search(r"took (\d+ to \d+ minutes on 2 cores)", read("README.md"))[1]
    assert f"took {minutes}" in section("One day")


def test_the_readme_links_to_the_russian_page_and_to_the_syllabus():
    readme = read("README.md")
    assert readme.split("\n\n")[1] == "[По-русски](README.ru.md)" and "(notebooks/syllabus.md)" in readme


def test_the_russian_page_has_every_lesson_with_its_minutes():
    page = read("README.ru.md")
    assert len(page.splitlines()) < 80
    assert dict(re.findall(r"\(notebooks/(\d\d_\w+\.ipynb)\) \|.*\| (\d+) \|$", page, re.M)) == MINUTES


def test_the_russian_page_has_only_numbers_of_the_english_one():
    """Numbers in links and in code are names. The speedups are compared with the records."""
    texts = [read("README.md"), read("README.ru.md")]
    plain = [re.sub(r"`[^`]*`|\]\([^)]*\)", "", text).replace(",", ".") for text in texts]
    english, russian = (set(re.findall(r"\d+(?:\.\d+)?", text)) for text in plain)
    assert russian <= english
    speedups = [f"в {group[0].step / group[-1].step:.2f} раза быстрее" for group in plot.on_gpus(load_records())]
    flat = " ".join(texts[1].split())
    assert len(speedups) == 2 and [each for each in speedups if each.replace(".", ",") not in flat] == []


def test_the_russian_glossary_has_30_terms_of_the_english_one():
    lines = read("notebooks/glossary.ru.md").splitlines()
    english = [re.match(r"\| \[(.+?)\]", line)[1] for line in lines if line.startswith("| [")]
    assert len(set(english)) == len(english) == 30 and english == sorted(english, key=str.lower)
    assert set(english) <= set(headings(ROOT / "notebooks" / "glossary.md"))
    assert all(line.count(" | ") == 2 and "|  |" not in line for line in lines if line.startswith("| ["))


def test_the_dev_container_has_our_python_and_sets_up_by_make():
    lines = read(".devcontainer/devcontainer.json").splitlines()
    container = json.loads("\n".join(line for line in lines if not line.strip().startswith("//")))
    python = yaml.safe_load(read("environment.yml"))["dependencies"][0]
    assert container["image"].endswith(python.replace("python=", "python:"))
    make, target, index = container["postCreateCommand"].split()
    assert make == "make" and f"\n{target}:" in read("Makefile")
    assert index in read("README.md")


def test_lesson_0_tells_how_to_fetch_the_repository_without_running_it():
    (cell,) = [cell for cell in cells(LESSONS[0]) if "Colab" in "".join(cell["source"])]
    assert cell["cell_type"] == "markdown" and "Nobody has tried" in " ".join("".join(cell["source"]).split())
    (block,) = re.findall(r"```\n(.*?)```", "".join(cell["source"]), re.S)
    assert len(block.splitlines()) == 3
