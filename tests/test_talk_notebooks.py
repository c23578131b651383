"""The talks in two languages: the same code, notes that keep the time, and recordings that say what they are."""

import json
import os
import re
import runpy
import subprocess
import sys

import nbformat
import pytest
from helpers import ROOT, TALKS

from kandinsky_mini.bench import recordings

ENGLISH, RUSSIAN = (nbformat.read(path, as_version=4) for path in TALKS)
NOTES = re.compile(
    r'<details class="notes"><summary>(\d\d):(\d\d)–(\d\d):(\d\d), (?:cells|ячейки): (\d[\d, ]*) [sс]</summary>'
)
MOST_CELLS, MINUTES, LONG = 30, 45, 5
SLOW = "torchrun --nproc-per-node 1 launch/generate.py"


def markdown(talk) -> list[str]:
    return [cell.source for cell in talk.cells if cell.cell_type == "markdown"]


def test_the_two_talks_have_the_same_cells_apart_from_their_prose():
    assert [path.name for path in TALKS] == ["talk.ipynb", "talk.ru.ipynb"]
    for english, russian in zip(ENGLISH.cells, RUSSIAN.cells, strict=True):
        assert english.cell_type == russian.cell_type and english.metadata == russian.metadata
        if english.cell_type == "code":
            assert english.source == russian.source
        else:
            assert bool(re.search("[а-я]", english.source)) < bool(re.search("[а-я]", russian.source))


@pytest.mark.parametrize("talk", [ENGLISH, RUSSIAN], ids=["English", "Russian"])
def test_the_notes_fill_45_minutes_without_a_gap(talk):
    assert len(talk.cells) <= MOST_CELLS
    types = {cell.metadata.slideshow.slide_type for cell in talk.cells if cell.cell_type == "markdown"}
    assert types == {"slide"}
    now = 0
    for text in markdown(talk):
        begins, ends = (60 * int(m) + int(s) for m, s in (NOTES.search(text).groups()[i : i + 2] for i in (0, 2)))
        assert begins == now < ends
        marks = [60 * int(m) + int(s) for m, s in re.findall(r"(\d\d):(\d\d) (?=[A-ZА-Я])", text)]
        assert marks == sorted(marks) and all(begins <= mark < ends for mark in marks)
        now = ends
    assert now == 60 * MINUTES


def test_notes_have_the_seconds_of_each_cell_and_long_ones_are_recorded():
    for talk in (ENGLISH, RUSSIAN):
        for text, codes in zip(markdown(talk), code_after_each_note(talk), strict=True):
            seconds = list(map(int, NOTES.search(text)[5].split(", ")))
            assert seconds == [0] if not codes else len(seconds) == len(codes)
            assert all(took <= LONG or "recordings.run(" in code for took, code in zip(seconds, codes, strict=False))


def code_after_each_note(talk) -> list[list[str]]:
    found = []
    for cell in talk.cells:
        if cell.cell_type == "markdown":
            found.append([])
        else:
            found[-1].append(cell.source)
    return found


def test_every_recording_is_one_that_the_talk_shows():
    code = "\n".join(cell.source for cell in ENGLISH.cells if cell.cell_type == "code")
    assert set(re.findall(r'"(\w+\.mp4)"', code)) == {path.name for path in recordings.FOLDER.glob("*.mp4")}
    assert {path.stem for path in recordings.FOLDER.iterdir()} == {
        path.stem for path in recordings.FOLDER.glob("*.mp4")
    }
    for path in recordings.FOLDER.glob("*.json"):
        recording = recordings.Recording(**json.loads(path.read_text(encoding="utf-8")))
        assert re.fullmatch(r"20\d\d-\d\d-\d\d", recording.date) and recording.machine and recording.seconds > 1
        assert recording.output[0].endswith(f"saved to {path.stem}.mp4")


@pytest.fixture
def fake(monkeypatch, tmp_path):
    """Let a script take the place of torchrun. It writes a video of three bytes, or fails."""

    def become(code: str) -> None:
        script = tmp_path / "torchrun.py"
        script.write_text("import sys\npath = sys.argv[sys.argv.index('--path') + 1]\n" + code)
        monkeypatch.setattr(recordings, "TORCHRUN", [sys.executable, str(script)])

    become("open(path, 'w').write('new')\nprint('much before')\nprint('a line')\nprint('saved to', path)")
    return become


