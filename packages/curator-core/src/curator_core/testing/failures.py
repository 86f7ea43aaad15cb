# SPDX-License-Identifier: Apache-2.0
"""Tests with pipelines that fail."""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING, Any

import pytest

from curator_core.errors import ContractError, StageError
from curator_core.tasks import Task
from curator_core.testing.base import ConformanceBase, Seen
from curator_core.testing.recorder import Journal
from curator_core.testing.stages import Broken, BrokenSetup, Misbehaving, Record, Renew, Service, Unruly, WithColumns

if TYPE_CHECKING:
    from curator_core._reports.batch import ErrorInfo
    from curator_core._run.executor import BaseExecutor

__all__ = ["FailureConformance"]

_SKIPPED = [
    *(Record(data=fault) for fault in Misbehaving.FAULTS),
    Record(data="foreign"),
    Record(data="good"),
    Record(data="no column", columns=("other",)),
    Record(data="not valid", valid=False),
    Record(data="bad"),
    Record(data="good as well"),
    *(Record(data=fault) for fault in Unruly.FAULTS),
    Record(data="forks"),
    *(Record(data=fault) for fault in ("is down", "is down for once", "never answers")),
]
_FAILING = ("Misbehaving", "WithColumns", "Broken", "Unruly", "Service")


