# SPDX-License-Identifier: Apache-2.0
"""A source's one batch: its outputs are handed on as they are made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from curator_core.attempt import Attempt
from curator_core.guard import check_failure, leave_fork, this_process
from curator_core.logs import this_thread
from curator_core.returned import as_iterable

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator

    from curator_core.adapter import BaseStageAdapter
    from curator_core.history import PerfRow
    from curator_core.report import OutcomeKind

__all__ = ["SourceAttempt"]

_END = object()


class SourceAttempt(Attempt):
    """One attempt at a source, whose one input is handed to it and whose outputs are read one by one.

    Args:
        adapter: Whose stage is called.
        task: The input.
    """

    def __init__(self, adapter: BaseStageAdapter, task: Any) -> None:
        super().__init__(adapter, [task], number=1, last=True)

    def stream(self) -> Generator[Any, None, None]:
        """As `execute`, for a source: outputs are handed on one by one, and only its own time is counted."""
        count, made = 0, None
        self._pid = this_process.pid
        perf: tuple[PerfRow, ...] = ()
        post = this_thread.post
        before, post.caller = post.caller, self
        self._start_clock()
        self._metrics = {}  # the tasks' history holds on to it, and sees what is filled in at the end
        try:
            made = iter(self._begin())
            while (output := self._next(made)) is not _END:
                self._add_clock()
                perf = perf or (*self._states[0][1], self._perf_row())
                self._adopt(self.tasks[0], self._states[0], (output,), perf)
                count += 1
                post.caller = before
                try:
                    yield output
                finally:  # what was done with it further down is not the source's time, also where that failed
                    post = this_thread.post
                    before, post.caller = post.caller, self
                    self._start_clock()
        except BaseException as exc:  # noqa: BLE001 - as in `execute`
            check_failure(exc, self._pid)
            self._blame(exc)
        finally:  # also where nobody listens any longer, because a later stage failed
            self._close_source(made)
            post.caller = before
            self._add_clock()
            self._metrics.update(self._recorder.take())
            kind: OutcomeKind = "failed" if self.error else "out" if count else "filtered"
            self._outcomes = {0: (kind, count)}

    def _begin(self) -> Iterable[Any]:
        adapter = self.adapter
        returned = adapter.processing_stage.process(self.tasks[0])
        if not self.view.concurrency:
            return as_iterable(returned)
        from curator_core.async_calls import AsyncOutputs  # noqa: PLC0415 - asyncio, which few sources need

        return AsyncOutputs(returned, adapter.loop, self.current_work())

    def _next(self, made: Iterator[Any]) -> Any:
        """The next output, for the process that the source was called in; a fork of it ends here."""
        output = next(made, _END)
        if self._pid != this_process.pid:
            leave_fork()
        return output

    def _close_source(self, made: Iterator[Any] | None) -> None:
        """Let a generator clean up now, and not when it happens to be collected."""
        try:
            getattr(made, "close", int)()
        except BaseException as exc:  # noqa: BLE001 - as in `execute`
            check_failure(exc, self._pid)
            if self.error is None:
                self._blame(exc)
