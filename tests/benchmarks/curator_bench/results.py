# SPDX-License-Identifier: Apache-2.0
"""Records of runs, and derived figures: medians, ratios, and whether targets are met. Pure functions."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any

from curator_bench.contenders import OURS_IN_NEMO

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

__all__ = ["Record", "Results", "Store", "Summary", "Target", "targets"]


@dataclass(frozen=True, slots=True)
class Record:
    """One run of one contender.

    Attributes:
        case: The case: see `Case.key`.
        contender: The contender.
        round: Number of the round.
        status: ``"ok"``, ``"failed"``, or ``"timeout"``.
        seconds: Seconds on the clock of the run; the timeout if it timed out.
        first_s: Seconds until a worker had made the first output.
        process_s: How long its process lived, including imports.
        peak_mb: Peak unshared memory of all its processes.
        check: Summary of the outputs.
        left_over: Number of processes that it left running.
        commit: The commit that was measured.
        values: Figures by name, if a run measures several.
    """

    case: str
    contender: str
    round: int = 0
    status: str = "ok"
    seconds: float = 0.0
    first_s: float | None = None
    process_s: float = 0.0
    peak_mb: float = 0.0
    check: str = ""
    left_over: int = 0
    commit: str = ""
    values: dict[str, float] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str, int]:
        """The unique key of a record."""
        return self.case, self.contender, self.round


class Store:
    """Records in a file, one per line: an aborted run keeps its records.

    Args:
        path: The file; created if it does not exist.
        earlier: Published results from `Results.to_json`, used if the file does not exist: they stay until they are
        measured again.
    """

    def __init__(self, path: Path, earlier: Path | None = None) -> None:
        self._path = path
        self._records: dict[tuple[str, str, int], Record] = {}
        if earlier is not None and earlier.exists() and not path.exists():
            told = json.loads(earlier.read_text(encoding="utf-8"))["runs"]
            self._records = {record.key: record for record in from_json(told)}
            self._write()
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
            try:
                record = Record(**json.loads(line))
            except ValueError:  # an abort may have truncated the last line
                self._write()
            else:
                self._records[record.key] = record

    def __contains__(self, key: tuple[str, str, int]) -> bool:
        return key in self._records

    def add(self, record: Record) -> None:
        """Add a record, in memory and in the file."""
        self._records[record.key] = record
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(record)) + "\n")

    def forget(self, cases: Iterable[str], contenders: Iterable[str]) -> None:
        """Drop records that are about to be measured again."""
        cases, contenders = set(cases), set(contenders)
        kept = [one for one in self._records.values() if not (one.case in cases and one.contender in contenders)]
        self._records = {record.key: record for record in kept}
        self._write()

    def forget_failures(self) -> None:
        """Drop failed records, so that they are measured again."""
        self._records = {record.key: record for record in self._records.values() if record.status != "failed"}
        self._write()

    def results(self) -> Results:
        """Return the results from all records."""
        return Results(list(self._records.values()))

    def _write(self) -> None:
        lines = (json.dumps(asdict(record)) + "\n" for record in self._records.values())
        self._path.write_text("".join(lines), encoding="utf-8")


@dataclass(frozen=True, slots=True)
class Summary:
    """All rounds of one contender on one case.

    Attributes:
        contender: The contender.
        status: ``"ok"`` if there is a figure.
        rounds: Number of successful rounds.
        median: Median seconds; the timeout if it timed out.
        least: The fastest round.
        most: The slowest round.
        first_s: Median seconds to the first output.
        peak_mb: Median of the peak memory.
    """

    contender: str
    status: str
    rounds: int
    median: float
    least: float
    most: float
    first_s: float | None
    peak_mb: float


class Results:
    """All records.

    Args:
        records: The records.
    """

    def __init__(self, records: Sequence[Record]) -> None:
        self.records = list(records)

    def of(self, case: str, contender: str) -> list[Record]:
        """Return the rounds of a contender, in order."""
        found = [one for one in self.records if (one.case, one.contender) == (case, contender)]
        return sorted(found, key=lambda one: one.round)

    def summary(self, case: str, contender: str) -> Summary | None:
        """Summarize the rounds of a contender; return None if there are none."""
        found = self.of(case, contender)
        good = [one for one in found if one.status == "ok"]
        if not found:
            return None
        if not good:
            last = found[-1]
            return Summary(contender, last.status, 0, last.seconds, last.seconds, last.seconds, None, last.peak_mb)
        seconds = [one.seconds for one in good]
        firsts = [one.first_s for one in good if one.first_s is not None]
        return Summary(
            contender,
            "ok",
            len(good),
            median(seconds),
            min(seconds),
            max(seconds),
            median(firsts) if firsts else None,
            median(one.peak_mb for one in good),
        )

    def median(self, case: str, contender: str) -> float | None:
        """Return the median seconds, or None without a successful round."""
        found = self.summary(case, contender)
        return found.median if found and found.status == "ok" else None

    def limit(self, case: str, names: Iterable[str]) -> str | None:
        """Return the fastest of several contenders that do the same: the practical limit."""
        timed = [(seconds, name) for name in names if (seconds := self.median(case, name)) is not None]
        return min(timed)[1] if timed else None

    def value(self, case: str, contender: str, name: str) -> float | None:
        """Return the median of a named figure."""
        found = [one.values[name] for one in self.of(case, contender) if name in one.values]
        return median(found) if found else None

    def disagreements(self) -> list[str]:
        """Describe cases whose contenders had different outputs."""
        found = []
        for case in dict.fromkeys(record.case for record in self.records):
            checks: dict[str, list[str]] = {}
            for record in self.records:
                if record.case == case and record.status == "ok" and record.check:
                    checks.setdefault(record.check, []).append(record.contender)
            if len(checks) > 1:
                sides = (f"{', '.join(sorted(set(names)))}: {check}" for check, names in checks.items())
                found.append(f"{case}: {'; '.join(sides)}")
        return found

    def failures(self) -> list[str]:
        """Describe runs that failed."""
        return [f"{one.case}: {one.contender} failed" for one in self.records if one.status == "failed"]

    def commits(self) -> list[str]:
        """Return the commits that were measured."""
        return sorted({one.commit for one in self.records if one.commit})

    def to_json(self) -> dict[str, Any]:
        """Return all records, grouped by case and contender."""
        cases: dict[str, Any] = {}
        for record in sorted(self.records, key=lambda one: one.key):
            rounds = cases.setdefault(record.case, {}).setdefault(record.contender, [])
            told = {name: value for name, value in asdict(record).items() if value not in (None, "", {})}
            rounds.append({name: told[name] for name in told if name not in ("case", "contender", "round")})
        return cases


def from_json(cases: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]) -> list[Record]:
    """Return the records from the output of `Results.to_json`."""
    return [
        Record(case=case, contender=contender, round=number, **told)
        for case, contenders in cases.items()
        for contender, rounds in contenders.items()
        for number, told in enumerate(rounds)
    ]


@dataclass(frozen=True, slots=True)
class Target:
    """A target for a figure.

    Attributes:
        says: Description of the comparison.
        demands: Description of the target.
        figure: The measured figure; None if it is missing.
        is_met: Whether the target is met; None if unknown.
        unit: Unit of the figure.
    """

    says: str
    demands: str
    figure: float | None
    is_met: bool | None
    unit: str = ""


def targets(results: Results, versions: Sequence[str], limits: dict[str, list[str]], cores: int) -> list[Target]:
    """Return all targets.

    Args:
        results: The results.
        versions: The versions of Xenna.
        limits: For each version, the contenders for the practical limit.
        cores: Number of cores of the machine.
    """
    found = []
    for version in versions:
        ours, on = f"ours@{version}", f"on Xenna {version}"
        times = _Times(results, ours)
        found += [
            times.faster("tiny-1000", "nemo-xenna", 3.4, f"tiny, 1,000 tasks, {on}: NeMo Curator on Xenna"),
            times.faster("tiny-10000", "nemo-xenna", 20, f"tiny, 10,000 tasks, {on}: NeMo Curator on Xenna"),
            times.within("tiny-1000", limits[version], 1.15, f"tiny, 1,000 tasks, {on}: by hand, fused, bundled"),
            times.within("tiny-10000", limits[version], 1.15, f"tiny, 10,000 tasks, {on}: by hand, fused, bundled"),
            times.faster("cpu-200", "nemo-xenna", 1.25, f"cpu, {on}: NeMo Curator on Xenna"),
            times.faster("payload-100", "nemo-xenna", 1.4, f"payload, {on}: NeMo Curator on Xenna"),
            times.within("payload-100", limits[version], 1.0, f"payload, {on}: by hand, fused"),
            _Times(results, f"ours-traced@{version}").within(
                "tiny-1000", [ours], 1.03, f"tiny, 1,000 tasks, traced, {on}: the same, not traced"
            ),
            *(
                _Times(results, f"ours-safe@{version}").within(
                    f"tiny-{size}", [ours], 1.05, f"tiny, {size:,} tasks, checkpoint and dead letters, {on}: without"
                )
                for size in (1000, 10_000)
            ),
            *(_second_run(results, version, groups) for groups in (1, 2, 3, 4)),
            times.within("skew-64", [f"ours-unbundled@{version}"], 1.1, f"skew, {on}: the same, one task per bundle"),
        ]
    local = _Times(results, "local-all")
    in_nemo = _Times(results, OURS_IN_NEMO)
    mine = f"cpu, `LocalExecutor(workers={cores})`"
    return [
        *found,
        local.faster("cpu-200", "nemo-xenna", 1.8, f"{mine}: NeMo Curator on Xenna"),
        local.faster("cpu-200", "local", 1.8, f"{mine}: `LocalExecutor()`"),
        in_nemo.faster("nemo-light-2000", "nemo-xenna", 3, "nemo-light, on Xenna: NeMo Curator on Xenna"),
        in_nemo.faster("nemo-text-20000", "nemo-xenna", 2, "nemo-text, on Xenna: NeMo Curator on Xenna"),
        *_adapter_targets(results, versions),
    ]


def _second_run(results: Results, version: str, groups: int) -> Target:
    """Return the target of a second run: a few seconds for Xenna to start, and more for the workers of each group."""
    of = "1 group" if groups == 1 else f"{groups} groups"
    says = f"a second run on the same cluster, 100 tiny tasks, {of}, on Xenna {version}"
    figure = results.median(f"tiny-100-{groups}-stages", f"ours-again@{version}")
    return _at_most(says, figure, 4.0 + 1.5 * (groups - 1), "s")


def _adapter_targets(results: Results, versions: Sequence[str]) -> list[Target]:
    found = []
    theirs = results.value("micro", "nemo-curator", "adapter_batch_of_one_us")
    for version in versions:
        one = results.value("micro", f"ours@{version}", "adapter_batch_of_one_us")
        many = results.value("micro", f"ours@{version}", "adapter_task_at_1024_us")
        ratio = theirs / one if theirs and one else None
        with_version = f"adapter, environment of Xenna {version}"
        found += [
            Target(
                f"{with_version}, a batch of one: NeMo Curator's",
                "at least 25 times as cheap",
                ratio,
                None if ratio is None else ratio >= 25,
                "times",
            ),
            _at_most(f"{with_version}, a batch of one", one, 12, "us"),
            _at_most(f"{with_version}, a task in a batch of 1,024", many, 0.6, "us"),
            _at_most(
                f"`LocalExecutor()`, 10,000 tasks through 3 stages that do nothing, environment of Xenna {version}",
                results.value("micro", f"ours@{version}", "local_same_s"),
                0.4,
                "s",
            ),
            _at_most(
                f"telemetry in-process, environment of Xenna {version}, per batch",
                results.value("micro", f"ours@{version}", "telemetry_batch_us"),
                3,
                "us",
            ),
        ]
    return found


class _Times:
    def __init__(self, results: Results, contender: str) -> None:
        self._results = results
        self._contender = contender

    def faster(self, case: str, other: str, least: float, says: str) -> Target:
        mine, theirs = self._results.median(case, self._contender), self._results.median(case, other)
        ratio = theirs / mine if mine and theirs else None
        met = None if ratio is None else ratio >= least
        return Target(says, f"at least {least:g} times as fast", ratio, met, "times")

    def within(self, case: str, others: Sequence[str], most: float, says: str) -> Target:
        other = self._results.limit(case, others)
        mine, theirs = self._results.median(case, self._contender), self._results.median(case, other or "")
        ratio = mine / theirs if mine and theirs else None
        met = None if ratio is None else ratio <= most
        return Target(says, f"at most {most:g} times as long", ratio, met, "times")


def _at_most(says: str, figure: float | None, most: float, unit: str) -> Target:
    return Target(says, f"at most {most:g} {unit}", figure, None if figure is None else figure <= most, unit)
