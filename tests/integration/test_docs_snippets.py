# SPDX-License-Identifier: Apache-2.0
"""The Python on the pages runs and produces the output that they show; their tables match the code.

The blocks of a page run in order, as one program in a separate process; a block that begins with a file name is also
saved under that name. An ``output`` block shows what the block above it prints, with an error at its end as Python
shows it. Numbers with a decimal point, durations, and run ids are not compared, and ``...`` matches anything.
"""

from __future__ import annotations

import doctest
import json
import os
import re
import runpy
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

import curator_core

if TYPE_CHECKING:
    from collections.abc import Callable

DOCS = Path(__file__).parents[2] / "docs"
FENCE = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)

# These need a cluster; all other pages run in one process without a cluster.
ON_XENNA = {"guides/running-on-xenna.md"}
NEEDS = {"guides/running-on-xenna.md": "curator_xenna", "guides/coming-from-nemo-curator.md": "nemo_curator"}

RUNNER = """
import contextlib, io, json, linecache, sys, traceback

page, blocks, on_xenna = json.loads(sys.argv[1])
outputs = []
if on_xenna:
    import os

    # The executors of the page use this Ray, so that one is started and not one a block.
    os.environ.update({"RAY_MAX_LIMIT_FROM_API_SERVER": "40000", "RAY_MAX_LIMIT_FROM_DATA_SOURCE": "40000"})
    import ray

    # Not any that runs on this machine already.
    ray.init("local", num_cpus=3, include_dashboard=True, log_to_driver=False, logging_level="ERROR")
for line, source in blocks:
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        try:
            name = f"{page}, after line {line}"
            linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
            exec(compile(source, name, "exec"), globals())
        except Exception as error:
            traceback.print_exc()
            said.write("".join(traceback.format_exception_only(error)))
    outputs.append(said.getvalue())
with open("outputs.json", "w") as stream:  # not on stdout, where Ray has its say
    json.dump(outputs, stream)
"""


class Block(NamedTuple):
    line: int
    source: str
    output: str | None


def blocks_of(page: Path) -> list[Block]:
    """Return the Python blocks of a page, each with the output below it."""
    text = page.read_text(encoding="utf-8")
    found: list[Block] = []
    end = 0
    for fence in FENCE.finditer(text):
        language, body = fence.groups()
        if language == "python":
            found.append(Block(text.count("\n", 0, fence.start()) + 1, body, None))
        elif language == "output":
            assert not text[end : fence.start()].strip(), "an output must directly follow its Python block"
            found[-1] = found[-1]._replace(output=body)
        end = fence.end()
    return found


def save_files(blocks: list[Block], directory: Path) -> None:
    for block in blocks:
        name = re.match(r"# (\w+\.py)\n", block.source)
        if name:
            (directory / name[1]).write_text(block.source, encoding="utf-8")


PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md") if blocks_of(path))


def alike(shown: str, said: str) -> bool:
    return doctest.OutputChecker().check_output(shown, said, doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)


@pytest.mark.parametrize("page", PAGES)
def test_the_python_on_a_page_prints_the_output_that_it_shows(
    page: str, masked: Callable[[str], str], tmp_path: Path
) -> None:
    if page in NEEDS:
        pytest.importorskip(NEEDS[page])
    blocks = blocks_of(DOCS / page)
    program = json.dumps([page, [(block.line, block.source) for block in blocks], page in ON_XENNA])
    save_files(blocks, tmp_path)
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
    outputs = json.loads((tmp_path / "outputs.json").read_bytes())
    for block, said in zip(blocks, outputs, strict=True):
        shown = block.output or ""
        is_alike = alike(masked(shown), masked(said))
        assert is_alike, f"{page}:{block.line} shows\n{shown}\nand prints\n{said}\n{done.stderr}"


def test_the_executor_of_the_guide_passes_the_kit(tmp_path: Path) -> None:
    save_files(blocks_of(DOCS / "guides" / "testing-an-executor.md"), tmp_path)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_my_executor.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout


