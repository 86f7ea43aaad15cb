# SPDX-License-Identifier: Apache-2.0
"""The logic of the benchmarks: the order of runs, the derived figures, and that the work is the same each time."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path

import pytest
from curator_bench import nemo_text
from curator_bench.compare import Bench, is_wanted, turns
from curator_bench.contenders import (
    GROWTH,
    MAIN,
    OURS_IN_NEMO,
    Case,
    Contender,
    chosen,
    contenders,
    growth_contenders,
    versions_of,
)
from curator_bench.harness import process_of
from curator_bench.processes import Neighbours
from curator_bench.report import Machine, page, seconds, table
from curator_bench.results import Record, Results, Store, targets
from curator_bench.workloads import WORKLOADS, Job, skewed_seconds

VERSIONS = ["0.3.0", "0.5.12"]
ENVIRONMENTS = ["xenna-0.5.12", "nemo-curator", "xenna-0.3.0"]
CASE = Case("tiny", 1000)
NEWEST = "0.5.12"


def record(contender: str, *seconds: float, case: str = "tiny-1000", status: str = "ok") -> list[Record]:
    return [
        Record(case, contender, number, status, value, check="the same", commit="abc")
        for number, value in enumerate(seconds)
    ]


# --- figures ------------------------------------------------------------------------------------------------


def test_summary_uses_successful_rounds() -> None:
    results = Results([*record("ours", 3.0, 1.0, 2.0), Record("tiny-1000", "ours", 3, "failed", 99.0)])
    found = results.summary("tiny-1000", "ours")
    assert found is not None
    assert (found.status, found.rounds, found.median, found.least, found.most) == ("ok", 3, 2.0, 1.0, 3.0)
    assert results.median("tiny-1000", "another") is None


def test_a_timeout_has_no_median() -> None:
    results = Results(record("slow", 240.0, status="timeout"))
    found = results.summary("tiny-1000", "slow")
    assert found is not None
    assert (found.status, found.median) == ("timeout", 240.0)
    assert results.median("tiny-1000", "slow") is None


def test_the_limit_is_the_fastest_plain_program() -> None:
    results = Results([*record("a", 9.0, 5.0, 6.0), *record("b", 7.0), *record("c", 1.0, status="failed")])
    assert results.limit("tiny-1000", ["a", "b", "c"]) == "a"
    assert results.limit("tiny-1000", ["c"]) is None


def test_different_outputs_are_reported() -> None:
    same = Results([*record("a", 1.0), *record("b", 1.0), *record("b", 1.0, case="cpu-200")])
    assert same.disagreements() == []
    wrong = Results([*same.records, Record("tiny-1000", "c", check="another")])
    assert wrong.disagreements() == ["tiny-1000: a, b: the same; c: another"]


def test_failures_are_reported() -> None:
    assert Results(record("a", 1.0, status="failed")).failures() == ["tiny-1000: a failed"]
    assert Results(record("a", 1.0, status="timeout")).failures() == []


def limits_of(versions: list[str]) -> dict[str, list[str]]:
    return {version: [f"hand-64x1@{version}", f"hand-256x1@{version}"] for version in versions}


def test_targets_are_ratios_of_medians() -> None:
    rounds = [
        *record(f"ours@{NEWEST}", 9.0, 10.0, 30.0),
        *record("nemo-xenna", 40.0),
        *record(f"hand-64x1@{NEWEST}", 9.0),
        *record(f"hand-256x1@{NEWEST}", 8.0),
    ]
    found = {target.says: target for target in targets(Results(rounds), [NEWEST], limits_of([NEWEST]), 2)}
    nemo = found["tiny, 1,000 tasks, on Xenna 0.5.12: NeMo Curator on Xenna"]
    assert (nemo.figure, nemo.is_met, nemo.demands) == (4.0, True, "at least 3.4 times as fast")
    by_hand = found["tiny, 1,000 tasks, on Xenna 0.5.12: by hand, fused, bundled"]
    assert (by_hand.figure, by_hand.is_met) == (1.25, False)
    missing = found["cpu, on Xenna 0.5.12: NeMo Curator on Xenna"]
    assert (missing.figure, missing.is_met) == (None, None)


def test_adapter_targets_come_from_the_figures() -> None:
    figures = {"adapter_batch_of_one_us": 10.0, "adapter_task_at_1024_us": 0.7}
    theirs = {"adapter_batch_of_one_us": 240.0, "adapter_task_at_1024_us": 1.4}
    micro = [
        Record("micro", f"ours@{NEWEST}", values=figures),
        Record("micro", "nemo-curator", values=theirs),
    ]
    verdicts = {t.says: t.is_met for t in targets(Results(micro), [NEWEST], limits_of([NEWEST]), 2)}
    begin = "adapter, environment of Xenna 0.5.12, "
    assert verdicts[f"{begin}a batch of one: NeMo Curator's"] is False  # 24 times
    assert verdicts[f"{begin}a batch of one"] is True
    assert verdicts[f"{begin}a task in a batch of 1,024"] is False


def test_each_version_has_the_same_targets() -> None:
    both = targets(Results([]), VERSIONS, limits_of(VERSIONS), 2)
    said = [[t.says.replace(version, "") for t in both if version in t.says] for version in VERSIONS]
    assert said[0] == said[1] != []


# --- records ------------------------------------------------------------------------------------------------


def test_store_resumes_where_it_ended(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    store = Store(path)
    for one in record("ours", 1.0, 2.0):
        store.add(one)
    with path.open("a") as file:
        file.write('{"case": "tiny-1000", "contender": "ou')  # cut off
    again = Store(path)
    assert ("tiny-1000", "ours", 1) in again
    again.add(record("nemo-xenna", 3.0)[0])
    assert [one.seconds for one in Store(path).results().records] == [1.0, 2.0, 3.0]


def test_store_replaces_repeated_measurements(tmp_path: Path) -> None:
    store = Store(tmp_path / "results.jsonl")
    rounds = [
        *record("a", 1.0),
        *record("b", 2.0),
        *record("a", 3.0, case="cpu-200"),
        *record("c", 4.0, status="failed"),
    ]
    for one in rounds:
        store.add(one)
    store.forget(["tiny-1000"], ["a"])
    store.forget_failures()
    kept = Store(tmp_path / "results.jsonl").results().records
    assert [(one.case, one.contender) for one in kept] == [("tiny-1000", "b"), ("cpu-200", "a")]


# --- order of runs ------------------------------------------------------------------------------------------


def test_contenders_run_on_every_version_they_are_compared_on() -> None:
    found = [one.name for one in contenders(ENVIRONMENTS, 2)]
    assert versions_of(ENVIRONMENTS) == VERSIONS
    assert len(found) == len(set(found))
    for version in VERSIONS:
        assert {f"ours@{version}", f"hand-64x1@{version}", f"ours-unbundled@{version}"} <= set(found)
    assert {"nemo-xenna", "nemo-ray-data", "nemo-actor-pool", "plain", "local", "local-all"} <= set(found)
    assert {f"ours-off@{NEWEST}", f"hand@{NEWEST}"} <= set(found)


def test_stages_of_nemo_curator_run_where_it_is_installed() -> None:
    found = contenders(ENVIRONMENTS, 2)
    for case in MAIN:
        names = {one.name for one in found if case.is_for(one)}
        if case.workload.startswith("nemo-"):
            executors = {"nemo-xenna", "nemo-ray-data", "nemo-actor-pool"}
            assert names == {OURS_IN_NEMO, f"{OURS_IN_NEMO}-local", *executors}
        else:
            assert {"nemo-xenna", "local", f"ours@{NEWEST}"} <= names
            assert OURS_IN_NEMO not in names


def test_stages_of_nemo_curator_are_compared_with_ours_beside_them() -> None:
    case = "nemo-light-2000"
    rounds = [*record(OURS_IN_NEMO, 8.0, case=case), *record("nemo-xenna", 48.0, case=case)]
    text = page(
        Results(rounds), MAIN, contenders(ENVIRONMENTS, 2), VERSIONS, Machine(2, 8, "Linux"), slow=1, very_slow=2
    )
    assert "| NeMo Curator on Xenna | 48.0 |  | 1 | 6.00 |" in text
    assert "| nemo-light, on Xenna: NeMo Curator on Xenna | at least 3 times as fast | 6 times | met |" in text


def test_documents_are_pieces_of_source_files(tmp_path: Path) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "one.py").write_text("\n".join(f"line {n}" for n in range(2 * nemo_text.LINES + 1)))
    nemo_text.write_documents(tmp_path, tmp_path, 3)
    (path,) = (tmp_path / "in").iterdir()
    texts = [json.loads(line)["text"] for line in path.read_text().splitlines()]
    assert [len(text.splitlines()) for text in texts] == [nemo_text.LINES, nemo_text.LINES, 1]
    with pytest.raises(ValueError, match="has 3 documents of 30 lines, not 4"):
        nemo_text.write_documents(tmp_path, tmp_path / "package", 4)


def test_contenders_follow_the_environments() -> None:
    found = contenders(["xenna-0.3.0"], 2)
    assert {one.environment for one in found} == {"xenna-0.3.0"}
    assert [one.name for one in chosen(found, ["local*", "plain"])] == ["local", "local-all", "plain"]
    assert chosen(found, []) == found


def test_growth_is_measured_with_cheap_workloads() -> None:
    found = contenders(ENVIRONMENTS, 2)
    names = {side: [one.name for one in growth_contenders(found, cases[0])] for side, cases in GROWTH.items()}
    assert names["tasks"] == [f"ours@{NEWEST}", f"hand-256x1@{NEWEST}", "local"]
    assert names["payload"] == [f"ours@{NEWEST}", f"hand-1x0@{NEWEST}", "local"]


def test_every_case_has_a_unique_name() -> None:
    keys = [case.key for case in (*MAIN, *itertools.chain(*GROWTH.values()))]
    assert {"tiny-1000", "tiny-1000-16-stages", "payload-16-64000000-bytes"} <= set(keys)
    assert len(set(keys)) == len(keys) - 2  # two of the first curve's points are workloads


def test_rounds_begin_with_different_contenders() -> None:
    found = contenders(ENVIRONMENTS, 2)
    orders = [[one.name for one in turns(found, number)] for number in range(3)]
    assert len({order[0] for order in orders}) == 3
    assert all(sorted(order) == sorted(orders[0]) for order in orders)


@pytest.mark.parametrize(
    ("always", "seconds", "status", "again"),
    [
        (False, 20.0, "ok", True),
        (False, 40.0, "ok", False),
        (True, 40.0, "ok", True),
        (True, 140.0, "ok", False),
        (True, 20.0, "failed", False),
        (True, 20.0, "timeout", False),
    ],
)
def test_slow_contenders_run_once(always: bool, seconds: float, status: str, again: bool) -> None:
    one = Contender("one", "", "ours", "xenna-0.3.0", always=always)
    results = Results(record("one", seconds, status=status))
    assert is_wanted(CASE, one, [one], results) is again


def test_only_the_fastest_plain_program_runs_again() -> None:
    ways = [Contender(name, "", "xenna_by_hand", "xenna-0.3.0", limit="0.3.0") for name in ("a", "b")]
    other = Contender("c", "", "xenna_by_hand", "xenna-0.5.12", limit="0.5.12")
    results = Results([*record("a", 8.0), *record("b", 7.0), *record("c", 9.0)])
    assert [is_wanted(CASE, one, [*ways, other], results) for one in (*ways, other)] == [False, True, True]


class NoNeighbours(Neighbours):
    def wait(self) -> None:
        """Return at once: there are no other instances of Ray."""


def test_a_run_leaves_a_record(tmp_path: Path) -> None:
    """Run a real process of the contender that needs no packages."""
    pytest.importorskip("psutil")
    here = {"xenna-0.3.0": Path(sys.executable)}
    store = Store(tmp_path / "results.jsonl")
    bench = Bench(here, tmp_path, tmp_path, store, "abc", [Path(__file__).parent], NoNeighbours())
    plain = chosen(contenders(list(here), 2), ["plain"])
    for _ in range(2):  # the second time, nothing is left to do
        bench.run(Case("tiny", 5), plain, rounds=2)
    found = store.results().records
    assert [(one.round, one.status, one.check, one.left_over) for one in found] == [
        (0, "ok", "5 numbers, sum 25", 0),
        (1, "ok", "5 numbers, sum 25", 0),
    ]
    assert all(one.peak_mb > 1 and one.first_s is not None for one in found)


# --- the page -----------------------------------------------------------------------------------------------


def test_table_is_markdown() -> None:
    assert table(["a", "b"], [["1", "2"]]).splitlines() == ["| a | b |", "| --- | ---: |", "| 1 | 2 |"]


@pytest.mark.parametrize(("value", "text"), [(0.0123, "0.012"), (1.25, "1.2"), (123.4, "123"), (None, "-")])
def test_seconds_have_the_digits_that_count(value: float | None, text: str) -> None:
    assert seconds(value) == text


def test_page_shows_medians_ratios_and_failures() -> None:
    rounds = [
        *record(f"ours@{NEWEST}", 9.0, 10.0, 11.0),
        *record("nemo-xenna", 30.0, 31.0, 29.0),
        *record("nemo-ray-data", 240.0, status="timeout"),
        *record("nemo-actor-pool", 1.0, status="failed"),
    ]
    machine = Machine(2, 8, "Linux", {"xenna-0.5.12": {"ray": "2.60.0"}})
    found = contenders(ENVIRONMENTS, 2)
    text = page(Results(rounds), MAIN, found, VERSIONS, machine, slow=30, very_slow=120)
    assert "| **Curator on Xenna** (0.5.12) | 10.0 | 9.0 to 11.0 | 3 | 1.00 |" in text
    assert "| NeMo Curator on Xenna | 30.0 | 29.0 to 31.0 | 3 | 3.00 |" in text
    assert "| NeMo Curator on Ray Data | > 240 |" in text
    assert "| NeMo Curator on actor pools | failed |" in text
    assert "3 times | **missed** |" in text
    assert "2 cores, 8 GB of memory" in text
    assert "`abc`" in text
    assert "### cpu" not in text  # nothing was measured


def test_page_shows_second_runs_side_by_side() -> None:
    case = "tiny-100-2-stages"
    rounds = [Record(case, f"{who}-again@{NEWEST}", seconds=took) for who, took in (("ours", 5.0), ("hand", 7.0))]
    text = page(Results(rounds), MAIN, contenders(ENVIRONMENTS, 2), VERSIONS, Machine(2, 8, "Linux"))
    assert "| Curator on Xenna, a second run on the same cluster (0.5.12) | - | 5.0 | - | - |" in text
    assert "| Xenna by hand, a second run on the same cluster (0.5.12) | - | 7.0 | - | - |" in text


# --- the work -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "check"), [("tiny", "20 numbers, sum 250"), ("deep", "20 numbers, sum 430")])
def test_light_workloads_give_the_expected_outputs(name: str, check: str) -> None:
    workload = WORKLOADS[name]
    job = Job(20, workload.stages)
    payloads = workload.inputs(job)
    for step in workload.steps(job):
        payloads = process_of(step.call, payloads)
    assert workload.check(payloads, job) == check
    assert workload.check(payloads[::-1], job) == check  # the order does not matter


def test_skew_is_the_same_each_time_and_mostly_short() -> None:
    drawn = skewed_seconds(64)
    assert drawn == skewed_seconds(64)
    assert 0.1 <= min(drawn) < 0.11
    assert 1.5 < max(drawn) <= 2
    assert sorted(drawn)[32] < 0.5


def test_stages_fit_one_cpu_together() -> None:
    for workload in WORKLOADS.values():
        job = Job(1, workload.stages, documents=Path(), output=Path())
        assert 0 < workload.cpus(job) * workload.num_stages(job) <= 1


def test_text_reads_descriptions_and_drops_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "docs" / "examples")
    good = "\n".join(
        f"This is sentence {number} of the text that we have to be rid of, and more." for number in range(9)
    )
    for name, text in (("first", good), ("second", good), ("short", "Too short.")):
        directory = tmp_path / f"{name}-1.0.dist-info"
        directory.mkdir()
        (directory / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n\n{text}\n")
    workload = WORKLOADS["text"]
    job = Job(1, documents=tmp_path, output=tmp_path)
    assert workload.source is not None
    payloads = workload.source(job).call(None)
    assert payloads == [["first", "second", "short"]]
    for step in workload.steps(job)[:-1]:
        payloads = process_of(step.call, payloads)
    assert [[record["name"] for record in records] for records in payloads] == [["first"]]


def test_a_store_starts_with_the_published_results(tmp_path):
    records = [
        Record("cpu-8", "plain", number, seconds=float(number), commit="abc", values={"x": 1.5}) for number in (0, 1)
    ]
    shown = tmp_path / "benchmarks.json"
    shown.write_text(json.dumps({"runs": Results(records).to_json()}))
    assert Store(tmp_path / "results.jsonl", shown).results().records == records
    Store(tmp_path / "results.jsonl").forget(["cpu-8"], ["plain"])
    assert Store(tmp_path / "results.jsonl", shown).results().records == []  # the file takes precedence
