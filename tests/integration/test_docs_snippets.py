# SPDX-License-Identifier: Apache-2.0
"""The Python of the pages runs, and gives what they show; their tables say what the code says.

The blocks of a page run in order, as one program in a process of its own. An ``output`` block shows what the
block above it prints, an error at its end as Python shows it. Numbers with a decimal point, durations and run
ids are not compared, and ``...`` stands for anything.
"""

from __future__ import annotations

import doctest
import json
import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import NamedTuple

import pytest

import curator_core

DOCS = Path(__file__).parents[2] / "docs"
FENCE = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)

# These need a cluster; all else runs in its own process without one.
ON_XENNA = {"guides/running-on-xenna.md"}

RUNNER = """
import contextlib, io, json, sys, traceback

page, blocks, on_xenna = json.loads(sys.argv[1])
outputs = []
kept = contextlib.nullcontext()
if on_xenna:
    from curator_core import Pipeline, Task, processing_stage
    from curator_xenna import XennaExecutor

    # The executors of the page join it, so that one Ray is started and not one a block.
    kept = XennaExecutor({"num_cpus": 8})
with kept:
    if on_xenna:
        Pipeline("start Ray", [processing_stage(name="same")(lambda task: task)]).run(kept, [Task(data=0)])
    for line, source in blocks:
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            try:
                exec(compile(source, f"{page}, after line {line}", "exec"), globals())
            except Exception as error:
                traceback.print_exc()
                said.write("".join(traceback.format_exception_only(error)))
        outputs.append(said.getvalue())
print(json.dumps(outputs))
"""


class Block(NamedTuple):
    line: int
    source: str
    output: str | None


def blocks_of(page: Path) -> list[Block]:
    """The Python of a page, each with the output that stands below it."""
    text = page.read_text(encoding="utf-8")
    found: list[Block] = []
    end = 0
    for fence in FENCE.finditer(text):
        language, body = fence.groups()
        if language == "python":
            found.append(Block(text.count("\n", 0, fence.start()) + 1, body, None))
        elif language == "output":
            assert found and not text[end : fence.start()].strip(), "output stands right below its Python"
            found[-1] = found[-1]._replace(output=body)
        end = fence.end()
    return found


PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md") if blocks_of(path))


def alike(shown: str, said: str) -> bool:
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    return doctest.OutputChecker().check_output(masked(shown), masked(said), flags)


def masked(text: str) -> str:
    """The text without what differs from run to run."""
    text = re.sub(r"\b[0-9a-f]{32}\b", "<run id>", text)
    text = re.sub(r"\b[\d.]+ (us|ms|s|min)\b", "<time>", text)
    text = re.sub(r"\b\d[\d,]*\.\d+\b|\b\d+%", "<number>", text)
    return re.sub(r"-{5,}", "-----", text)


@pytest.mark.parametrize("page", [pytest.param(p, marks=[pytest.mark.slow] * (p in ON_XENNA)) for p in PAGES])
def test_the_python_of_a_page_runs_and_gives_what_it_shows(page: str, tmp_path: Path) -> None:
    if page in ON_XENNA:
        pytest.importorskip("curator_xenna")
    blocks = blocks_of(DOCS / page)
    program = json.dumps([page, [(block.line, block.source) for block in blocks], page in ON_XENNA])
    runner = tmp_path / "runner.py"
    runner.write_text(RUNNER, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(runner), program],
        env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for block, said in zip(blocks, json.loads(done.stdout), strict=True):
        shown = block.output or ""
        assert alike(shown, said), f"{page}:{block.line} shows\n{shown}\nand gives\n{said}\n{done.stderr}"
