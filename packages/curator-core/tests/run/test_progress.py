# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import io
import re
import sys
import types
from collections.abc import Iterator
from typing import Any

import pytest

from curator_core import Pipeline, ProgressBar, Task
from curator_core._run.progress import _in_notebook
from curator_core.testing.probe import Calling


@pytest.fixture(autouse=True)
def nothing_fails(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Check that no observer failed: their exceptions are only logged and do not end a run."""
    yield
    assert caplog.get_records("call") == []


class Terminal(io.StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


def fan(task: Task) -> Any:
    return [Task(data=n) for n in range(task.data)]


def positive(task: Task) -> Any:
    return task if task.data else 1 / 0


def lines(file: io.StringIO) -> list[str]:
    """Return the latest text of each line."""
    drawn = re.split(r"[\r\n]+|\x1b\[A", file.getvalue())
    last = {}
    for text in drawn:
        name = text.split(":")[0]
        if ":" in text and name.strip() in ("Calling", "positive"):
            last[name] = text
    return list(last.values())


def run(observer: ProgressBar, *data: int) -> None:
    stages = [Calling(fan), Calling(positive, name="positive")]
    Pipeline("p", stages).run(initial_tasks=[Task(data=d) for d in data], observers=[observer], on_error="skip")


def test_each_stage_has_one_line():
    file = Terminal()
    run(ProgressBar(file), 2, 3)
    first, second = lines(file)
    assert re.match(r"Calling : 100%.*2/2", first)
    assert re.match(r"positive: 100%.*5/5", second)


def test_the_progress_bar_shows_failures():
    file = Terminal()
    run(ProgressBar(file), 2, 3)
    assert "failed=2" in lines(file)[1]
    assert "failed" not in lines(file)[0]


def test_without_a_terminal_nothing_is_printed():
    file = io.StringIO()
    run(ProgressBar(file), 2)
    assert file.getvalue() == ""


def test_without_standard_error_nothing_is_printed(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    run(ProgressBar(), 2)


def test_standard_error_is_the_default(monkeypatch):
    file = Terminal()
    monkeypatch.setattr(sys, "stderr", file)
    run(ProgressBar(), 2)
    assert len(lines(file)) == 2


def test_a_source_counts_as_one_task():
    file = Terminal()
    emit = Calling(lambda task: iter([Task(data=1), Task(data=2)]))
    Pipeline("p", [emit, Calling(positive, name="positive")]).run(observers=[ProgressBar(file)])
    first, second = lines(file)
    assert "1/1" in first
    assert "2/2" in second


def test_lines_are_closed_when_the_run_fails():
    file = Terminal()
    observer = ProgressBar(file)
    with pytest.raises(Exception, match="division"):
        Pipeline("p", [Calling(positive)]).run(initial_tasks=[Task(data=0)], observers=[observer])
    assert observer._bars == []
    assert "failed=1" in lines(file)[0]


def test_one_bar_can_watch_two_runs():
    file = Terminal()
    observer = ProgressBar(file)
    run(observer, 2)
    run(observer, 3)
    assert "3/3" in lines(file)[1]


def test_a_retried_attempt_is_not_progress():
    file, left = Terminal(), [1]

    def work(task: Task) -> Task:
        if left[0]:
            left[0] -= 1
            raise ValueError
        return task

    stage = Calling(work, max_attempts=2)
    Pipeline("p", [stage]).run(initial_tasks=[Task(data=1)], observers=[ProgressBar(file)])
    assert "1/1" in lines(file)[0]
    assert "failed" not in lines(file)[0]


class ZMQInteractiveShell:
    """Has the class name by which the shell of a Jupyter kernel is recognized."""


def test_a_notebook_is_recognized_by_its_shell(monkeypatch):
    assert not _in_notebook()
    kernel = types.ModuleType("IPython")
    kernel.get_ipython = ZMQInteractiveShell  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", kernel)
    assert _in_notebook()


def test_a_notebook_without_widgets_shows_text(monkeypatch):
    kernel = types.ModuleType("IPython")
    kernel.get_ipython = ZMQInteractiveShell  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", kernel)
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    file = io.StringIO()
    run(ProgressBar(file), 2)
    assert len(lines(file)) == 2
