# SPDX-License-Identifier: Apache-2.0
"""Records of runs, and what follows from them: medians, ratios, and whether the targets are met. Pure."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

__all__ = ["Record", "Results", "Store", "Summary", "Target", "targets"]


@dataclass(frozen=True, slots=True)
class Record:
    """One run of one contender.

    Attributes:
        case: What was run: see `Case.key`.
        contender: Who ran it.
        round: In which round.
        status: ``"ok"``, ``"failed"`` or ``"timeout"``.
        seconds: On the clock of the run; its time-out where it ran into that.
        first_s: Seconds until a worker had made the first output.
        process_s: How long its process lived, imports included.
        peak_mb: Memory of all its processes, as far as it was not shared.
        check: What the outputs were.
        left_over: Processes that it left running.
        commit: The commit that was measured.
        values: Figures by name, where a run gives several.
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
        """What no two records have in common."""
        return self.case, self.contender, self.round


class Store:
    """Records in a file, one a line: a run that is aborted keeps what it had.

    Args:
        path: The file; made where it is not there.
        earlier: What `Results.to_json` once made, to begin with where it is not there: what is shown stays, as long as
            it is not measured anew.
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
            except ValueError:  # an abort may have cut the last one
                self._write()
            else:
                self._records[record.key] = record

    def __contains__(self, key: tuple[str, str, int]) -> bool:
        return key in self._records

    def add(self, record: Record) -> None:
        """Keep a record, here and in the file."""
        self._records[record.key] = record
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(record)) + "\n")

    def forget(self, cases: Iterable[str], contenders: Iterable[str]) -> None:
        """Drop what is about to be measured anew."""
        cases, contenders = set(cases), set(contenders)
        kept = [one for one in self._records.values() if not (one.case in cases and one.contender in contenders)]
        self._records = {record.key: record for record in kept}
        self._write()

    def forget_failures(self) -> None:
        """Drop what failed, so that it is measured again."""
        self._records = {record.key: record for record in self._records.values() if record.status != "failed"}
        self._write()

    def results(self) -> Results:
        """What follows from the records."""
        return Results(list(self._records.values()))

    def _write(self) -> None:
        lines = (json.dumps(asdict(record)) + "\n" for record in self._records.values())
        self._path.write_text("".join(lines), encoding="utf-8")


@dataclass(frozen=True, slots=True)
class Summary:
    """All rounds of one contender on one case.

    Attributes:
        contender: Who.
        status: ``"ok"`` where there is a figure.
        rounds: Rounds that ended well.
        median: Median seconds; the time-out where it ran into that.
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
        """The rounds of a contender, in order."""
        found = [one for one in self.records if (one.case, one.contender) == (case, contender)]
        return sorted(found, key=lambda one: one.round)

    def summary(self, case: str, contender: str) -> Summary | None:
        """The rounds of a contender, in short; None where there is none."""
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
        """Median seconds; None where there is no good round."""
        found = self.summary(case, contender)
        return found.median if found and found.status == "ok" else None

    def limit(self, case: str, names: Iterable[str]) -> str | None:
        """The fastest of some ways to do the same: the practical limit."""
        timed = [(seconds, name) for name in names if (seconds := self.median(case, name)) is not None]
        return min(timed)[1] if timed else None

    def value(self, case: str, contender: str, name: str) -> float | None:
        """Median of a named figure."""
        found = [one.values[name] for one in self.of(case, contender) if name in one.values]
        return median(found) if found else None

    def disagreements(self) -> list[str]:
        """Cases whose contenders did not make the same outputs, in words."""
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
        """Runs that failed, in words."""
        return [f"{one.case}: {one.contender} failed" for one in self.records if one.status == "failed"]

    def commits(self) -> list[str]:
        """The commits that were measured."""
        return sorted({one.commit for one in self.records if one.commit})

    def to_json(self) -> dict[str, Any]:
        """Everything, grouped by case and contender."""
        cases: dict[str, Any] = {}
        for record in sorted(self.records, key=lambda one: one.key):
            rounds = cases.setdefault(record.case, {}).setdefault(record.contender, [])
            told = {name: value for name, value in asdict(record).items() if value not in (None, "", {})}
            rounds.append({name: told[name] for name in told if name not in ("case", "contender", "round")})
        return cases


def from_json(cases: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]) -> list[Record]:
    """The records that `Results.to_json` was made of."""
    return [
        Record(case=case, contender=contender, round=number, **told)
        for case, contenders in cases.items()
        for contender, rounds in contenders.items()
        for number, told in enumerate(rounds)
    ]


@dataclass(frozen=True, slots=True)
class Target:
    """A line that a figure has to reach.

    Attributes:
        says: What is compared with what.
        demands: The line, in words.
        figure: What was measured; None where that is missing.
        is_met: Whether it is reached; None where that is not known.
        unit: Of the figure.
    """

    says: str
    demands: str
    figure: float | None
    is_met: bool | None
    unit: str = ""


def targets(results: Results, versions: Sequence[str], limits: dict[str, list[str]], cores: int) -> list[Target]:
    """All targets.

    Args:
        results: What was measured.
        versions: The versions of Xenna.
        limits: For each of them, the contenders that are ways to the practical limit.
        cores: Cores of the machine.
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
            times.within("skew-64", [f"ours-unbundled@{version}"], 1.1, f"skew, {on}: the same, one task a bundle"),
        ]
    local = _Times(results, "local-all")
    mine = f"cpu, `LocalExecutor(workers={cores})`"
    return [
        *found,
        local.faster("cpu-200", "nemo-xenna", 1.8, f"{mine}: NeMo Curator on Xenna"),
        local.faster("cpu-200", "local", 1.8, f"{mine}: `LocalExecutor()`"),
        *_adapter_targets(results, versions),
    ]


def _second_run(results: Results, version: str, groups: int) -> Target:
    """A few seconds for Xenna to start again, and for each group's workers."""
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
                f"telemetry in-process, environment of Xenna {version}, a batch",
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
        return Target(says, f"at most {most:g} times its time", ratio, met, "times")


def _at_most(says: str, figure: float | None, most: float, unit: str) -> Target:
    return Target(says, f"at most {most:g} {unit}", figure, None if figure is None else figure <= most, unit)
