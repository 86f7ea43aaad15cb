# SPDX-License-Identifier: Apache-2.0
"""The base class of the kit: runs pipelines, and prevents overriding its tests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from curator_core._plan.plan import Plan
from curator_core.errors import RunError
from curator_core.testing.recorder import Recorder

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from curator_core._adapter.worker_state import OnError
    from curator_core._reports.observers import RunObserver
    from curator_core._run.executor import BaseExecutor
    from curator_core.results import RunResult
    from curator_core.tasks import Task

__all__ = ["ConformanceBase", "Seen"]


class Seen(NamedTuple):
    """A run and what was observed.

    Attributes:
        result: The result of the run; for a failed run, the result attached to its error.
        recorder: Everything that an observer received.
        error: The error that ended the run; None if it did not fail.
    """

    result: RunResult
    recorder: Recorder
    error: RunError | None = None

    def stage(self, name: str) -> Any:
        """Return the summary of a stage."""
        return next(summary for summary in self.result.stages if summary.name == name)

    def ids(self) -> list[str]:
        """Return the ids of the outputs, sorted."""
        return sorted(task.task_id for task in self.result)


class ConformanceBase:
    """The base class of all groups of tests.

    Attributes:
        ordered: Whether the executor returns outputs in the order of the inputs. Set it in the subclass.
    """

    ordered = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name, test in vars(cls).items():
            contract = next((base for base in cls.__mro__[1:] if name in vars(base)), None)
            if name.startswith("test_") and contract is not None and not _fails_for_a_reason(test):
                raise TypeError(
                    f"{cls.__name__}.{name} overrides a test of {contract.__name__}: an executor that cannot pass "
                    "a test can override it only with a test marked @pytest.mark.xfail(reason=…)"
                )

    @staticmethod
    def run(
        executor: BaseExecutor,
        stages: Sequence[Any],
        tasks: Iterable[Task[Any]] | None = None,
        *,
        observers: Sequence[RunObserver] = (),
        on_error: OnError = "raise",
    ) -> Seen:
        """Run stages to the end, or until they fail."""
        recorder = Recorder()
        plan = Plan.from_stages(stages, "conformance")
        error = None
        try:
            result: Any = executor.execute(plan, tasks, observers=[*observers, recorder], on_error=on_error)
        except RunError as exc:
            error, result = exc, exc.result
        assert result is not None, "a failed run has a result too: the work done so far"
        return Seen(result, recorder, error)

    @staticmethod
    def check_accounts(seen: Seen) -> None:
        """Check that every task is accounted for, in the summaries and in the reports that they are computed from."""
        before = None
        for summary in seen.result.stages:
            outcomes = (summary.tasks_passed, summary.tasks_filtered, summary.tasks_failed, summary.tasks_merged)
            assert summary.tasks_in == sum(outcomes)
            if before is not None:
                assert summary.tasks_in == before.tasks_out, f"tasks lost between '{before.name}' and '{summary.name}'"
            before = summary
            final = [report for report in seen.recorder.final() if report.stage_name == summary.name]
            kinds = [outcome.kind for report in final for outcome in report.inputs]
            assert summary.batches == len(final)
            assert summary.tasks_in == len(kinds)
            assert summary.tasks_passed == kinds.count("out")
            assert summary.tasks_filtered == kinds.count("filtered")
            assert summary.tasks_failed == kinds.count("failed")
            assert summary.tasks_merged == kinds.count("merged")
            assert summary.tasks_out == sum(report.num_out for report in final)
        assert before is not None
        assert before.tasks_out == len(seen.result)
        assert list(seen.result.lost) == []
        accounting = seen.result.accounting
        assert accounting.unfinished == ()
        assert accounting.restarts == 0


def _fails_for_a_reason(test: Any) -> bool:
    marks = getattr(test, "pytestmark", [])
    return any(mark.name == "xfail" and mark.kwargs.get("reason") for mark in marks)
