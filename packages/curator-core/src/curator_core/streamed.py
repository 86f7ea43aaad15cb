# SPDX-License-Identifier: Apache-2.0
"""An attempt at one input whose outputs are handed on as they are made."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from curator_core.attempt import Attempt
from curator_core.errors import StageError
from curator_core.guard import check_failure, leave_fork, this_process
from curator_core.logs import this_thread
from curator_core.measure import bytes_of
from curator_core.returned import AT_REST, read_out

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Sequence

    from curator_core.adapter import BaseStageAdapter
    from curator_core.history import PerfRow
    from curator_core.snapshot import Snapshot

__all__ = ["TAKEN_BACK", "StreamedAttempt"]

TAKEN_BACK = object()
"""Follows the outputs of an attempt that failed, where they do not count."""

_END = object()


class StreamedAttempt(Attempt):
    """One attempt at one input; where the stage returns a generator, its outputs are read one by one.

    Args:
        adapter: Whose stage is called.
        task: The input.
        number: From 1.
        snapshot: The input as it first came; None where it cannot be restored, and this attempt is the last.

    Attributes:
        generator: What the stage returned after `execute`, where that is still to be read by `stream`.
        has_ended: Whether it came to an outcome after `stream`. One that is interrupted has none.
    """

    generator: Iterator[Any] | None = None
    has_ended = False

    def __init__(
        self, adapter: BaseStageAdapter, task: Any, number: int = 1, *, snapshot: Snapshot | None = None
    ) -> None:
        last = snapshot is None or number >= adapter.view.max_attempts
        tasks = [task] if snapshot is None else snapshot.restore()
        super().__init__(adapter, tasks, number, last=last, snapshot=snapshot)
        self._takes_back = adapter.takes_back

    def stream(self) -> Generator[Any, None, None]:
        """Hand on the outputs one by one, and `TAKEN_BACK` after them where a failure takes them along.

        Only the stage's own time is counted, and none that is spent on the outputs.
        """
        self._pid = this_process.pid
        count, made = 0, None
        perf: tuple[PerfRow, ...] = ()
        post = this_thread.post
        before, post.caller = post.caller, self
        self._start_clock()
        self._metrics = {}  # the tasks' history holds on to it, and sees what is filled in
        try:
            made = iter(self._begin())
            while (output := self._next(made)) is not _END:
                self._add_clock()
                perf = perf or (*self._states[0][1], self._perf_row())
                self._adopt(self.tasks[0], self._states[0], (output,), perf, first=count)
                self._recorder.copy_into(self._metrics)  # for outputs that leave before the end
                self._out_bytes += bytes_of((output,))
                count += 1
                post.caller = before
                try:
                    yield output
                except StageError:  # of a later stage: what was made counts, and the rest is not made
                    self.has_ended = True
                    return
                except GeneratorExit:  # the run is interrupted
                    return
                finally:  # what was done with it further down is not this stage's time, also where that failed
                    post = this_thread.post
                    before, post.caller = post.caller, self
                    self._start_clock()
            self.has_ended = True
        except BaseException as exc:  # noqa: BLE001 - as in `execute`
            check_failure(exc, self._pid)
            self._end_with(exc)
        finally:
            self._close_generator(made)
            post.caller = before
            self._add_clock()
            self._metrics.update(self._recorder.take())
            self._count(count)
        if count and self.error is not None and self._takes_back:
            yield TAKEN_BACK

    def _end_with(self, exc: BaseException) -> None:
        self.has_ended = True
        self._fail(exc)

    def _count(self, made: int) -> None:
        """Say what became of the input, unless it failed and `_fail` has said so."""
        if self.error is None:
            self._outcomes = {0: ("out" if made else "filtered", made)}
        elif not self._takes_back:
            self._outcomes = {0: ("failed", made)}

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
            if self._pid != this_process.pid:
                leave_fork()
        except BaseException as exc:  # noqa: BLE001 - as in `execute`
            check_failure(exc, self._pid)
            if self.error is None:
                self._end_with(exc)

    # --- where it is no generator, everything is as for any batch -----------------------------------------

    def _call_with(self, tasks: Sequence[Any], entries: list[Any]) -> None:
        if not tasks:  # the stage must not see it
            return
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