class FailureConformance(ConformanceBase):
    """Checks of a run that ends at its first failure, and of one that skips failures."""

    # --- ending at a failure ----------------------------------------------------------------------------

    @pytest.fixture(scope="class")
    @classmethod
    def failed_journal(cls, tmp_path_factory: pytest.TempPathFactory) -> Journal:
        """The journal in which the first stage of `failed` records its life cycle."""
        return Journal(tmp_path_factory.mktemp("failed"))

    @pytest.fixture(scope="class")
    @classmethod
    def failed(cls, executor: BaseExecutor, failed_journal: Journal) -> Seen:
        """A run whose second stage raises."""
        stages = [Renew(failed_journal).with_(batch_size=1), Broken(bad=3)]
        return cls.run(executor, stages, [Task(data=number) for number in range(6)])

    def test_the_error_names_the_stage_and_its_exception(self, failed: Seen) -> None:
        assert isinstance(failed.error, StageError)
        assert failed.error.stage == "Broken"
        assert "SampleError" in str(failed.error)
        assert "cannot work on 3 (code 7)" in str(failed.error)

    def test_the_error_shows_the_traceback_of_the_user(self, failed: Seen) -> None:
        text = _shown(failed.error)
        assert "_deep_inside" in text
        assert 'raise KeyError("the root of it")' in text
        assert "curator_core.testing.stages.SampleError" in text

    def test_the_error_has_the_partial_result(self, failed: Seen) -> None:
        assert not failed.result.complete
        assert failed.stage("Renew").tasks_in >= 1
        assert failed.stage("Broken").tasks_failed >= 1
        assert "Broken" in failed.result.summary()

    def test_observers_are_notified_of_the_failure_once(self, failed: Seen) -> None:
        assert len(failed.recorder.ends) == 1
        result, error = failed.recorder.ends[0]
        assert isinstance(error, StageError)
        assert result.run_id == failed.result.run_id

    def test_a_failed_batch_leaves_a_report(self, failed: Seen) -> None:
        (report,) = [report for report in failed.recorder.of("Broken") if report.error is not None]
        assert {outcome.kind for outcome in report.inputs} == {"failed"}
        assert report.error is not None
        assert report.error.type == "curator_core.testing.stages.SampleError"
        assert report.error.message == "cannot work on 3 (code 7)"
        assert "_deep_inside" in report.error.traceback
        assert report.duration_ns > 0

    def test_a_failing_setup_ends_the_run(self, executor: BaseExecutor) -> None:
        seen = self.run(executor, [BrokenSetup()], [Task(data=0)])
        assert isinstance(seen.error, StageError)
        assert seen.error.stage == "BrokenSetup"
        assert "in setup" in str(seen.error)
        assert "no model for WorkerMetadata (code 3)" in str(seen.error)
        events = [report for report in seen.recorder.workers if report.stage_name == "BrokenSetup"]
        assert {report.event for report in events} == {"setup_failed"}
        assert events[0].error is not None
        assert events[0].error.type == "curator_core.testing.stages.SamplePanicError"
        assert not seen.recorder.of("BrokenSetup")

    def test_a_broken_contract_ends_the_run(self, executor: BaseExecutor) -> None:
        seen = self.run(executor, [Misbehaving()], [Task(data="too few")])
        assert isinstance(seen.error, ContractError)
        assert seen.error.stage == "Misbehaving"
        assert seen.error.field == "process_batch"
        assert "0 entries for 1 task" in str(seen.error)
        assert seen.error.expected is not None
        assert seen.error.hint is not None
        assert seen.stage("Misbehaving").tasks_failed == 1

    # --- skipping failures ------------------------------------------------------------------------------

    @pytest.fixture(scope="class")
    @classmethod
    def skipped(cls, executor: BaseExecutor) -> Seen:
        """A run with every kind of failure, all of which are skipped."""
        stages: list[Any] = [Misbehaving(), WithColumns(), Broken(bad="bad"), Unruly(), Service()]
        return cls.run(executor, [stage.with_(num_workers=1) for stage in stages], _SKIPPED, on_error="skip")

    def test_skipped_failures_do_not_raise(self, skipped: Seen) -> None:
        assert skipped.error is None
        assert skipped.result.complete

    def test_neighbors_of_a_failed_task_go_on(self, skipped: Seen) -> None:
        good = {str(task.data) for task in skipped.result}
        assert good == {"foreign", "good", "good as well", "4", "is down for once"}

    def test_failed_tasks_are_counted(self, skipped: Seen) -> None:
        self.check_accounts(skipped)
        failed = [skipped.stage(name).tasks_failed for name in _FAILING]
        assert failed == [8, 1, 1, 4, 2]

    @pytest.mark.parametrize(
        ("fault", "says"),
        [
            ("too few", "0 entries for 1 task"),
            ("too many", "2 entries for 1 task"),
            ("no list", "a Record for 1 task"),
            ("wrong entry", "type 'int' where a task was expected"),
            ("wrong entry in a list", "type 'str' where a task was expected"),
            ("same object twice", "the same task object twice"),
        ],
    )
    def test_a_broken_contract_is_reported(self, skipped: Seen, fault: str, says: str) -> None:
        task_id = str(Misbehaving.FAULTS.index(fault))
        error = _error_of(skipped, "Misbehaving", task_id)
        assert error.type == "curator_core.errors.ContractError"
        assert says in error.message

    def test_an_output_that_belongs_to_another_input_is_rejected(self, skipped: Seen) -> None:
        # There are two such tasks: the stage returned the earlier one as the output of the later one.
        ids = [str(number) for number, task in enumerate(_SKIPPED) if task.data == "foreign"]
        outcomes = skipped.recorder.outcomes("Misbehaving")
        (refused,) = [task_id for task_id in ids if outcomes[task_id] == ("failed", 0)]
        (other,) = set(ids) - {refused}
        error = _error_of(skipped, "Misbehaving", refused)
        assert error.type == "curator_core.errors.ContractError"
        assert f"returned task '{other}' as the output of task '{refused}'" in error.message

    @pytest.mark.parametrize(
        ("fault", "kind", "says"),
        [
            ("panics", "SamplePanicError", "index out of bounds (code 5)"),
            ("is cancelled", "CancelledError", ""),
            ("exits", "SystemExit", "3"),
            ("raises what ends processes", "FatalError", "<its __str__ raised SystemExit>"),
        ],
    )
    def test_any_exception_of_a_stage_fails_its_task(self, skipped: Seen, fault: str, kind: str, says: str) -> None:
        task_id = next(str(number) for number, task in enumerate(_SKIPPED) if task.data == fault)
        assert skipped.recorder.outcomes("Unruly")[task_id] == ("failed", 0)
        error = _error_of(skipped, "Unruly", task_id)
        assert (error.type.rpartition(".")[2], error.message) == (kind, says)

    def test_a_forked_child_does_not_affect_the_run(self, skipped: Seen) -> None:
        assert [task.data for task in skipped.result if isinstance(task.data, int)] == [4]

    @pytest.mark.parametrize(
        ("fault", "outcome"),
        [
            ("good", ("out", 1)),
            ("is down for once", ("out", 1)),
            ("is down", ("failed", 0)),
            ("never answers", ("failed", 0)),
        ],
    )
    def test_asynchronous_calls_fail_and_are_retried_individually(
        self, skipped: Seen, fault: str, outcome: tuple[str, int]
    ) -> None:
        task_id = next(str(number) for number, task in enumerate(_SKIPPED) if task.data == fault)
        assert skipped.recorder.outcomes("Service")[task_id] == outcome
        reports = [r for r in skipped.recorder.of("Service") if any(o.task_id == task_id for o in r.inputs)]
        retried = [report for report in reports if report.is_retried]
        assert len(retried) == (fault != "good")
        assert all(report.error is not None for report in retried)

    @pytest.mark.parametrize(
        ("stage", "data", "says"),
        [("Misbehaving", "not valid", "is not valid"), ("WithColumns", "no column", "has no column 'text'")],
    )
    def test_an_invalid_task_is_reported(self, skipped: Seen, stage: str, data: str, says: str) -> None:
        task_id = next(str(number) for number, task in enumerate(_SKIPPED) if task.data == data)
        assert skipped.recorder.outcomes(stage)[task_id] == ("failed", 0)
        error = _error_of(skipped, stage, task_id)
        assert error.type == "curator_core.errors.InputError"
        assert f"task '{task_id}' {says}" in error.message


def _error_of(seen: Seen, stage: str, task_id: str) -> ErrorInfo:
    reports = [r for r in seen.recorder.of(stage) if any(outcome.task_id == task_id for outcome in r.inputs)]
    assert len(reports) == 1
    assert reports[0].error is not None
    return reports[0].error


def _shown(error: BaseException | None) -> str:
    """Return the text that Python prints for an uncaught error."""
    assert error is not None
    return "".join(traceback.format_exception(error))
