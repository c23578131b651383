"""A pytest plugin that catches errors which nbval passes over: python -m pytest -p nbval_strict --nbval ...

The folder .ci must be on PYTHONPATH. Where outputs may vary, nbval does not notice a magic that failed, or a cell that
shows something but has no stored output. It does not notice processes that outlive the run, either.
"""

import os
import time
import uuid

import psutil
import pytest

MARK = "NOTEBOOKS_RUN"  # an environment variable that kernels and all processes that they start inherit
SECONDS_TO_END = 20
WIDGET = "application/vnd.jupyter.widget-view+json"  # such outputs are never stored, see notebooks.py


def pytest_sessionstart(session: pytest.Session) -> None:
    os.environ[MARK] = str(uuid.uuid4())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item):
    yield
    outputs = getattr(item, "test_outputs", [])
    errors = [output.text for output in outputs if output.get("name") == "stderr" and "UsageError" in output.text]
    if errors:
        pytest.fail(f"a magic failed: {errors[0]}")
    # Outputs that a widget shows belong to the widget, not to the cell.
    widget = any(WIDGET in output.get("data", {}) for output in outputs)
    if not widget and any(output.get("name") != "stderr" for output in outputs) and not item.cell.outputs:
        pytest.fail("the cell shows something, but no output of it is stored: run make notebooks")


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    end = time.monotonic() + SECONDS_TO_END
    while (left := processes_of_this_run()) and time.monotonic() < end:
        time.sleep(0.2)
    if left:
        print(f"\nThe notebooks left processes behind: {left}")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def processes_of_this_run() -> list[str]:
    found = []
    for process in psutil.process_iter(["environ", "cmdline"]):
        mine = (process.info["environ"] or {}).get(MARK) == os.environ[MARK]
        if mine and process.pid != os.getpid() and process.info["cmdline"]:
            found.append(f"{process.pid} {' '.join(process.info['cmdline'])}")
    return found