def table_below(page: str, header: str) -> list[list[str]]:
    """Return the cells of the table of a page that begins with this header."""
    lines = (DOCS / page).read_text(encoding="utf-8").splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(f"| {header} |"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def test_the_documented_settings_of_xenna_match_the_code() -> None:
    xenna = pytest.importorskip("curator_xenna")
    shown = [(row[0].strip("`"), row[1].strip("`")) for row in table_below("guides/running-on-xenna.md", "setting")]
    there = [(field.name, json.dumps(field.default)) for field in fields(xenna.XennaConfig)]
    as_python = {"null": "None", "true": "True", "false": "False"}
    assert shown == [(name, as_python.get(default, default)) for name, default in there]


def test_the_documented_options_of_xenna_match_the_code() -> None:
    xenna = pytest.importorskip("curator_xenna")
    installed = fields_of_xenna()

    def is_taken(name: str) -> bool:
        try:
            xenna.XennaExecutor({"xenna": {name: installed[name].default}})
        except curator_core.ExecutorError:
            return False
        return True

    rows = table_below("guides/running-on-xenna.md", "option")
    shown = {name: row[1] for row in rows for name in re.findall(r"`(\w+)`", row[0])}
    assert shown.keys() & installed.keys() == {name for name in installed if is_taken(name)}
    for name in shown.keys() - installed.keys():
        with pytest.raises(curator_core.ExecutorError, match="does not have the option") as caught:
            xenna.XennaExecutor({"xenna": {name: None}})
        assert f"cosmos-xenna {shown[name]} " in str(caught.value.hint)


def fields_of_xenna() -> dict[str, Any]:
    import attrs
    from cosmos_xenna.pipelines import v1

    return {**attrs.fields_dict(v1.PipelineConfig), **attrs.fields_dict(v1.StreamingSpecificSpec)}


def test_the_documented_teardown_times_match_the_code() -> None:
    pytest.importorskip("curator_xenna")
    from curator_xenna import adapter
    from curator_xenna._session import coordinator

    text = (DOCS / "guides" / "running-on-xenna.md").read_text(encoding="utf-8")
    assert f"`teardown()` has {coordinator._TEARDOWN_BUDGET_S:.0f} seconds." in text
    assert f"the batch has {adapter._FINISH_S:.0f} seconds to finish" in text


def test_the_documented_codec_engines_match_the_code() -> None:
    pytest.importorskip("curator_xenna")
    from curator_xenna._convert.resources import CODEC_ENGINES

    rows = table_below("guides/running-on-xenna.md", "model")
    assert {model: (int(decoders), int(encoders)) for model, decoders, encoders in rows} == dict(CODEC_ENGINES)


def test_the_documented_stage_options_match_the_code() -> None:
    pytest.importorskip("curator_xenna")
    from curator_xenna._session.specification import check_options

    text = (DOCS / "guides" / "running-on-xenna.md").read_text(encoding="utf-8")
    named = re.search(r"gives options of Xenna's `StageSpec` for one stage:\n(.*?)\. ", text, re.DOTALL)
    assert named is not None
    options = {name: name == "is_spmd" or 1 for name in re.findall(r"`(\w+)`", named[1])}
    stage = curator_core.processing_stage(name="same", xenna_stage_spec=options)(lambda task: task)
    check_options(curator_core.Plan.from_stages([stage]).stages)
    assert len(options) >= 8


def test_the_documented_settings_of_a_stage_match_the_code() -> None:
    script = runpy.run_path(str(DOCS / "reference" / "settings.py"))
    page = (DOCS / "guides" / "writing-stages.md").read_text(encoding="utf-8")
    assert page.splitlines() == script["page"]().splitlines(), "run `python docs/reference/settings.py`"


def test_every_error_is_documented() -> None:
    text = (DOCS / "guides" / "errors.md").read_text(encoding="utf-8")
    errors = [name for name in curator_core.__all__ if name.endswith("Error")]
    assert [name for name in errors if name not in text] == []
    tree = re.search(r"```text\n(.*?)```", text, re.DOTALL)
    assert tree is not None
    assert {name for name in re.findall(r"\w+Error\b", tree[1]) if name != "ValueError"} == set(errors)
