# SPDX-License-Identifier: Apache-2.0
"""An attempt at one input whose outputs are handed on as they are made."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from curator_core.attempt import Attempt
from curator_core.guard import check_failure, leave_fork, this_process
from curator_core.logs import this_thread
from curator_core.measure import bytes_of
from curator_core.returned import AT_REST, read_out

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Sequence

    from curator_core.adapter import BaseStageAdapter
    from curator_core.history import PerfRow
    from curator_core.report import OutcomeKind

__all__ = ["StreamedAttempt"]

_END = object()


class StreamedAttempt(Attempt):
    """One attempt at one input; where the stage returns a generator, its outputs are read one by one.

    Args:
        adapter: Whose stage is called.
        task: The input.

    Attributes:
        generator: What the stage returned after `execute`, where that is still to be read by `stream`.
    """

    generator: Iterator[Any] | None = None

    def __init__(self, adapter: BaseStageAdapter, task: Any) -> None:
        super().__init__(adapter, [task], 1, last=True)

    def stream(self) -> Generator[Any, None, None]:
        """Hand on the outputs one by one. Only the stage's own time is counted, and none that is spent on them."""
        self._pid = this_process.pid
        count, made = 0, None
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
                self._adopt(self.tasks[0], self._states[0], (output,), perf, first=count)
                self._out_bytes += bytes_of((output,))
                count += 1
                post.caller = before
                try:
                    yield output
                finally:  # what was done with it further down is not this stage's time, also where that failed
                    post = this_thread.post
                    before, post.caller = post.caller, self
                    self._start_clock()
        except BaseException as exc:  # noqa: BLE001 - as in `execute`
            check_failure(exc, self._pid)
            self._blame(exc)
        finally:  # also where nobody listens any longer, because a later stage failed
            self._close_generator(made)
            post.caller = before
            self._add_clock()
            self._metrics.update(self._recorder.take())
            kind: OutcomeKind = "failed" if self.error else "out" if count else "filtered"
            self._outcomes = {0: (kind, count)}

    def _begin(self) -> Iterable[Any]:
        return self.generator or ()

    def _next(self, made: Iterator[Any]) -> Any:
        """The next output, for the process that the stage was called in; a fork of it ends here."""
        output = next(made, _END)
        if self._pid != this_process.pid:
            leave_fork()
        return output

    def _close_generator(self, made: Iterator[Any] | None) -> None:
        """Let a generator clean up now, and not when it happens to be collected."""
        try:
            getattr(made, "close", int)()
        except BaseException as exc:  # noqa: BLE001 - as in `execute`
            check_failure(exc, self._pid)
            if self.error is None:
                self._blame(exc)

    # --- where it is no generator, everything is as for any batch -----------------------------------------

    def _call_with(self, tasks: Sequence[Any], entries: list[Any]) -> None:
        entry = self.adapter.processing_stage.process(tasks[0])
        if self._pid != this_process.pid:
            leave_fork()
        if entry.__class__ not in AT_REST:
            if isinstance(entry, Iterator):
                self.generator = entry
                return
            entry = read_out(entry)
        entries.append(entry)

    def _settle(self, entries: Sequence[Any]) -> list[Any]:
        if self.generator is not None:
            self.adapter.clock.idle_since = time.perf_counter_ns()
            return []
        return super()._settle(entries)
