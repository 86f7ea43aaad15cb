# SPDX-License-Identifier: Apache-2.0
"""Reports are the same after conversion to bytes and back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from curator_core._reports.batch import (
    BatchReport,
    ErrorInfo,
    FailedInput,
    InputOutcome,
    WorkerReport,
    WrittenFiles,
    input_fields,
)
from curator_core._reports.wire import pack_reports, unpack_reports
from curator_core.deadletter.payload import Payload

names = st.text(max_size=8)
numbers = st.integers(0, 2**62)
outcomes = st.lists(
    st.builds(InputOutcome, names, st.sampled_from(["out", "filtered", "failed", "retried"]), st.integers(0, 9))
)
failures = st.builds(ErrorInfo, names, names, names, st.none() | st.binary(max_size=8), names)
errors = st.none() | failures
payloads = st.builds(
    Payload,
    st.just("pickle"),
    names,
    names,
    st.binary(max_size=8),
    st.lists(st.binary(max_size=8), max_size=2).map(tuple),
    numbers,
    names,
)
failed_input = st.builds(FailedInput, numbers, failures, st.none() | payloads)
written_files = st.builds(WrittenFiles, names, names, st.lists(names, max_size=2), names)
batches = st.builds(
    lambda outcomes, **fields: BatchReport(**fields, **input_fields(outcomes)),
    run_id=names,
    stage_index=st.integers(0, 20),
    stage_name=names,
    batch_id=names,
    worker_id=names,
    node_id=names,
    pid=numbers,
    sequence=numbers,
    start_unix_ns=numbers,
    duration_ns=numbers,
    outcomes=outcomes,
    parents=st.lists(names, max_size=3).map(tuple),
    metrics=st.dictionaries(names, numbers | names, max_size=3),
    error=errors,
    failed_input=st.lists(failed_input, max_size=2).map(tuple),
    written_files=st.lists(written_files, max_size=2).map(tuple),
)
workers = st.builds(
    WorkerReport,
    run_id=names,
    stage_index=st.integers(0, 20),
    stage_name=names,
    worker_id=names,
    node_id=names,
    pid=numbers,
    event=st.sampled_from(["ready", "setup_failed", "ended"]),
    start_unix_ns=numbers,
    duration_ns=numbers,
    error=errors,
)


class Shout(str):
    """A string of a user-defined class that plain pickle does not find by its name."""

    __slots__ = ()


Shout.__qualname__ = "nowhere.Shout"


def test_reports_can_contain_objects_that_are_not_plain() -> None:
    report = BatchReport("r", 0, Shout("LOUD"), "0/1", "w", "n", 1, 0, 1, 1, ("1",), {})
    (out,) = unpack_reports(pack_reports([report]))
    assert out.stage_name == "LOUD"


@given(st.lists(batches | workers, max_size=6))
def test_packed_reports_are_unpacked_unchanged(reports: list[BatchReport | WorkerReport]) -> None:
    out = unpack_reports(pack_reports(reports))
    assert out == reports
    assert [type(report) for report in out] == [type(report) for report in reports]
    for report in out:
        if isinstance(report, BatchReport):
            assert report.num_out == sum(outcome.count for outcome in report.inputs)