def test_a_run_is_recorded_and_shown_later_without_being_started(fake, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("LIVE", "record")
    live = recordings.run(SLOW, "test.mp4", tmp_path / "kept")
    told = capsys.readouterr().out
    assert told.splitlines() == [f"$ {SLOW} --path test.mp4", "a line", "saved to test.mp4"]
    fake("raise SystemExit('started')")
    monkeypatch.setenv("LIVE", "0")
    shown = recordings.run(SLOW, "test.mp4", tmp_path / "kept")
    again = capsys.readouterr().out
    assert again.startswith(told) and re.search(r"\[recorded on 20\d\d-\d\d-\d\d on .* cores: \d+ s\]", again)
    assert shown != live and shown.read_text() == live.read_text() == "new"


def test_a_live_run_leaves_recordings_alone(fake, monkeypatch, tmp_path):
    monkeypatch.delenv("LIVE", raising=False)
    assert recordings.run(SLOW, "test.mp4", tmp_path / "kept").read_text() == "new"
    assert not (tmp_path / "kept").exists()


def test_a_recording_of_another_command_is_not_shown(fake, monkeypatch, tmp_path):
    monkeypatch.setenv("LIVE", "record")
    recordings.run(SLOW, "test.mp4", tmp_path)
    monkeypatch.setenv("LIVE", "0")
    for command, video in ((SLOW + " --seed 2", "test.mp4"), (SLOW, "other.mp4")):
        with pytest.raises(ValueError, match="run this with LIVE=record"):
            recordings.run(command, video, tmp_path)


def test_a_recording_without_its_video_is_not_shown(fake, monkeypatch, tmp_path):
    monkeypatch.setenv("LIVE", "record")
    recordings.run(SLOW, "test.mp4", tmp_path)
    (tmp_path / "test.mp4").unlink()
    monkeypatch.setenv("LIVE", "0")
    with pytest.raises(ValueError, match="run this with LIVE=record"):
        recordings.run(SLOW, "test.mp4", tmp_path)


def test_a_run_that_fails_says_why(fake, monkeypatch, tmp_path):
    monkeypatch.setenv("LIVE", "record")
    fake("raise SystemExit('no such prompt')")
    with pytest.raises(RuntimeError, match="no such prompt"):
        recordings.run(SLOW, "test.mp4", tmp_path)
    assert not (tmp_path / "test.json").exists() and not (tmp_path / "test.mp4").exists()


def test_a_run_that_fails_shows_its_cause_and_not_the_launcher_s_report(fake, tmp_path, monkeypatch):
    monkeypatch.delenv("LIVE", raising=False)
    fake("print('error: the layout needs 3 ranks', file=sys.stderr)\nraise SystemExit(3000 * 'report ')")
    with pytest.raises(RuntimeError, match=f"^{re.escape(SLOW)} failed:\nerror: the layout needs 3 ranks$"):
        recordings.run(SLOW, "test.mp4", tmp_path)


@pytest.mark.parametrize("value", ["", "yes", "2"])
def test_other_values_of_live_are_refused(monkeypatch, value):
    monkeypatch.setenv("LIVE", value)
    with pytest.raises(ValueError, match="LIVE is '" + value):
        recordings.run(SLOW, "test.mp4")


def test_notes_say_how_long_their_cells_took():
    module = runpy.run_path(str(ROOT / ".ci" / "notebooks.py"))
    execution = {"iopub.execute_input": "2026-01-01T00:00:00Z", "shell.execute_reply": "2026-01-01T00:00:01.5Z"}
    codes = [nbformat.v4.new_code_cell(metadata={"execution": dict(execution)}) for _ in range(3)]
    texts = ("cells: 9 s", "ячейки: 0 с")
    notes = [nbformat.v4.new_markdown_cell(f"<summary>01:00–02:00, {text}</summary>") for text in texts]
    module["note_seconds"]([codes[0], notes[0], codes[1], codes[2], notes[1]])
    assert [re.search(r", (.*)<", note.source)[1] for note in notes] == ["cells: 2, 2 s", "ячейки: 0 с"]
    assert all("execution" not in code.metadata for code in codes)


@pytest.mark.parametrize("talk", TALKS, ids=["English", "Russian"])
def test_slides_are_one_page_with_notes_that_fetches_nothing(talk, tmp_path):
    """A folder with three small files takes the place of reveal.js."""
    for name in ("dist/reveal.css", "dist/reveal.js", "plugin/notes/notes.js"):
        file = tmp_path / "sphinx_revealjs" / "_static" / "revealjs" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"/* {name} */")
    (tmp_path / "sphinx_revealjs" / "__init__.py").touch()
    command = [sys.executable, str(ROOT / ".ci" / "slides.py"), str(tmp_path / "slides"), str(talk)]
    subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": str(tmp_path)})
    page = (tmp_path / "slides" / f"{talk.stem}.html").read_text(encoding="utf-8")
    assert f'lang="{"ru" if talk.stem == "talk.ru" else "en"}"' in page
    assert all(f"/* {name} */" in page for name in ("dist/reveal.css", "dist/reveal.js", "plugin/notes/notes.js"))
    assert page.count('<aside class="notes">') == len(markdown(ENGLISH)) and "<details" not in page
    figures = sum("image/png" in output.get("data", {}) for cell in ENGLISH.cells for output in cell.get("outputs", []))
    assert page.count("data:video/mp4;base64,") == 2 and page.count("<img ") == figures > 5
    assert not re.findall(r"""<(?:script|link|img|video)[^>]+(?:src|href)=["']https?:[^"']*""", page)
    assert "import copy" not in page  # the first cell is run before the talk
