# SPDX-License-Identifier: Apache-2.0
"""Transport between processes: data is intact, bundles have limits, and errors name their origin."""

from __future__ import annotations

import os
import threading
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curator_core import (
    ConfigurationError,
    ContractError,
    DataError,
    LocalExecutor,
    Pipeline,
    ProcessingStage,
    Task,
)
from curator_core._plan.plan import Plan
from curator_core.testing import Recorder

from ..helpers import tasks  # noqa: TID252 - no import can write this directory's name
from .stages import TWO, stage  # noqa: TID252 - no import can write this directory's name


def payloads() -> list[Any]:
    made: list[Any] = [b"small", bytes(range(256)) * 4096, bytearray(b"ab" * 300_000), bytearray(b"x")]
    try:
        import numpy as np
    except ImportError:
        return made
    frozen = np.arange(100_000)
    frozen.flags.writeable = False
    return [*made, np.arange(100_000), frozen, np.arange(12).reshape(3, 4).T, {"a": [np.ones(50_000)]}]


def plain(value: Any) -> Any:
    """Return the value in a form that can be compared."""
    if isinstance(value, dict):
        return {key: [plain(one) for one in each] for key, each in value.items()}
    return (value.tolist(), value.flags.writeable) if hasattr(value, "tolist") else value


def test_large_data_arrives_complete():
    given = payloads()
    same, split = stage(lambda task: task, name="same"), stage(lambda task: task, name="again", fusible=False)
    result = Pipeline("p", [same, split]).run(TWO, tasks(*given))
    for task, data in zip(result, given, strict=True):
        assert type(task.data) is type(data)
        assert plain(task.data) == plain(data)


@pytest.mark.parametrize(("task_s", "batch_size", "size"), [(9e-4, 1, 111), (9e-3, 4, 12), (0.04, 1, 2), (1.0, 1, 1)])
def test_a_bundle_has_a_tenth_of_a_second_of_work_in_whole_batches(task_s, batch_size, size):
    from curator_core._local.parcels import SharedFiles
    from curator_core._local.queues import GroupQueue, InFlight
    from curator_core._local.worker import Reply

    plan = Plan.from_stages([stage(lambda task: task).with_(batch_size=batch_size)], fed=True)
    processes: list[Any] = [None, None]
    queue = GroupQueue(plan.groups[0], processes, SharedFiles("/nowhere", "test"), bundle=True)
    for _ in range(10):  # bundles come back, and each says how long it took
        InFlight(queue, queue.size, 0.0).settle(Reply(b"", seconds=queue.size * task_s))
        queue._size = None  # as `take` does
    assert queue.size == size


def test_messages_are_complete_without_room_for_shared_files(tmp_path):
    from curator_core._local.parcels import SharedFiles

    for directory in (tmp_path, tmp_path / "missing"):
        given = tasks(*payloads())
        (parcel,) = SharedFiles(str(directory), "test").pack(given)
        assert list(tmp_path.iterdir()) == ([tmp_path / "test-1"] if directory == tmp_path else [])
        opened = parcel.open()
        assert [plain(task.data) for task in opened] == [plain(task.data) for task in given]
        assert list(tmp_path.iterdir()) == []


@given(
    st.lists(st.tuples(st.integers(1, 9), st.booleans()), min_size=1, max_size=8),
    st.lists(st.integers(1, 12), min_size=1),
    st.integers(1, 4),
)
def test_a_backlog_is_sent_in_full_batches_in_order(tmp_path_factory, adds, sizes, unit):
    from curator_core._local.parcels import Backlog, SharedFiles
    from curator_core._plan.bundles import BundlePlan

    files = SharedFiles("/nowhere", "test")
    backlog = Backlog(BundlePlan(batch_size=unit), files)
    added, taken = 0, []
    for count, packed in adds:
        new = tasks(*range(added, added + count))
        added += count
        if packed:
            backlog.add(*files.pack(new))
        else:
            for task in new:
                backlog.add_task(task)
    while backlog.count:
        size = sizes[len(taken) % len(sizes)]
        before = backlog.count
        bundle = [task.data for parcel in backlog.take(size) for task in parcel.open()]
        assert before - backlog.count == len(bundle) <= size
        assert len(bundle) % unit == 0 or len(bundle) < unit
        taken += bundle
    assert taken == list(range(added))
    assert backlog.nbytes == 0


