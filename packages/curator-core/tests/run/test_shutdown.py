# SPDX-License-Identifier: Apache-2.0
"""Signals of schedulers to this process during a run; `local/test_stops.py` tests whole scripts."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import pickle
import signal
import subprocess
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from tests.waiting import DEADLINE_S, NEVER_S, wait_until

from curator_core import Checkpoint, ConfigurationError, Pipeline, RunObserver, RunStopped, Task
from curator_core._guard.signals import handler_of, signals_blocked
from curator_core._run.shutdown import Shutdown
from curator_core.testing import Recorder
from curator_core.testing.probe import Calling

from ..helpers import tasks  # noqa: TID252 - no import can write this directory's name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

STOPS = (signal.SIGTERM, signal.SIGUSR1)


@pytest.fixture(autouse=True)
def _handlers_are_given_back() -> Iterator[None]:
    before = [signal.signal(number, signal.SIG_DFL) for number in STOPS]
    yield
    found = [signal.signal(number, handler) for number, handler in zip(STOPS, before, strict=True)]
    assert [getattr(handler, "before", handler) for handler in found] == [signal.SIG_DFL] * 2
    assert signal.set_wakeup_fd(-1) == -1
    assert "curator-signals" not in [thread.name for thread in threading.enumerate()]


class Logging(Calling):
    """Records its teardown."""

    def __init__(self, function: Callable[[Any], Any], log: list[str]) -> None:
        super().__init__(function, name="Logging")
        self.log = log

    def __deepcopy__(self, memo: Any) -> Logging:
        return self

    def teardown(self) -> None:
        self.log.append("torn down")


def send(number: int = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)


def at(data: Any, function: Callable[[], Any] = send) -> Any:
    """Return a stage that calls a function on a task."""

    def work(task: Task[Any]) -> Task[Any]:
        if task.data == data:
            function()
        return task

    return Calling(work, name="Work")


def stopped_by(pipeline: Pipeline, **options: Any) -> RunStopped:
    with pytest.raises(RunStopped) as raised:
        pipeline.run(initial_tasks=tasks(1, 2, 3), **options)
    return raised.value


@pytest.mark.parametrize(
    ("number", "state", "code"), [(signal.SIGTERM, "terminated", 143), (signal.SIGUSR1, "preempted", 138)]
)
def test_a_signal_ends_the_run_with_its_result(
    number: int, state: str, code: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = Recorder()
    pipeline = Pipeline("p", [at(2, lambda: send(number))])
    stopped = stopped_by(pipeline, observers=[recorder], checkpoint=tmp_path, on_error="skip")
    assert (stopped.code, stopped.signal, stopped.state) == (code, number, state)
    assert stopped.result is not None
    assert (stopped.result.state, stopped.result.complete) == (state, False)
    assert [task.data for task in stopped.result] == [1]
    assert [(result.state, type(error)) for result, error in recorder.ends] == [(state, RunStopped)]
    assert "1 tasks out" in caplog.text
    assert f"ended early: {state}" in caplog.text
    again = Pipeline("p", [at(0)]).run(
        initial_tasks=tasks(1, 2, 3), checkpoint=Checkpoint(tmp_path, accept_changes=True)
    )
    assert [task.data for task in again] == [2, 3]
    assert again.state == "complete"
    assert pickle.loads(pickle.dumps(stopped)).code == code


def swallow() -> None:
    try:
        send()
        time.sleep(DEADLINE_S)
    except:  # noqa: E722, S110 - as in user code
        pass


def fail_of_it() -> None:
    try:
        send()
        time.sleep(DEADLINE_S)
    except BaseException as exc:
        raise RuntimeError("the decoder was interrupted") from exc


def run_inside() -> None:
    Pipeline("inner", [at(1)]).run(initial_tasks=tasks(1))


def in_asyncio() -> None:
    async def work() -> None:
        send()
        await asyncio.sleep(DEADLINE_S)

    asyncio.run(work())


class Finalized:
    def __del__(self) -> None:
        send()


def finalize() -> None:
    Finalized()
    end = time.monotonic() + DEADLINE_S
    while time.monotonic() < end:  # raised again between two of these steps
        pass


@pytest.mark.parametrize("work", [swallow, fail_of_it, run_inside, in_asyncio, finalize])
def test_a_signal_ends_the_run_even_if_a_stage_swallows_it(work: Callable[[], Any], tmp_path: Path) -> None:
    stopped = stopped_by(Pipeline("p", [at(2, work)]), checkpoint=tmp_path, on_error="skip", shutdown_grace_s=NEVER_S)
    assert stopped.result is not None
    assert stopped.result.state == "terminated"
    again = Pipeline("p", [at(0)]).run(
        initial_tasks=tasks(1, 2, 3), checkpoint=Checkpoint(tmp_path, accept_changes=True)
    )
    assert 3 in [task.data for task in again]
    assert (2 in [task.data for task in again]) == (work is not swallow)  # which returned an output


def test_later_signals_do_not_interrupt_the_teardown() -> None:
    log: list[str] = []

    class Slow(Logging):
        def teardown(self) -> None:
            for number in (*STOPS, signal.SIGTERM):
                send(number)
                time.sleep(0)
            super().teardown()

    stopped = stopped_by(Pipeline("p", [Slow(lambda task: send(), log)]))
    assert (stopped.code, log) == (143, ["torn down"])


def test_a_second_run_can_be_stopped_too() -> None:
    first = stopped_by(Pipeline("p", [at(2)]))
    send()  # nothing: it is a repeat, while no run is on
    second = stopped_by(Pipeline("p", [at(3, lambda: send(signal.SIGUSR1))]))
    assert (first.code, second.code) == (143, 138)
    assert second.result is not None
    assert [task.data for task in second.result] == [1, 2]


def test_an_undisturbed_run_restores_the_signal_handlers() -> None:
    Pipeline("p", [at(0)]).run(initial_tasks=tasks(1))
    assert [signal.getsignal(number) for number in STOPS] == [signal.SIG_DFL] * 2


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning")
def test_processes_started_after_a_stopped_run_react_to_signals() -> None:
    stopped_by(Pipeline("p", [at(2)]))
    forked = multiprocessing.get_context("fork").Process(target=time.sleep, args=(DEADLINE_S,))
    forked.start()
    forked.terminate()
    forked.join()
    program = subprocess.Popen(["sleep", str(DEADLINE_S)])  # noqa: S607 - as the path has it
    program.terminate()
    assert (forked.exitcode, program.wait()) == (-signal.SIGTERM, -signal.SIGTERM)


def test_a_signal_before_the_run_begins_does_not_wait_for_the_deadline() -> None:
    def made() -> Iterator[Task[int]]:
        try:
            yield Task(data=1)
            send()
        finally:
            wait_until(lambda: any(getattr(each, "function", None) is os._exit for each in threading.enumerate()))

    with pytest.raises(RunStopped) as raised:
        Pipeline("p", [at(0)]).run(initial_tasks=made(), shutdown_grace_s=NEVER_S)
    assert raised.value.result is None


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_a_signal_in_a_generator_leaves_no_uncounted_outputs(on_error: str) -> None:
    def split(task: Task[int]) -> Iterator[Task[int]]:
        for number in range(5):
            if (task.data, number) == (2, 3):
                send()
            yield Task(data=number)

    stopped = stopped_by(Pipeline("p", [Calling(split)]), on_error=on_error)
    assert stopped.result is not None
    assert len(stopped.result) == stopped.result.stages[0].tasks_out == 5


def test_a_signal_at_the_very_end_keeps_the_result() -> None:
    class Late(RunObserver):
        def on_run_end(self, result: Any, error: BaseException | None) -> None:
            send()

    stopped = stopped_by(Pipeline("p", [at(0)]), observers=[Late()])
    assert stopped.result is not None
    assert (stopped.result.state, len(stopped.result)) == ("complete", 3)


def test_a_signal_during_bookkeeping_is_raised_afterward() -> None:
    class Early(RunObserver):
        seen = 0

        def on_batch(self, report: Any) -> None:
            send()
            self.seen += 1

    early = Early()
    stopped = stopped_by(Pipeline("p", [at(0)]), observers=[early])
    assert stopped.result is not None
    assert stopped.result.stages[0].tasks_passed == early.seen


def test_a_signal_handler_of_the_user_is_kept() -> None:
    came: list[int] = []
    for number in STOPS:
        signal.signal(number, lambda number, frame: came.append(number))
    try:
        result = Pipeline("p", [at(2, lambda: [send(number) for number in STOPS])]).run(initial_tasks=tasks(1, 2, 3))
    finally:
        found = [signal.signal(number, signal.SIG_DFL) for number in STOPS]
    assert (len(result), sorted(came)) == (3, sorted(STOPS))
    assert signal.SIG_DFL not in found


def test_only_the_main_thread_handles_signals() -> None:
    found: list[Any] = []
    pipeline = Pipeline("p", [at(1, lambda: found.extend(map(signal.getsignal, STOPS)))])
    elsewhere = threading.Thread(target=lambda: found.append(len(pipeline.run(initial_tasks=tasks(1)))))
    elsewhere.start()
    elsewhere.join()
    assert found == [signal.SIG_DFL, signal.SIG_DFL, 1]


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning")
def test_a_signal_to_a_forked_process_ends_only_that_process() -> None:
    codes: list[int | None] = []

    def fork() -> None:
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(DEADLINE_S,))
        child.start()
        child.terminate()
        child.join()
        codes.append(child.exitcode)

    assert len(Pipeline("p", [at(1, fork)]).run(initial_tasks=tasks(1))) == 1
    assert codes == [-signal.SIGTERM]


@pytest.mark.parametrize("grace", [0, -1, float("inf"), float("nan"), "10", True, None])
def test_an_invalid_shutdown_grace_is_rejected(grace: Any) -> None:
    with pytest.raises(ConfigurationError, match="invalid grace period"):
        Pipeline("p", [at(0)]).run(initial_tasks=tasks(1), shutdown_grace_s=grace)


def test_a_signal_at_the_end_of_the_watch_is_handled() -> None:
    shutdown = Shutdown()
    before = signal.signal(signal.SIGUSR2, lambda number, frame: None)
    try:
        with shutdown.armed(lambda stopped: None):
            (watch,) = [thread for thread in threading.enumerate() if thread.name == "curator-signals"]
            shutdown._over.set()
            send(signal.SIGUSR2)  # wakes the thread, which finds that the run is over, and ends
            watch.join(DEADLINE_S)
            assert not watch.is_alive()
    finally:
        signal.signal(signal.SIGUSR2, before)


@pytest.mark.parametrize("number", [signal.SIGINT, *STOPS])
def test_blocked_signal_that_another_thread_receives_is_handled_after_the_block(number):
    """The kernel gives a signal that the main thread blocks to a thread that does not."""
    came: list[Any] = []
    reads, writes = os.pipe()
    os.set_blocking(writes, False)
    over = threading.Event()
    other = threading.Thread(target=over.wait)  # it blocks no signal
    other.start()
    before, wakeup_before = signal.signal(number, lambda signum, _: came.append(signum)), signal.set_wakeup_fd(writes)
    ours = signal.getsignal(number)
    try:
        with signals_blocked(), signals_blocked():
            os.kill(os.getpid(), number)
            assert os.read(reads, 1) == bytes([number])  # the C half of the handler has run
            assert handler_of(number) is ours
            assert came == []
        assert came == [number]
        assert signal.getsignal(number) is ours
    finally:
        signal.set_wakeup_fd(wakeup_before)
        signal.signal(number, before)
        over.set()
        other.join()
        os.close(reads)
        os.close(writes)
