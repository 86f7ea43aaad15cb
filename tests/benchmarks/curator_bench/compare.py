# SPDX-License-Identifier: Apache-2.0
"""Runs contenders in alternating order, and keeps a record of each run."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from curator_bench.harness import SCRATCH
from curator_bench.processes import Neighbours, run_alone, scratch_directory
from curator_bench.results import Record, Results, Store

if TYPE_CHECKING:
    from collections.abc import Sequence

    from curator_bench.contenders import Case, Contender

__all__ = ["Bench", "is_wanted", "turns"]

logger = logging.getLogger(__name__)

# A contender that takes longer than this is not run again, unless others are compared with it …
SLOW_S = 20.0
# … and no contender is run again above this: a second hour would not change the result of the first round.
VERY_SLOW_S = 120.0
TIMEOUT_S = 150.0
ALWAYS_TIMEOUT_S = 900.0  # for contenders that others are compared with

# Ray's message when Xenna looks for "the" Ray of this machine and there are two: not the contender's fault.
NEIGHBOUR = "Found multiple active Ray instances"
ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class Bench:
    """Settings of all runs.

    Attributes:
        pythons: The interpreter of each environment.
        directory: Directory of the logs.
        documents: Directory of installed packages, whose descriptions or source files are the texts.
        store: Store of the records.
        commit: The commit that is measured.
        paths: Directories with the modules of runs.
        neighbours: Other processes that may run Ray on this machine.
    """

    pythons: dict[str, Path]
    directory: Path
    documents: Path
    store: Store
    commit: str
    paths: Sequence[Path] = ()
    neighbours: Neighbours = field(default_factory=Neighbours)

    def run(self, case: Case, contenders: Sequence[Contender], rounds: int) -> None:
        """Run all rounds of a case, except those that are already in the store."""
        for number in range(min(rounds, case.rounds)):
            for contender in turns(contenders, number):
                if (case.key, contender.name, number) in self.store:
                    continue
                results = self.store.results()
                if number and not is_wanted(case, contender, contenders, results):
                    continue
                record = self.measure(case, contender, number)
                self.store.add(record)
                logger.info(
                    "%-24s %-28s round %d  %-7s %7.1f s  %s",
                    case.key,
                    contender.name,
                    number + 1,
                    record.status,
                    record.seconds,
                    record.check,
                )

    def measure(self, case: Case, contender: Contender, number: int) -> Record:
        """Run a contender once."""
        more = [*contender.arguments, "--documents", str(self.documents)]
        return self.record(case.key, contender, ["curator_bench.run", contender.runner, *case.arguments, *more], number)

    def record(self, case: str, contender: Contender, arguments: Sequence[str], number: int) -> Record:
        """Run a module in a contender's environment; return its line of JSON as a record."""
        timeout = ALWAYS_TIMEOUT_S if contender.always else TIMEOUT_S
        command = [str(self.pythons[contender.environment]), "-m", *arguments]
        log = self.directory / "logs" / f"{case}.{contender.name}.{number + 1}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        for _ in range(ATTEMPTS):
            self.neighbours.wait()
            with scratch_directory() as scratch:
                finished = run_alone(command, self._environment(scratch), timeout, log)
            if finished.status == "ok" or NEIGHBOUR not in log.read_text(encoding="utf-8", errors="replace"):
                break
        told = json.loads(finished.stdout) if finished.status == "ok" else {"seconds": round(finished.seconds, 1)}
        peak = max(finished.peak_bytes / 1e6, told.pop("driver_mb", 0.0))  # a short run falls between two samples
        if finished.status == "failed":
            told_by = f"{case} of {contender.name} exited with {finished.code}; the end of {log}:"
            logger.error("%s\n%s", told_by, _end_of(log))
        return Record(
            case=case,
            contender=contender.name,
            round=number,
            status=finished.status,
            process_s=round(finished.seconds, 1),
            peak_mb=round(peak, 1),
            left_over=finished.left_over,
            commit=self.commit,
            **told,
        )

    def _environment(self, scratch: Path) -> dict[str, str]:
        # A run must not join another Ray of this user or find its files: each run has its own directory.
        without = ("PYTHONDONTWRITEBYTECODE", "RAY_ADDRESS", "VIRTUAL_ENV")
        env = {name: value for name, value in os.environ.items() if name not in without}
        return env | {
            "PYTHONPATH": os.pathsep.join(map(str, self.paths)),
            "RAY_TMPDIR": str(scratch),
            "RAY_USAGE_STATS_ENABLED": "0",
            SCRATCH: str(scratch),
        }


def turns(contenders: Sequence[Contender], number: int) -> list[Contender]:
    """Return the order of a round: each round starts with a different contender, so that none has a fixed position."""
    shift = number * max(1, len(contenders) // 3) % max(1, len(contenders))
    return [*contenders[shift:], *contenders[:shift]]


def is_wanted(case: Case, contender: Contender, contenders: Sequence[Contender], results: Results) -> bool:
    """Whether a contender should run in another round."""
    sofar = results.of(case.key, contender.name)
    if any(record.status != "ok" for record in sofar):
        return False
    slowest = max((record.seconds for record in sofar), default=0.0)
    if slowest > (VERY_SLOW_S if contender.always else SLOW_S):
        return False
    # Of several contenders for the practical limit, only the best one matters.
    ways = [one.name for one in contenders if one.limit == contender.limit]
    return not contender.limit or results.limit(case.key, ways) == contender.name


def _end_of(log: Path) -> str:
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
