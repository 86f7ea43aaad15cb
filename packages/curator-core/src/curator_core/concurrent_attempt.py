# SPDX-License-Identifier: Apache-2.0
"""One attempt at one batch of an asynchronous stage: several calls are under way at once, and each fails by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from curator_core.async_calls import call_all
from curator_core.attempt import Attempt
from curator_core.checks import check_count
from curator_core.errors import ContractError
from curator_core.failure import error_info, is_of
from curator_core.lineage import batch_id_of
from curator_core.logs import StageWork, this_thread
from curator_core.measure import measure
from curator_core.report import BatchReport, InputOutcome, Outcomes
from curator_core.returned import Failed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from curator_core.adapter import BaseStageAdapter
    from curator_core.report import OutcomeKind
    from curator_core.snapshot import Snapshot

__all__ = ["ConcurrentAttempt"]


class ConcurrentAttempt(Attempt):
    """One attempt at one batch, whose calls have one task each, or ``call_size`` of them for ``process_batch``.

    Args:
        adapter: Whose stage is called.
        tasks: The inputs.
        number: From 1.
        last: Whether this attempt decides what becomes of the inputs, unless those of a call can be parted.
        snapshot: The inputs as they first came; None where they cannot be had again.
        call_size: How many tasks a call has.

    Attributes:
        again: Why the stage is to see some inputs again, by their positions; they are in none of the outputs.
    """

    def __init__(
        self,
        adapter: BaseStageAdapter,
        tasks: Sequence[Any],
        number: int,
        *,
        last: bool,
        snapshot: Snapshot | None,
        call_size: int,
    ) -> None:
        super().__init__(adapter, tasks, number, last=last, snapshot=snapshot)
        self._call_size = call_size
        self._isolates = adapter.context.on_error == "skip" or not last
        self.again: dict[int, BaseException] = {}

    def by_input(self, outputs: list[Any]) -> list[list[Any]]:
        """What was made of each input, from the outputs of `execute`."""
        following = iter(outputs)
        return [[next(following) for _ in range(outcome.count)] for outcome in self._all_outcomes()]

    def goes_alone(self, number: int) -> bool:
        """Whether an input that is to be seen again shall have a call of its own then."""
        return self._can_be_parted and (self.last or not is_of(self.again[number], self.view.retry_on))

    def reports(self) -> Iterator[BatchReport]:
        """End the attempt: a report of the inputs that are done with, and one of those that come again."""
        report = super().close()
        if not self.again:
            yield report
            return
        outcomes = self._all_outcomes()
        settled = [number for number in range(len(outcomes)) if number not in self.again]
        if settled:
            places = {number: place for place, number in enumerate(settled)}
            yield report._replace(
                inputs=Outcomes.of(outcomes[number] for number in settled),
                num_items=measure([self.tasks[number] for number in settled])[0],
                fallen=tuple(each._replace(number=places[each.number]) for each in report.fallen),
            )
            # Their time is in the report above, which is of the same calls.
            report = report._replace(
                sequence=self.adapter.sequence,
                duration_ns=0,
                cpu_ns=0,
                idle_ns=0,
                startup_ns=0,
                metrics={},
                out_bytes=0,
            )
            self.adapter.sequence += 1
        yield self._report_of_retried(report)

    def _report_of_retried(self, report: BatchReport) -> BatchReport:
        number, error = next(iter(self.again.items()))
        ids = [self._ids[number] for number in self.again]
        return report._replace(
            batch_id=batch_id_of(self.view.index, ids),
            inputs=Outcomes.of(InputOutcome(task_id, "retried", 0) for task_id in ids),
            error=error_info(error, f"on task '{self._ids[number]}'"),
            fallen=(),
            manifests=(),
        )

    # --- calling the stage ------------------------------------------------------------------------------

    def _call_with(self, tasks: Sequence[Any], entries: list[Any]) -> None:
        size = self._call_size if self.view.batched else 1
        calls = [tasks[start : start + size] for start in range(0, len(tasks), size)]
        made = [self._entries_of(*pair) for pair in zip(calls, self._call_all(calls), strict=True)]
        for call, given in zip(calls, made, strict=True):
            if isinstance(given[0], Failed) and not self._isolates:
                self._at = self._ids.index(call[0].task_id) if len(call) == 1 else None
                raise given[0].error
            entries += given

    def _entries_of(self, call: Sequence[Any], made: Any) -> Sequence[Any]:
        """An entry for each input of a call."""
        if self.view.batched and not isinstance(made, Failed):
            try:
                check_count(made, len(call), self.view)
            except ContractError as exc:
                made = Failed(exc)
            else:
                entries: Sequence[Any] = made
                return entries
        return [made] * len(call)

    def _call_all(self, calls: Sequence[Sequence[Any]]) -> list[Any]:
        """What each call gave, or a `Failed`."""
        adapter, view = self.adapter, self.view
        arguments = [list(call) for call in calls] if view.batched else [call[0] for call in calls]
        works = [self._work_on(call) for call in calls]
        stops = not self._isolates
        stage = adapter.processing_stage
        if hasattr(stage, "call_all"):  # in a process of its own
            made: list[Any] = stage.call_all(arguments, works, stops_at_failure=stops)
            return made
        method = stage.process_batch if view.batched else stage.process
        calling = call_all(method, arguments, works, view.concurrency, view.timeout_s, stops_at_failure=stops)
        made, cpu_ns = adapter.loop.run(calling)
        this_thread.post.elsewhere_ns += cpu_ns
        return made

    def _work_on(self, call: Sequence[Any]) -> StageWork:
        adapter = self.adapter
        task_id = call[0].task_id if len(call) == 1 else ""
        return StageWork(adapter.context.run_id, self.view.name, task_id, self._batch_id, adapter.place.worker_id)

    # --- what failed ------------------------------------------------------------------------------------

    @property
    def _can_be_parted(self) -> bool:
        return self.view.batched and self._call_size > 1 and self.adapter.parts_batches

    def _lose(self, number: int, error: BaseException) -> tuple[OutcomeKind, int]:
        if self.snapshot is not None:
            comes_again = not self.last and is_of(error, self.view.retry_on)
            if comes_again or self._can_be_parted:
                self.again[number] = error
                return ("retried", 0)
        return super()._lose(number, error)

    def _all_outcomes(self) -> Outcomes:
        return Outcomes(tuple(self._ids), self._outcomes)
