# SPDX-License-Identifier: Apache-2.0
"""Tests that no work is lost: failing batches are split, failed tasks are kept, and runs resume."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from curator_core import deadletter
from curator_core._checkpoint.settings import Checkpoint
from curator_core._dead_letter import DeadLetter
from curator_core._plan.plan import Plan
from curator_core.errors import FailureLimitError, StageError
from curator_core.tasks import Task
from curator_core.testing.base import ConformanceBase
from curator_core.testing.stages import POISON, Filed, Fragile, Listing, Squares, Twice

if TYPE_CHECKING:
    from curator_core._run.executor import BaseExecutor
    from curator_core.results import RunResult

__all__ = ["ReliabilityConformance"]

_BROKEN = frozenset({9})
_COUNT = 20


class Resumed(NamedTuple):
    """Three runs with one checkpoint.

    Attributes:
        files: The directory that they wrote to.
        dead: The directory in which the second run kept failed tasks.
        before: The numbers in the files after the first run failed.
        after: The numbers in the files after the second run ended.
        second: The result of the second run.
        third: The result of the third run.
    """

    files: Path
    dead: Path
    before: list[int]
    after: list[int]
    second: RunResult
    third: RunResult


class ReliabilityConformance(ConformanceBase):
    """Checks of runs in which some of the work fails, or was done by an earlier run."""

    # --- failures ---------------------------------------------------------------------------------------

    @pytest.fixture(scope="class")
    @classmethod
    def letters(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """The directory in which `poisoned` keeps failed tasks."""
        directory: Path = tmp_path_factory.mktemp("letters")
        return directory

    @pytest.fixture(scope="class")
    @classmethod
    def poisoned(cls, executor: BaseExecutor, letters: Path) -> RunResult:
        """A run of whole batches, some of which contain poison."""
        tasks = [Task(data=number) for number in range(_COUNT)]
        return executor.execute([Squares()], tasks, on_error=DeadLetter(letters))

    def test_a_failed_task_does_not_fail_its_neighbors(self, poisoned: RunResult) -> None:
        assert sorted(task.data for task in poisoned) == [n * n for n in range(_COUNT) if n not in POISON]

    def test_failed_tasks_are_listed_by_id(self, poisoned: RunResult) -> None:
        accounting = poisoned.accounting
        assert sorted(accounting.failed["Squares"], key=int) == [str(number) for number in sorted(POISON)]
        assert (accounting.admitted, accounting.unfinished) == (_COUNT, ())
        assert poisoned.stages[0].tasks_failed == len(POISON)
        assert list(poisoned.lost) == []

    def test_each_failure_leaves_one_letter(self, poisoned: RunResult, letters: Path) -> None:
        read = deadletter.read(letters)
        assert sorted(int(letter.task_id) for letter in read) == sorted(POISON)
        for letter in read:
            assert (letter.stage, letter.run_id) == ("Squares", poisoned.run_id)
            assert letter.error_type == "ValueError"
            assert letter.error_message == f"poison: [{letter.task_id}]"  # its own error, not that of the batch
            assert "raise ValueError" in letter.error_traceback
            assert letter.worker_id
            assert letter.node_id
            assert letter.pid

    def test_letters_contain_the_original_tasks_which_can_be_rerun(
        self, executor: BaseExecutor, poisoned: RunResult, letters: Path
    ) -> None:
        del poisoned
        tasks = deadletter.load(letters, stage="Squares")
        assert sorted(task.data for task in tasks) == sorted(POISON)
        plan = Plan.from_stages([Squares(frozenset()).with_(num_workers=1)], "again", fed=True)
        result = executor.execute(plan, tasks, keep_ids=True)
        assert {task.task_id: task.data for task in result} == {str(n): n * n for n in POISON}

    def test_a_crash_or_hang_fails_only_its_own_task(self, executor: BaseExecutor) -> None:
        data = ["a", "b", "dies", "c", "d", "hangs", "e"]
        result = executor.execute([Fragile()], [Task(data=each) for each in data], on_error="skip")
        assert sorted(task.data for task in result) == [*"abcde"]
        assert sorted(result.accounting.failed["Fragile"]) == ["2", "5"]
        assert result.accounting.restarts == 0
        assert list(result.lost) == []

    def test_too_many_failures_end_the_run(self, executor: BaseExecutor) -> None:
        tasks = [Task(data=3) for _ in range(_COUNT)]
        with pytest.raises(FailureLimitError) as caught:
            executor.execute([Squares().with_(batch_size=1)], tasks, on_error="skip", max_failures=2)
        assert caught.value.stage == "Squares"
        assert caught.value.result is not None
        assert caught.value.result.stages[0].tasks_failed >= 3

    # --- outputs ----------------------------------------------------------------------------------------

    def test_outputs_are_not_collected_unless_requested(self, executor: BaseExecutor) -> None:
        result = executor.execute([Twice()], [Task(data=number) for number in range(5)], collect=False)
        assert list(result) == []
        assert result.stages[0].tasks_out == 10
        assert "10 tasks out" in result.summary()

    # --- resuming ---------------------------------------------------------------------------------------

    @pytest.fixture(scope="class")
    @classmethod
    def resumed(cls, executor: BaseExecutor, tmp_path_factory: pytest.TempPathFactory) -> Resumed:
        """Three runs with one checkpoint: the first fails at 9, the second keeps 9, the third has one more number."""
        directory: Path = tmp_path_factory.mktemp("resumed")
        files, dead, checkpoint = (directory / name for name in ("files", "dead", "checkpoint"))
        numbers = [*range(12)]
        with pytest.raises(StageError):
            executor.execute([Listing(numbers), Twice(), Filed(files, _BROKEN)], checkpoint=checkpoint)
        before = _lines(files)
        stages = [Listing(numbers[::-1]), Twice(), Filed(files, _BROKEN)]
        second = executor.execute(stages, checkpoint=_changed(checkpoint), on_error=DeadLetter(dead))
        after = _lines(files)
        third = executor.execute([Listing([*numbers, 12]), Twice(), Filed(files)], checkpoint=_changed(checkpoint))
        return Resumed(files, dead, before, after, second, third)

    def test_a_run_resumes_where_the_previous_one_ended(self, resumed: Resumed) -> None:
        both = {*range(12), *(number + 100 for number in range(12))}
        assert set(resumed.after) == both - _BROKEN
        # An output may be written again only if another output of the same source task was not written.
        repeated = [number for number, times in Counter(resumed.after).items() if times > 1]
        done = {number % 100 for number in resumed.before} - {number % 100 for number in repeated}
        assert len(resumed.second.accounting.resumed) >= len(done) - 1

    def test_finished_tasks_are_not_run_again(self, resumed: Resumed) -> None:
        assert len(resumed.third.accounting.resumed) == 12
        assert resumed.third.stages[-1].tasks_in == 2
        assert sorted((Counter(_lines(resumed.files)) - Counter(resumed.after)).elements()) == [12, 112]
        assert list(resumed.third.lost) == []

    def test_failed_tasks_with_a_letter_count_as_finished(self, resumed: Resumed) -> None:
        assert [letter.error_message for letter in deadletter.read(resumed.dead)] == ["cannot write 9"]
        assert 9 not in _lines(resumed.files)

    def test_outputs_of_earlier_runs_are_returned(self, resumed: Resumed) -> None:
        came = {Path(path).name for task in resumed.third for path in task.data}
        assert came == {path.name for path in resumed.files.iterdir()}
        assert {tuple(task.data) for task in resumed.second} < {tuple(task.data) for task in resumed.third}

    def test_initial_tasks_are_resumed(self, executor: BaseExecutor, tmp_path: Path) -> None:
        files, checkpoint = tmp_path / "files", tmp_path / "checkpoint"
        writer = Filed(files).with_(num_workers=1)
        for numbers in ([1, 2], [2, 3, 1]):
            result = executor.execute([writer], [Task(data=n) for n in numbers], checkpoint=checkpoint)
        assert sorted(_lines(files)) == [1, 2, 3]
        assert len(result.accounting.resumed) == 2


def _changed(path: Path) -> Checkpoint:
    """Return the checkpoint, for stages whose settings have changed: their numbers are settings."""
    return Checkpoint(path, accept_changes=True)


def _lines(directory: Path) -> list[int]:
    return [int(line) for path in directory.iterdir() for line in path.read_text().split()]
