# SPDX-License-Identifier: Apache-2.0
"""Several runs that share a source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from curator_core import (
    Checkpoint,
    ConfigurationError,
    EmptyTask,
    FileGroupTask,
    LocalExecutor,
    Pipeline,
    PipelineError,
    ProcessingStage,
    Resources,
    StageError,
    Task,
)

from ..helpers import tasks  # noqa: TID252 - no import can write this directory's name

SLURM = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_MAX")
SGE = ("SGE_TASK_ID", "SGE_TASK_FIRST", "SGE_TASK_LAST")
NAMES = [f"file-{number}" for number in range(40)]
VARIABLES = {
    "slurm": {
        "SLURM_ARRAY_TASK_ID": "5",
        "SLURM_ARRAY_TASK_COUNT": "4",
        "SLURM_ARRAY_TASK_MIN": "1",
        "SLURM_ARRAY_TASK_MAX": "7",
        "SLURM_ARRAY_TASK_STEP": "2",
    },
    "aws": {"AWS_BATCH_JOB_ARRAY_INDEX": "2", "AWS_BATCH_JOB_ARRAY_SIZE": "4"},
    "cloud run": {"CLOUD_RUN_TASK_INDEX": "2", "CLOUD_RUN_TASK_COUNT": "4"},
    "kubernetes": {"JOB_COMPLETION_INDEX": "2", "CURATOR_SHARD_COUNT": "4"},
    "pbs": {"PBS_ARRAY_INDEX": "2", "CURATOR_SHARD_COUNT": "4"},
    "torque": {"PBS_ARRAYID": "2", "CURATOR_SHARD_COUNT": "4"},
    "lsf": {"LSB_JOBINDEX": "3", "LSB_JOBINDEX_END": "4", "LSB_JOBINDEX_STEP": "1", "CURATOR_SHARD_COUNT": "4"},
    "sge": {"SGE_TASK_ID": "3", "SGE_TASK_FIRST": "1", "SGE_TASK_LAST": "4", "SGE_TASK_STEPSIZE": "1"},
}


class List(ProcessingStage[EmptyTask, Task[str]]):
    """Lists the names, in a different order each time."""

    def __init__(self, step: int = 1) -> None:
        self.step = step

    def process(self, task: EmptyTask) -> Any:
        yield from (Task(data=name) for name in NAMES[:: self.step])


class Write(ProcessingStage[Task[str], FileGroupTask]):
    def __init__(self, directory: Path, fail: str = "") -> None:
        self.directory, self.fail = directory, fail

    def process(self, task: Task[str]) -> FileGroupTask:
        if task.data == self.fail:
            raise ValueError("cannot be read")
        path = self.directory / task.data
        path.touch(exist_ok=False)  # written only once
        return FileGroupTask([str(path)])


def written(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.mark.parametrize("workers", [1, 2])
def test_shards_divide_a_source_and_a_missing_one_is_run_again(tmp_path: Path, workers: int) -> None:
    out, progress = tmp_path / "out", tmp_path / "progress"
    out.mkdir()
    results = [
        Pipeline("p", [List(1 - 2 * (index % 2)), Write(out)]).run(
            LocalExecutor(workers), checkpoint=progress, shard=(index, 4)
        )
        for index in (0, 1, 3)
    ]
    done = written(out)
    missing = sorted(set(NAMES) - set(done))
    assert sum(map(len, results)) == len(done)
    assert 0 < len(missing) < len(NAMES)
    assert "shard 3 of 4 (from 0)" in results[2].summary()
    assert "no tasks lost" in results[2].summary()
    assert (results[2].accounting.shard, results[2].accounting.elsewhere) == ((3, 4), 40 - len(results[2]))
    assert results[2].lost == ()
    checkpoint = Checkpoint(progress, accept_changes=True)
    with pytest.raises(StageError):
        Pipeline("p", [List(), Write(out, fail=missing[1])]).run(checkpoint=checkpoint, shard=(2, 4))
    last = Pipeline("p", [List(), Write(out)]).run(checkpoint=checkpoint, shard=(2, 4))
    assert written(out) == sorted(NAMES)
    assert (len(last), len(last.accounting.resumed) > 0) == (len(missing), True)


def test_initial_tasks_are_divided_by_content() -> None:
    stage = Pipeline("p", [Same()])
    parts = [[task.data for task in stage.run(initial_tasks=tasks(*NAMES), shard=(index, 3))] for index in range(3)]
    other = [
        [task.data for task in stage.run(initial_tasks=tasks(*NAMES[::-1]), shard=(index, 3))] for index in range(3)
    ]
    assert sorted(name for part in parts for name in part) == sorted(NAMES)
    assert [sorted(part) for part in parts] == [sorted(part) for part in other]
    assert stage.run(initial_tasks=tasks(*NAMES), shard=(0, 1)).accounting.elsewhere == 0


class Same(ProcessingStage[Any, Any]):
    def process(self, task: Any) -> Any:
        return task


@pytest.mark.parametrize(
    ("earlier", "later"),
    [({"shard": (0, 2)}, {"shard": (0, 3)}), ({"shard": (0, 2)}, {}), ({}, {"shard": (0, 2)})],
)
def test_another_number_of_shards_is_rejected(tmp_path: Path, earlier: dict[str, Any], later: dict[str, Any]) -> None:
    pipeline = Pipeline("p", [Same()])
    pipeline.run(initial_tasks=tasks(*NAMES), checkpoint=tmp_path, **earlier)
    with pytest.raises(ConfigurationError, match="the checkpoint was made for"):
        pipeline.run(initial_tasks=tasks(*NAMES), checkpoint=tmp_path, **later)
    result = pipeline.run(initial_tasks=tasks(*NAMES), checkpoint=Checkpoint(tmp_path, accept_changes=True), **later)
    assert result.accounting.resumed == ()


def test_a_source_on_a_worker_cannot_be_divided() -> None:
    class Heavy(List):
        resources = Resources(cpus=2)

    from curator_core._run.run import Run
    from curator_core._run.settings import RunSettings
    from curator_core._shard import Shard

    run = Run(Pipeline("p", [Heavy(), Same()]).compile(), "test", (), RunSettings(shard=Shard(0, 2)))
    with pytest.raises(PipelineError, match="tasks of other shards cannot be skipped"):
        [*run.admit([EmptyTask()])]


@pytest.fixture
def _no_array(monkeypatch: pytest.MonkeyPatch) -> None:
    for variables in VARIABLES.values():
        for name in variables:
            monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("_no_array")
class TestAuto:
    def shard(self) -> tuple[int, int] | None:
        return Pipeline("p", [Same()]).run(initial_tasks=tasks(1), shard="auto").accounting.shard

    @pytest.mark.parametrize("scheduler", VARIABLES)
    def test_the_shard_is_read_from_the_variables_of_schedulers(
        self, scheduler: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name, value in VARIABLES[scheduler].items():
            monkeypatch.setenv(name, value)
        assert self.shard() == (2, 4)

    @pytest.mark.parametrize("variables", [{}, {"LSB_JOBINDEX": "0", "SGE_TASK_ID": "undefined"}])
    def test_outside_of_an_array_job_auto_is_an_error(
        self, variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(ConfigurationError, match="not part of an array job") as raised:
            self.shard()
        assert raised.value.expected is not None
        for name in ("SLURM_ARRAY_TASK_ID", "AWS_BATCH_JOB_ARRAY_INDEX", "PBS_ARRAYID", "SGE_TASK_ID"):
            assert name in raised.value.expected

    @pytest.mark.parametrize(
        ("scheduler", "changes", "message"),
        [
            ("kubernetes", {"CURATOR_SHARD_COUNT": None}, "CURATOR_SHARD_COUNT is not a number"),
            ("aws", {"AWS_BATCH_JOB_ARRAY_SIZE": "many"}, "AWS_BATCH_JOB_ARRAY_SIZE is not a number"),
            ("aws", {"AWS_BATCH_JOB_ARRAY_SIZE": "2"}, "2 is not one of 2 numbers that start at 0"),
            ("pbs", {"PBS_ARRAY_INDEX": "-1"}, "-1 is not one of 4"),
            ("slurm", {"SLURM_ARRAY_TASK_MAX": "9"}, "not evenly spaced"),
            ("slurm", {"SLURM_ARRAY_TASK_ID": "4"}, "4 is not one of 4"),
            ("torque", {"CURATOR_SHARD_COUNT": None}, "CURATOR_SHARD_COUNT is not a number"),
            ("torque", {"PBS_ARRAYID": "4"}, "4 is not one of 4 numbers that start at 0"),
            ("lsf", {"LSB_JOBINDEX_END": "5"}, "5 is not one of 4 numbers that start at 1"),
            ("sge", {"SGE_TASK_FIRST": "3"}, "it starts at 3"),
        ],
    )
    def test_invalid_variables_of_schedulers_are_errors(
        self, scheduler: str, changes: dict[str, str | None], message: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name, value in {**VARIABLES[scheduler], **changes}.items():
            if value is not None:
                monkeypatch.setenv(name, value)
        with pytest.raises(ConfigurationError, match=message):
            self.shard()

    @pytest.mark.parametrize(
        ("variables", "index"),
        [
            (dict(zip(SLURM, "3133", strict=True)), 3),  # sbatch --array=3
            (dict(zip(SLURM, "0100", strict=True)), 0),
            (dict(zip(SLURM, "5825", strict=True)), 5),
            (dict(zip(SGE, "333", strict=True)), 2),  # qsub -t 3: there is no 0
            ({"LSB_JOBINDEX": "3", "LSB_JOBINDEX_END": "3"}, 2),
            ({"AWS_BATCH_JOB_ARRAY_INDEX": "3", "AWS_BATCH_JOB_ARRAY_SIZE": "4"}, 3),
        ],
    )
    def test_an_element_can_be_repeated_if_the_count_is_given(
        self, variables: dict[str, str], index: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        for name, value in {**variables, "CURATOR_SHARD_COUNT": "16"}.items():
            monkeypatch.setenv(name, value)
        assert self.shard() == (index, 16)
        assert not caplog.records

    @pytest.mark.parametrize(("names", "values"), [(SLURM, "3133"), (SLURM, "1111"), (SGE, "333"), (SGE, "222")])
    def test_a_single_element_is_not_the_whole_source(
        self, names: tuple[str, ...], values: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name, value in zip(names, values, strict=True):
            monkeypatch.setenv(name, value)
        with pytest.raises(ConfigurationError, match=f"{values[0]} is its only element") as raised:
            self.shard()
        assert raised.value.hint is not None
        assert "set CURATOR_SHARD_COUNT" in raised.value.hint

    @pytest.mark.parametrize(("names", "values"), [(SLURM, "0100"), (SGE, "111")])
    def test_a_single_first_element_is_the_whole_source_and_logged(
        self,
        names: tuple[str, ...],
        values: str,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        for name, value in zip(names, values, strict=True):
            monkeypatch.setenv(name, value)
        assert self.shard() == (0, 1)
        (record,) = caplog.records
        assert record.levelname == "WARNING"
        assert "this run processes the whole source" in record.getMessage()

    def test_all_elements_are_rejected_if_one_has_no_shard(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, value in zip((*SLURM, "CURATOR_SHARD_COUNT"), "14144", strict=True):  # --array=1-4
            monkeypatch.setenv(name, value)
        with pytest.raises(ConfigurationError, match="4 is not one of 4 numbers that start at 0"):
            self.shard()


@pytest.mark.parametrize(
    "shard", [(4, 4), (-1, 4), (0, 0), (0, -1), (1,), (0, 1, 2), ("0", "4"), (True, 2), 3, "all", {}]
)
def test_an_invalid_shard_is_rejected(shard: Any) -> None:
    with pytest.raises(ConfigurationError, match="invalid shard"):
        Pipeline("p", [Same()]).run(initial_tasks=tasks(1), shard=shard)
