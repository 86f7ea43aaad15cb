# SPDX-License-Identifier: Apache-2.0
"""A text pipeline of NeMo Curator's own stages: the same files, byte for byte, as with its own executor."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from nemo_curator.pipeline import Pipeline
from nemo_curator.stages.text.filters import ScoreFilter
from nemo_curator.stages.text.filters.heuristic import WordCountFilter
from nemo_curator.stages.text.io.reader import JsonlReader, ParquetReader
from nemo_curator.stages.text.io.writer import JsonlWriter, ParquetWriter
from nemo_curator.stages.text.modifiers import Modify
from nemo_curator.stages.text.modifiers.unicode import UnicodeReformatter
from nemo_curator.stages.text.modules import AddId
from tests.nemo.library import reference

from curator_core import LocalExecutor

FILES, DOCUMENTS = 5, 40
STARTED = "CURATOR_TESTS_STARTED"  # in the environment of all processes of a run of NeMo Curator's executor
THEIRS = "import sys; from tests.nemo.test_text import run_theirs; run_theirs(*sys.argv[1:])"


def curate(source: Path, out: Path) -> Pipeline:
    """Return a pipeline that filters and modifies JSON Lines, and numbers the documents."""
    scored = ScoreFilter(WordCountFilter(min_words=6), text_field="text", score_field="words")
    changed = [scored, Modify(UnicodeReformatter()), AddId("id")]
    return Pipeline("curate", stages=[JsonlReader(str(source), files_per_partition=2), *changed, JsonlWriter(str(out))])


def to_parquet(source: Path, out: Path) -> Pipeline:
    return Pipeline("to Parquet", stages=[JsonlReader(str(source)), ParquetWriter(str(out))])


def to_jsonl(source: Path, out: Path) -> Pipeline:
    return Pipeline("to JSON Lines", stages=[ParquetReader(str(source)), JsonlWriter(str(out))])


def facts_of(result: list[Any]) -> list[Any]:
    """Return ids, files, and metadata of the outputs."""
    facts = [[task.task_id, task.dataset_name, task.data, task._metadata] for task in result]
    return sorted(json.loads(json.dumps(facts)))


def taken(directory: Path) -> dict[str, bytes]:
    """Return the files in a directory, which is removed: names depend on paths, so all executors write to one place."""
    files = {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    shutil.rmtree(directory)
    return files


def run_theirs(source: str, out: str, facts: str) -> None:
    """Run the pipeline on NeMo Curator's executor; write the facts into a file."""
    import ray
    from nemo_curator.backends.xenna import XennaExecutor

    context = ray.init(num_cpus=11)  # it needs a CPU for each stage, and more to scale
    os.environ["RAY_ADDRESS"] = context.address_info["gcs_address"]  # there may be other Rays here
    result = curate(Path(source), Path(out)).run(XennaExecutor())
    Path(facts).write_text(json.dumps(facts_of(result)))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("source")
    for file in range(FILES):
        with (directory / f"part-{file}.jsonl").open("w") as lines:
            for n in range(DOCUMENTS):
                text = " ".join(["wörd…"] * (n % 17 + 1)) + f" document {file} {n}"
                lines.write(json.dumps({"text": text, "n": n}) + "\n")
    return directory


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("out") / "files"


@pytest.fixture(scope="module")
def expected(source: Path, out: Path) -> tuple[dict[str, bytes], list[Any]]:
    """The files that NeMo Curator's own executor writes, and the facts about its outputs."""
    token = uuid.uuid4().hex
    facts = out.with_name("facts.json")
    command = [sys.executable, "-c", THEIRS, str(source), str(out), str(facts)]
    try:
        env = {**os.environ, STARTED: token}
        done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False, env=env)
    finally:
        end_all(token)
    assert done.returncode == 0, done.stdout + done.stderr
    return taken(out), json.loads(facts.read_text())


def end_all(token: str) -> None:
    """End what the run has left: its workers outlive it."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(STARTED) == token:
                process.kill()
                process.wait(10)


def test_files_names_ids_and_metadata_are_those_of_nemo_curators_executor(executor, source, out, expected):
    facts = facts_of(curate(source, out).run(executor))
    files = taken(out)
    assert len(files) == 3
    assert files == expected[0]
    assert facts == expected[1]


@pytest.mark.parametrize("pipeline", [to_parquet, to_jsonl])
def test_parquet_is_that_of_nemo_curators_adapters(pipeline, executor, source, out, tmp_path):
    if pipeline is to_jsonl:
        to_parquet(source, tmp_path / "parquet").run(LocalExecutor())
        source = tmp_path / "parquet"
    facts = facts_of(reference(pipeline(source, out).stages))
    files = taken(out)
    assert facts_of(pipeline(source, out).run(executor)) == facts
    assert taken(out) == files
    assert len(files) == FILES
