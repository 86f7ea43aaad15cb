# SPDX-License-Identifier: Apache-2.0
"""An attempt at one input whose outputs are passed on as they are made."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any

from curator_core._adapter.attempt import Attempt
from curator_core._adapter.retry import wait_before_retry
from curator_core._calls.returned import AT_REST, read_out
from curator_core._guard.user_code import check_failure, leave_fork, this_process
from curator_core._transport.sizes import bytes_of
from curator_core.errors import StageError
from curator_core.logs import this_thread

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Sequence

    from curator_core._adapter.input_copies import InputCopies
    from curator_core._adapter.worker_state import WorkerState
    from curator_core._performance import PerfRow

__all__ = ["WITHDRAWN", "RetryingStream", "StreamedAttempt"]


WITHDRAWN = object()
"""Follows the outputs of a failed attempt if they do not count."""

_END = object()


class StreamedAttempt(Attempt):
    """One attempt at one input; if the stage returns a generator, its outputs are read one by one.

    Args:
        state: The worker.
        task: The input.
        number: Number of the attempt, from 1.
        copies: The input as the stage first received it; None if it cannot be restored, so that this attempt is the
            last.

    Attributes:
        generator: The generator that the stage returned in `execute`, if `stream` still has to read it.
        has_ended: Whether the attempt has an outcome after `stream`. An interrupted attempt has none.
    """

    generator: Iterator[Any] | None = None
    has_ended = False

    def __init__(self, state: WorkerState, task: Any, number: int = 1, *, copies: InputCopies | None = None) -> None:
        last = copies is None or number >= state.compiled.max_attempts
        tasks = [task] if copies is None else copies.restore()
        super().__init__(state, tasks, number, last=last, copies=copies)
        self._withdraws = state.withdraws

    def read(self) -> Generator[Any, None, None]:
        """Yield the outputs of a generator after `execute`, then report the attempt.

        Raises:
            StageError: See `run`.
        """
        try:
            yield from self.stream()
        finally:
            if self.has_ended:
                self.state.sink(self.close())
        self._raise_error()

    def stream(self) -> Generator[Any, None, None]:
        """Yield the outputs one by one, and `WITHDRAWN` after them if a failure means that they do not count.

        Only time in the stage counts, not time spent on processing the outputs.
        """
        self._pid = this_process.pid
        count, made = 0, None
        perf: tuple[PerfRow, ...] = ()
        post = this_thread.post
        before, post.caller = post.caller, self
        self._start_clock()
        self._metrics = {}  # the tasks' history refers to it, and sees later values
        try:
            made = iter(self._begin())
            while (output := self._next(made)) is not _END:
                self._add_clock()
                perf = perf or (*self._states[0][1], self._perf_row())
                self._adopt(self.tasks[0], self._states[0], (output,), perf, first=count)
                self._recorder.copy_into(self._metrics)  # for outputs that are sent before the end
                self._out_bytes += bytes_of((output,))
                count += 1
                post.caller = before
                try:
                    yield output
                except StageError:  # from a later stage: the outputs so far count, and no more are made
                    self.has_ended = True
                    return
                except GeneratorExit:  # the run is interrupted
                    return
                finally:  # time in later stages is not this stage's time, even if they failed
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
        if count and self.error is not None and self._withdraws:
            yield WITHDRAWN

    def _end_with(self, exc: BaseException) -> None:
        self.has_ended = True
        self._fail(exc)

    def _count(self, made: int) -> None:
        """Set the outcome of the input, unless it failed and `_fail` has set it."""
        if self.error is None:
            self._outcomes = {0: ("out" if made else "filtered", made)}
        elif not self._withdraws:
            self._outcomes = {0: ("failed", made)}

    def _begin(self) -> Iterable[Any]:
        return self.generator or ()

    def _next(self, made: Iterator[Any]) -> Any:
        """Return the next output in the process that called the stage; a fork of it ends here."""
        output = next(made, _END)
        if self._pid != this_process.pid:
            leave_fork()
        return output

    def _close_generator(self, made: Iterator[Any] | None) -> None:
        """Let a generator clean up now, not when it is garbage-collected."""
        try:
            getattr(made, "close", int)()
            if self._pid != this_process.pid:
                leave_fork()
        except BaseException as exc:  # noqa: BLE001 - as in `execute`
            check_failure(exc, self._pid)
            if self.error is None:
                self._end_with(exc)

    # --- without a generator, everything is as for any batch ----------------------------------------------

    def _call_with(self, tasks: Sequence[Any], entries: list[Any]) -> None:
        if not tasks:  # the stage must not see it
            return
        entry = self.state.processing_stage.process(tasks[0])
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
            self.state.clock.idle_since = time.perf_counter_ns()
            return []
        return super()._settle(entries)


class RetryingStream:
    """One input, tried ``max_attempts`` times for exceptions of ``retry_on``; outputs are passed on as they are made.

    Args:
        state: The worker.
        attempt: The first attempt, after `execute`.
    """

    def __init__(self, state: WorkerState, attempt: StreamedAttempt) -> None:
        self._state = state
        self._attempt = attempt

    def run(self, ahead: int) -> list[Any] | Generator[Any, None, None]:
        """Return the outputs: a list if there are few of them, otherwise one by one.

        `WITHDRAWN` follows the outputs of a failed attempt.

        Args:
            ahead: How many outputs are made before the first one is passed on.

        Raises:
            StageError: The stage raised for good, and failures end the run; also raised while outputs are read.
        """
        made = self._made()
        first: list[Any] = []
        for output in made:
            if output is WITHDRAWN:
                first.clear()
                continue
            first.append(output)
            if len(first) > ahead:
                return _go_on(first, made)
        return first

    def _made(self) -> Generator[Any, None, None]:
        state, attempt, outputs = self._state, self._attempt, list[Any]()
        while True:
            if attempt.generator is not None:
                yield from attempt.read()
            else:
                attempt.report()
                yield from outputs
            if not attempt.comes_again:
                return
            wait_before_retry(state, attempt.number)
            attempt = StreamedAttempt(state, None, attempt.number + 1, copies=attempt.copies)
            outputs = attempt.execute()


def _go_on(first: list[Any], following: Generator[Any, None, None]) -> Generator[Any, None, None]:
    with closing(following):
        first.reverse()
        while first:
            try:
                yield first.pop()
            except StageError as exc:
                with suppress(StopIteration):
                    following.throw(exc)  # only the attempt knows the outcome of its input
                return
        yield from following
