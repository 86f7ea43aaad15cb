# SPDX-License-Identifier: Apache-2.0
"""Reports are the same after conversion to bytes and back."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from curator_core._reports.batch import (
    BatchReport,
    ErrorInfo,
    FailedInput,
    InputOutcome,
    Tally,
    WorkerReport,
    WrittenFiles,
    input_fields,
)
from curator_core._reports.columns import ReportColumns
from curator_core._reports.wire import AnyReport, pack_reports, unpack_reports
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


@given(st.lists(batches | workers, max_size=6), st.booleans())
def test_packed_reports_are_unpacked_unchanged(reports: list[BatchReport | WorkerReport], are_of_one: bool) -> None:
    if are_of_one:  # as those of one worker, which then travel as columns
        reports = [report._replace(stage_index=1, worker_id="w", node_id="n") for report in reports * 3]
    out = singles(unpack_reports(pack_reports(reports)))
    assert (out if are_of_one else sorted(out, key=repr)) == (reports if are_of_one else sorted(reports, key=repr))
    assert {BatchReport, WorkerReport} >= {type(report) for report in out}
    for report in out:
        if isinstance(report, BatchReport):
            assert report.num_out == sum(outcome.count for outcome in report.inputs)


def singles(reports: list[AnyReport]) -> list[BatchReport | WorkerReport]:
    return [each for report in reports for each in (report if isinstance(report, ReportColumns) else [report])]


def ordinary(stage: int, number: int, **fields: Any) -> BatchReport:
    task_id = str(number)
    batch_id, start = f"{stage}/{task_id}", 1_000 * number + stage
    return BatchReport("r", stage, "s", batch_id, "w", "n", 1, number, start, 10, (task_id,), {}, **fields)


def test_ordinary_batches_of_a_stage_travel_as_columns() -> None:
    sent = [ordinary(stage, number) for number in range(5) for stage in range(2)]
    first, second = unpack_reports(pack_reports(sent))
    assert isinstance(first, ReportColumns)
    assert isinstance(second, ReportColumns)
    assert [*first] == sent[::2]
    assert [*second] == sent[1::2]
    assert second.row(2) == sent[5]
    assert (len(first), first.total("duration_ns"), first.input_ids) == (5, 50, ["0", "1", "2", "3", "4"])


def test_dropped_inputs_and_several_outputs_stay_in_the_columns() -> None:
    outcomes = [{}, {0: ("filtered", 0)}, {0: ("out", 3)}, {}]
    sent = [ordinary(0, number)._replace(other_outcomes=others) for number, others in enumerate(outcomes)]
    (columns,) = unpack_reports(pack_reports(sent))
    assert isinstance(columns, ReportColumns)
    assert [*columns] == sent
    assert columns.tally() == Tally(passed=3, filtered=1, out=5)


def test_batches_of_several_tasks_keep_their_inputs() -> None:
    inputs = [("a", "b"), (), ("c",), ("d", "e", "f")]
    sent = [ordinary(0, number)._replace(input_ids=ids) for number, ids in enumerate(inputs)]
    sent[3] = sent[3]._replace(other_outcomes={1: ("filtered", 0)})
    (columns,) = unpack_reports(pack_reports(sent))
    assert isinstance(columns, ReportColumns)
    assert [*columns] == sent
    assert columns.other_outcomes == {4: ("filtered", 0)}


def test_the_order_of_batches_within_a_stage_stays_the_same() -> None:
    failed = ordinary(0, 4).all_as("failed")._replace(error=ErrorInfo("E", "m", ""))
    sent = [*(ordinary(0, number) for number in range(4)), failed, *(ordinary(0, number) for number in range(5, 9))]
    before, alone, after = unpack_reports(pack_reports(sent))
    assert [*before, alone, *after] == sent


def test_batches_are_in_the_order_of_their_stages() -> None:
    assert unpack_reports(pack_reports([ordinary(1, 8), ordinary(0, 7)])) == [ordinary(0, 7), ordinary(1, 8)]


def test_a_worker_that_is_set_up_stays_before_its_batches() -> None:
    ready = WorkerReport("r", 1, "s", "w", "n", 1, "ready", 0, 0)
    sent = [ordinary(1, 0), ready, *(ordinary(0, number) for number in range(4))]
    assert singles(unpack_reports(pack_reports(sent))) == sent


def test_values_that_are_equal_keep_their_types() -> None:
    sent = [ordinary(0, number, metrics={"m": value}) for number, value in enumerate([1, 1.0, 1, 1.0])]
    out = singles(unpack_reports(pack_reports(sent)))
    assert [type(report.metrics["m"]) for report in out] == [int, float, int, float]
