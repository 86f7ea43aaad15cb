# SPDX-License-Identifier: Apache-2.0
"""Runs contenders side by side, in turns, and keeps a record of each run."""

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

# A contender that takes longer than this is not run again, unless others are held against it …
SLOW_S = 20.0
# … and above this nobody is: a second hour would not change what the first round showed.
VERY_SLOW_S = 120.0
TIMEOUT_S = 150.0
ALWAYS_TIMEOUT_S = 900.0  # for those that others are held against

# What Ray says when Xenna asks for "the" Ray of this machine and there is another: not the contender's fault.
NEIGHBOUR = "Found multiple active Ray instances"
ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class Bench:
    """Where things are, for runs.

    Attributes:
        pythons: The interpreter of each environment.
        directory: Where logs go.
        documents: Directory of installed packages, whose descriptions are the texts.
        store: Where records go.
        commit: What is measured.
        paths: Directories that runs find modules in.
        neighbours: What else may run Ray on this machine.
    """

    pythons: dict[str, Path]
    directory: Path
    documents: Path
    store: Store
    commit: str
    paths: Sequence[Path] = ()
    neighbours: Neighbours = field(default_factory=Neighbours)

    def run(self, case: Case, contenders: Sequence[Contender], rounds: int) -> None:
        """All rounds of a case; what is in the store already is not measured again."""
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
        """One run."""
        more = [*contender.arguments, "--documents", str(self.documents)]
        return self.record(case.key, contender, ["curator_bench.run", contender.runner, *case.arguments, *more], number)

    def record(self, case: str, contender: Contender, arguments: Sequence[str], number: int) -> Record:
        """Run a module in a contender's environment; its line of JSON as a record."""
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
        peak = max(finished.peak_bytes / 1e6, told.pop("driver_mb", 0.0))  # a short run lies between two samples
        if finished.status == "failed":
            told_by = f"{case} of {contender.name} ended with {finished.code}; the end of {log}:"
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
        # Another Ray of this user must not be joined, nor its files be found: each run has a directory of its own.
        without = ("PYTHONDONTWRITEBYTECODE", "RAY_ADDRESS", "VIRTUAL_ENV")
        env = {name: value for name, value in os.environ.items() if name not in without}
        return env | {
            "PYTHONPATH": os.pathsep.join(map(str, self.paths)),
            "RAY_TMPDIR": str(scratch),
            "RAY_USAGE_STATS_ENABLED": "0",
            SCRATCH: str(scratch),
        }


def turns(contenders: Sequence[Contender], number: int) -> list[Contender]:
    """The order of a round: each begins with another one, so that nobody always comes first, or after the same."""
    shift = number * max(1, len(contenders) // 3) % max(1, len(contenders))
    return [*contenders[shift:], *contenders[:shift]]


def is_wanted(case: Case, contender: Contender, contenders: Sequence[Contender], results: Results) -> bool:
    """Whether a contender is to run in a further round."""
    sofar = results.of(case.key, contender.name)
    if any(record.status != "ok" for record in sofar):
        return False
    slowest = max((record.seconds for record in sofar), default=0.0)
    if slowest > (VERY_SLOW_S if contender.always else SLOW_S):
        return False
    # Of several ways to the practical limit only the best is of interest.
    ways = [one.name for one in contenders if one.limit == contender.limit]
    return not contender.limit or results.limit(case.key, ways) == contender.name


def _end_of(log: Path) -> str:
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
