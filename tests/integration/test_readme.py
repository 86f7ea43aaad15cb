# SPDX-License-Identifier: Apache-2.0
"""The README's programs run unchanged and print the output that it shows."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

README = Path(__file__).parents[2] / "README.md"
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def fences() -> list[tuple[str, str]]:
    return [(fence[1], fence[2]) for fence in FENCE.finditer(README.read_text(encoding="utf-8"))]


def programs() -> dict[str, str]:
    """Return the Python of the README by the names of its files."""
    sources = [body for language, body in fences() if language == "python"]
    return {source.splitlines()[0].removeprefix("# "): source for source in sources}


def shown_below(text: str) -> str:
    """Return the output below a command or a program."""
    found = fences()
    number = next(number for number, (_, body) in enumerate(found) if text in body)
    language, body = found[number + 1]
    assert language == "output", f"{text} must be followed by its output"
    return body


def lines_of(text: str) -> list[str]:
    """Return the lines of an output, with column widths normalized."""
    return [" ".join(line.split()) for line in text.splitlines()]


def run(directory: Path, *command: str) -> str:
    for name, source in programs().items():
        assert re.fullmatch(r"\w+\.py", name), "each program must begin with the name of its file"
        (directory / name).write_text(source, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, *command],
        env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0"},
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_readme_starts_with_the_commands() -> None:
    (language, commands), *_ = fences()
    assert language == "console"
    first, second = (line.partition("  #")[0].strip() for line in commands.splitlines())
    assert (first, second) == ("$ python -m pip install nox uv && nox -s demo", "$ nox")


def test_the_pipeline_has_fifteen_lines() -> None:
    lines = programs()["sentences.py"].splitlines()
    assert len([line for line in lines if line.strip() and not line.startswith("#")]) == 15


@pytest.mark.parametrize("executor", ["local", "xenna"])
def test_the_pipeline_prints_the_output_shown(executor: str, masked: Callable[[str], str], tmp_path: Path) -> None:
    if executor == "xenna":
        pytest.importorskip("curator_xenna")
    command = f"$ python sentences.py {executor}\n"
    said = run(tmp_path, *shlex.split(command)[2:])
    assert lines_of(masked(said)) == lines_of(masked(shown_below(command)))


def test_the_trace_matches_the_one_shown(masked: Callable[[str], str], tmp_path: Path) -> None:
    pytest.importorskip("opentelemetry.sdk")
    said = run(tmp_path, "traced.py")
    assert lines_of(masked(said)) == lines_of(masked(shown_below("# traced.py")))
