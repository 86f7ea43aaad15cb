# SPDX-License-Identifier: Apache-2.0
"""Failed tasks in the driver: record them, write dead letters, and end a run that has too many."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from curator_core.errors import FailureLimitError

if TYPE_CHECKING:
    from collections.abc import Callable

    from curator_core._dead_letter import DeadLetter
    from curator_core._reports.batch import BatchReport, FailedInput
    from curator_core._run.run_totals import RunTotals
    from curator_core._run.settings import RunSettings

__all__ = ["FailureLog"]

_ENOUGH = 100  # inputs that a stage must have before a share of them is meaningful


class FailureLog:
    """The failures of a run.

    Args:
        settings: How to handle failures.
        totals: Counts the tasks that each stage was given.
        pipeline: Name of the pipeline, for letters.
        trace_id: Returns the id of the run's trace, for letters; called when a letter is written.

    Attributes:
        task_ids: By stage, the ids of the inputs that failed for good.
    """

    def __init__(self, settings: RunSettings, totals: RunTotals, pipeline: str, trace_id: Callable[[], str]) -> None:
        self._limit = settings.max_failures
        self._totals = totals
        self._pipeline = pipeline
        self._trace_id = trace_id
        self._box = None if settings.letters is None else _box(settings.letters)
        self._withdrawn: set[tuple[str, str]] = set()
        self.task_ids: dict[str, list[str]] = {}

    def prepare(self) -> None:
        """Check that letters can be written.

        Raises:
            DataError: Letters cannot be written.
        """
        if self._box is not None:
            self._box.prepare()

    def enter(self, report: BatchReport) -> BatchReport:
        """Record a report that has an error, and return it without the tasks that it carries.

        Raises:
            DataError: A letter cannot be written.
        """
        failed = [(number, outcome.task_id) for number, outcome in enumerate(report.inputs) if outcome.kind == "failed"]
        if not failed:  # from another rank, or from a worker that repeated finished work
            return report._replace(failed_input=())
        self.task_ids.setdefault(report.stage_name, []).extend(task_id for _, task_id in failed)
        if self._box is not None:
            kept = {failed_input.number: failed_input for failed_input in report.failed_input}
            for number, task_id in failed:
                self._write(report, task_id, kept.get(number))
        return report._replace(failed_input=())

    def wait(self) -> None:
        """Wait until all letters are written.

        Raises:
            DataError: A letter cannot be written.
        """
        if self._box is not None:
            self._box.flush()

    def withdraw(self, is_meant: Callable[[str], bool]) -> None:
        """Withdraw the failures of tasks that are processed again.

        Args:
            is_meant: Returns whether a task is one of them.
        """
        for stage, ids in self.task_ids.items():
            again = [task_id for task_id in ids if is_meant(task_id)]
            self._withdrawn.update((stage, task_id) for task_id in again)
            self.task_ids[stage] = [task_id for task_id in ids if not is_meant(task_id)]

    def mark(self) -> Callable[[], None]:
        """Return a function that withdraws all failures recorded from now on."""
        counts = {stage: len(ids) for stage, ids in self.task_ids.items()}

        def withdraw() -> None:
            for stage, ids in self.task_ids.items():
                again = ids[counts.get(stage, 0) :]
                self._withdrawn.update((stage, task_id) for task_id in again)
                del ids[len(ids) - len(again) :]

        return withdraw

    def close(self) -> None:
        """Wait until all letters are written, remove those of tasks that did not fail in the end, and write no more.

        Raises:
            DataError: A letter could not be written or removed.
        """
        if self._box is not None:
            try:
                self._remove_withdrawn()
            finally:
                self._box.close()

    def _remove_withdrawn(self) -> None:
        if self._box is None or not self._withdrawn:
            return
        failed = {(stage, task_id) for stage, ids in self.task_ids.items() for task_id in ids}
        for stage, task_id in self._withdrawn - failed:
            self._box.remove(stage, task_id)
        self._withdrawn.clear()

    def _write(self, report: BatchReport, task_id: str, failed_input: FailedInput | None) -> None:
        from curator_core.deadletter.letter import Letter  # noqa: PLC0415 - failures are rare
        from curator_core.deadletter.payload import Payload  # noqa: PLC0415 - failures are rare

        error = report.error if failed_input is None else failed_input.error
        payload = None if failed_input is None else failed_input.payload
        letter = Letter(
            task_id=task_id,
            stage=report.stage_name,
            stage_index=report.stage_index,
            attempts=report.attempt,
            error_type=error.type if error else "",
            error_message=error.message if error else "",
            error_traceback=error.traceback if error else "",
            error_doing=error.doing if error else "",
            worker_id=report.worker_id,
            node_id=report.node_id,
            pid=report.pid,
            run_id=report.run_id,
            trace_id=self._trace_id(),
            pipeline=self._pipeline,
            failed_at=report.end_unix_ns / 1e9,
        )
        box: Any = self._box
        box.put(letter, payload or Payload("none", task_id, "", note="the original task is not available"))

    def check_limit(self, report: BatchReport) -> None:
        """Check whether the run may continue after a report that has an error.

        Raises:
            FailureLimitError: More tasks failed than allowed.
        """
        limit, stage = self._limit, report.stage_name
        if stage not in self.task_ids or (limit is None and report.error is not None and not report.error.ends_run):
            return
        count, seen = len(self.task_ids[stage]), self._totals.tasks_in(report.stage_index)
        given = f"{count:,} of {seen:,} tasks"
        if limit is None:
            is_too_many, expected = (
                count == seen >= _ENOUGH,
                f"at least one success among the first {_ENOUGH} tasks of a stage",
            )
        elif isinstance(limit, int):
            total = sum(map(len, self.task_ids.values()))
            is_too_many, given, expected = total > limit, f"{total:,} tasks", f"at most {limit:,}"
        else:
            is_too_many = seen >= _ENOUGH and count > limit * seen
            expected = f"at most {limit:.1%} of the tasks that a stage is given"
        if is_too_many:
            last = f"{report.error.type}: {report.error.message}" if report.error else "an error"
            raise FailureLimitError(
                f"too many failures; the last one: {last}",
                stage=stage,
                field="max_failures",
                given=given,
                expected=expected,
                hint="fix what the failures have in common; with a checkpoint, pass retry_failed=True to retry them",
            )


def _box(policy: DeadLetter) -> Any:
    from curator_core.deadletter.writer import LetterBox  # noqa: PLC0415 - for runs that keep failures

    return LetterBox(policy)