@pytest.mark.parametrize(("fuse", "bundle"), [(True, False), (False, True)])
def test_fusion_and_bundles_do_not_change_the_outputs(fuse, bundle):
    seen = Recorder()
    stages = [stage(lambda task: Task(data=task.data + 1), name=name) for name in ("first", "second")]
    executor = LocalExecutor(workers=2, fuse=fuse, bundle=bundle)
    result = Pipeline("p", stages).run(executor, tasks(*range(40)), observers=[seen])
    assert [(task.task_id, task.data) for task in result] == [(str(number), number + 2) for number in range(40)]
    groups = {report.stage_name: report.group for report in seen.batches}
    assert (groups["first"] == groups["second"]) is fuse
    sent_with = Counter((report.stage_name, report.bundle_id) for report in seen.batches)
    assert (max(sent_with.values()) == 1) is not bundle


def test_bundles_keep_their_maximum_size():
    from curator_core._local.parcels import Backlog, SharedFiles
    from curator_core._plan.bundles import BundlePlan

    files = SharedFiles("/nowhere", "test", max_bytes=2500)
    for full, counts in ((False, [2, 2, 1]), (True, [4, 1])):
        backlog = Backlog(BundlePlan(batch_size=4, max_bytes=2500, full=full), files)
        for _ in range(5):
            backlog.add_task(Task(data=bytes(1000)))
        taken = []
        while backlog.count:
            taken.append(sum(parcel.count for parcel in backlog.take(4)))
        assert taken == counts


def test_bundles_of_tasks_of_unknown_size_are_split():
    from curator_core._local.parcels import SharedFiles

    for data in ([{"text": letter * 1000} for letter in "abcdefg"], [bytes([n]) * 1000 for n in range(7)]):
        parcels = SharedFiles("/nowhere", "test", max_bytes=2500).pack(tasks(*data))
        opened = [task.data for parcel in parcels for task in parcel.open()]
        assert opened == data
        assert len(parcels) >= 4
        assert all(parcel.nbytes <= 2500 for parcel in parcels)


def test_large_stages_can_be_sent():
    table = os.urandom(2_000_000)
    result = Pipeline("p", [stage(lambda task: Task(data=len(table)))]).run(TWO, tasks(1, 2))
    assert [task.data for task in result] == [2_000_000] * 2


def test_an_output_that_does_not_pickle_is_the_failure_of_its_batch():
    def lock(task):
        return Task(data=threading.Lock() if task.data == 1 else task.data)

    last = stage(lock, name="lock")
    with pytest.raises(ContractError, match="an output cannot be sent to another process") as raised:
        Pipeline("p", [last]).run(TWO, tasks(0, 1, 2))
    assert (raised.value.stage, raised.value.field) == ("lock", "task '1'.data")
    assert raised.value.result.stages[0].tasks_failed == 1
    after = stage(lambda task: task, name="after", fusible=False)
    result = Pipeline("p", [last, after]).run(TWO, tasks(0, 1, 2), on_error="skip")
    assert [task.data for task in result] == [0, 2]
    assert (result.stages[0].tasks_failed, result.lost) == (1, ())


def test_the_failure_is_attributed_to_the_last_attempt():
    class Late(ProcessingStage):
        max_attempts = 2
        tried = False

        def process(self, task):
            if task.data == 0:
                return Task(data=threading.Lock())
            if not self.tried:
                self.tried = True
                raise ValueError("not yet")
            return task

    # One bundle, because the next group needs both tasks: the retry follows the output that cannot be sent.
    with pytest.raises(ContractError, match="an output cannot be sent"):
        Pipeline("p", [Late().with_(batch_size=1), stage(lambda task: task, batch_size=2)]).run(TWO, tasks(0, 1))


def test_an_unpicklable_source_task_is_a_failure_of_the_source():
    source = stage(lambda task: [Task(data=threading.Lock())], name="source")
    with pytest.raises(ContractError, match="cannot be sent to another process") as raised:
        Pipeline("p", [source, stage(lambda task: task)]).run(TWO)
    assert raised.value.stage == "source"
    assert isinstance(raised.value.__cause__, TypeError)


def test_an_unpicklable_initial_task_is_an_error_of_the_caller():
    with pytest.raises(ConfigurationError, match="an initial task cannot be sent") as raised:
        Pipeline("p", [stage(lambda task: task)]).run(TWO, tasks(0, {"lock": threading.Lock()}))
    assert raised.value.field == "task '1'.data['lock']"


class OneWay:
    """Can be pickled, but not unpickled."""

    def __reduce__(self):
        return int, ("no number",)


def test_a_task_that_does_not_unpickle_does_not_count_as_a_dead_worker():
    with pytest.raises(DataError, match="a task cannot be read by worker local-0: ValueError: invalid literal"):
        Pipeline("p", [stage(lambda task: task)]).run(TWO, tasks(OneWay()))

    def make(task):
        class Hidden:
            def __reduce__(self):
                return int, ("no number",)

        return Task(data=Hidden())

    with pytest.raises(DataError, match="an output cannot be read by the driver: ValueError"):
        Pipeline("p", [stage(make)]).run(TWO, tasks(1))
