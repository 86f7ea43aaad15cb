# SPDX-License-Identifier: Apache-2.0
"""The time that a worker has to end: for a batch in progress, and for `teardown()`. Without Ray, without waiting."""

from __future__ import annotations

import asyncio
import importlib
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from cosmos_xenna.pipelines import v1 as pipelines_v1
from tests.waiting import DEADLINE_S

from curator_core import Plan, ProcessingStage, StageError, Task
from curator_core.backends import RunContext
from curator_xenna import XennaStageAdapter
from curator_xenna._convert.resources import Share
from curator_xenna._session import coordinator
from curator_xenna._session.coordinator import Coordinator, Delivery, Work
from curator_xenna._session.group_adapter import GroupAdapter, Role, create_group_adapter
from curator_xenna.compat import HAS_DESTROY

FINISH_S, TEARDOWN_S = 10.0, 45.0  # as in the guide


class Slow(ProcessingStage[Task[int], Task[int]]):
    """Works until a test lets it finish."""

    def __init__(self) -> None:
        self.torn_down = False

    def setup(self, worker_metadata: Any) -> None:
        self.is_at_work, self.goes_on = threading.Event(), threading.Event()

    def process(self, task: Task[int]) -> Task[int]:
        self.is_at_work.set()
        assert self.goes_on.wait(DEADLINE_S)
        return task

    def teardown(self) -> None:
        self.torn_down = True


@pytest.fixture
def adapter() -> XennaStageAdapter:
    """The adapter of a worker."""
    adapter = XennaStageAdapter(Slow())
    adapter.setup(pipelines_v1.WorkerMetadata.make_dummy())
    return adapter


@pytest.fixture
def batch(adapter: XennaStageAdapter) -> Iterator[threading.Thread]:
    """A batch in progress."""
    batch = threading.Thread(target=adapter.process_data, args=[[Task(data=1)]])
    batch.start()
    assert adapter.processing_stage.is_at_work.wait(DEADLINE_S)
    yield batch
    adapter.processing_stage.goes_on.set()
    batch.join(DEADLINE_S)


class Lock:
    """A lock that is released when a thread waits for it, or never.

    Args:
        lock: The lock.
        ends: Ends the work that holds it; None if nothing does.
    """

    def __init__(self, lock: Any, ends: Any = None) -> None:
        self.lock, self.ends = lock, ends
        self.waits: list[float] = []

    def acquire(self, timeout: float) -> bool:
        self.waits.append(timeout)
        if self.ends is None:
            return False
        self.ends()
        return bool(self.lock.acquire(timeout=DEADLINE_S))

    def release(self) -> None:
        self.lock.release()


def test_a_batch_in_progress_is_finished_before_teardown(adapter: XennaStageAdapter, batch: threading.Thread) -> None:
    busy = Lock(adapter._lifetime._busy, ends=adapter.processing_stage.goes_on.set)
    adapter._lifetime._busy = busy  # type: ignore[assignment]
    adapter.destroy()
    assert busy.waits == [FINISH_S]
    assert adapter.processing_stage.torn_down


def test_a_batch_that_does_not_finish_skips_the_teardown(
    adapter: XennaStageAdapter, batch: threading.Thread, caplog: pytest.LogCaptureFixture
) -> None:
    busy = Lock(adapter._lifetime._busy)
    adapter._lifetime._busy = busy  # type: ignore[assignment]
    adapter.destroy()
    assert busy.waits == [FINISH_S]
    assert not adapter.processing_stage.torn_down
    assert caplog.messages == ["stage 'Slow' is still running and was not torn down"]


class Link:
    """Collects the reports of a worker, and keeps those that were sent as pairs of stage and event."""

    def __init__(self) -> None:
        self.waiting: list[Any] = []
        self.sent: list[tuple[str, str]] = []

    def enter(self, worker_id: str, node_id: str) -> None:
        pass

    def collect(self, report: Any) -> None:
        self.waiting.append((report.stage_name, report.event))

    def send(self, outputs: Any, *, is_primary: bool) -> None:
        self.sent += self.waiting
        self.waiting.clear()

    def tear_down_when_told(self, tear_down: Any) -> None:
        pass


class Fails(ProcessingStage[Task[int], Task[int]]):
    def setup(self, worker_metadata: Any) -> None:
        raise SystemExit

    def process(self, task: Task[int]) -> Task[int]:
        return task


def group_of(*stages: ProcessingStage[Any, Any]) -> tuple[GroupAdapter, Link]:
    link, plan = Link(), Plan.from_stages(stages, fed=True)
    role = Role(RunContext(), link, Share(1, 0), batch_size=1, bundles=None, is_last=True)  # type: ignore[arg-type]
    return create_group_adapter(plan.groups[0], role), link


def test_a_group_is_torn_down_once_from_the_last_stage_to_the_first() -> None:
    group, link = group_of(Slow().with_(name="a"), Slow().with_(name="b"))
    group.setup(pipelines_v1.WorkerMetadata.make_dummy())
    group.destroy()
    group.destroy()
    assert link.sent == [("a", "ready"), ("b", "ready"), ("b", "ended"), ("a", "ended")]


def test_if_setup_of_a_stage_fails_the_stages_before_it_are_torn_down_once() -> None:
    group, link = group_of(Slow().with_(name="a"), Fails(), Slow().with_(name="c"))
    with pytest.raises(StageError, match="'Fails'"):
        group.setup(pipelines_v1.WorkerMetadata.make_dummy())
    group.destroy()  # as Xenna does even then
    assert link.sent == [("a", "ready"), ("Fails", "setup_failed"), ("a", "ended")]


def test_the_wait_for_a_teardown_is_limited(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Before 0.4, Xenna tears nothing down: the last delivery of a group returns when all its workers have done so."""
    wait, waits = asyncio.wait, []

    async def at_once(awaited: Any, *, timeout: float) -> Any:
        waits.append(timeout)
        return await wait(awaited, timeout=0)

    async def run() -> None:
        ours = Coordinator(1, fed=1)
        told = [asyncio.ensure_future(ours.group_ended(worker, 0)) for worker in ("quick", "slow")]
        await asyncio.sleep(0)
        await ours.torn_down("quick")
        last = Delivery("quick", "node", 0, "unit", Work(done=1), b"", None, None, is_primary=True, sent_unix_ns=0)
        await ours.deliver(last)
        await asyncio.gather(*told)  # both were told to

    monkeypatch.setattr(coordinator.asyncio, "wait", at_once)
    asyncio.run(run())
    assert waits == [TEARDOWN_S]
    assert caplog.messages == ["1 workers did not tear down within 45 s"]


@pytest.mark.skipif(not HAS_DESTROY, reason="before 0.4 Xenna tears nothing down")
def test_the_limits_match_those_of_xenna() -> None:
    pool = importlib.import_module("cosmos_xenna.ray_utils.actor_pool")
    assert pool._USER_STAGE_DESTROY_BUDGET_S == TEARDOWN_S
