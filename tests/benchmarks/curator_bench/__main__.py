# SPDX-License-Identifier: Apache-2.0
"""The command line that `nox -s bench` calls with the environments that it has created."""

from __future__ import annotations

import argparse
import json
import logging
import platform
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from curator_bench.compare import SLOW_S, VERY_SLOW_S, Bench, turns
from curator_bench.contenders import (
    AGAIN,
    GROWTH,
    MAIN,
    Contender,
    chosen,
    contenders,
    growth_contenders,
    versions_of,
)
from curator_bench.harness import cores
from curator_bench.plots import draw
from curator_bench.report import Machine, page
from curator_bench.results import Store
from curator_bench.workloads import NEMO, WORKLOADS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from curator_bench.contenders import Case
    from curator_bench.results import Results

ROOT = Path(__file__).parents[3]
SHOWN = ("curator-core", "curator-xenna", "cosmos-xenna", "nemo-curator", "ray", "numpy", "pyarrow")
QUICK = 50  # one fiftieth of the tasks
ALONE = ("micro", "capacity")  # modules that measure figures, and no contender of a workload
EVERYTHING = (*WORKLOADS, "again", "growth", *ALONE)

logger = logging.getLogger("curator_bench")


def main(arguments: list[str] | None = None) -> int:
    """Run the requested benchmarks and write the page; return 1 if a run failed or had wrong results."""
    given = parse(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))  # like Ctrl-C: running contenders are killed
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    pythons = {name: Path(path).absolute() for name, path in (pair.split("=", 1) for pair in given.environment)}
    cases, growth = MAIN, GROWTH
    if given.quick:
        cases = tuple(case.smaller(QUICK) for case in MAIN)
        growth = {side: tuple(case.smaller(QUICK) for case in held) for side, held in GROWTH.items()}
        given.directory = given.docs = given.directory / "quick"  # never mixed with published results
    given.directory.mkdir(parents=True, exist_ok=True)
    earlier = None if given.quick else given.docs / "benchmarks.json"
    store = Store(given.directory / "results.jsonl", earlier)
    found = contenders(list(pythons), cores())
    documents = site_packages(pythons[min(name for name in pythons if name != NEMO)])
    paths = (ROOT / "tests" / "benchmarks", ROOT / "docs" / "examples")
    bench = Bench(pythons, given.directory, documents, store, commit(), paths)
    if given.resume:
        store.forget_failures()
    if not given.only_render:
        for name in ALONE:
            if name in given.workloads:
                run_alone(bench, name, found, given)
        run_cases(bench, plan(cases, growth, chosen(found, given.contenders), given.workloads), given)
    results = store.results()
    write(results, cases, growth, found, pythons, given.docs)
    wrong = [*results.disagreements(), *results.failures()]
    for line in wrong:
        logger.error("%s", line)
    return 1 if wrong else 0


def write(
    results: Results,
    cases: Sequence[Case],
    growth: Mapping[str, Sequence[Case]],
    found: Sequence[Contender],
    pythons: Mapping[str, Path],
    docs: Path,
) -> None:
    """Write the page, its plots, and the results as JSON."""
    where = machine(pythons)
    text = page(results, cases, found, versions_of(list(pythons)), where, slow=SLOW_S, very_slow=VERY_SLOW_S)
    (docs / "benchmarks.md").write_text(text, encoding="utf-8")
    told = {"machine": str(where), "versions": where.versions, "commits": results.commits(), "runs": results.to_json()}
    (docs / "benchmarks.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    draw(results, cases, growth, found, docs)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="nox -s bench --", description=__doc__)
    parser.add_argument("--environment", action="append", default=[], metavar="NAME=PYTHON", help=argparse.SUPPRESS)
    parser.add_argument("--directory", type=Path, default=ROOT / "build" / "bench", help="logs and raw results")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="directory of the page")
    parser.add_argument("--workloads", type=names, default=EVERYTHING, help=f"some of {','.join(EVERYTHING)}")
    parser.add_argument("--contenders", type=names, default=(), help="names or patterns, such as ours*,nemo-xenna")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="run a fraction of the work once, as a trial")
    parser.add_argument("--resume", action="store_true", help="keep existing measurements, and run only missing ones")
    parser.add_argument("--only-render", action="store_true", help="write the page again from existing measurements")
    given = parser.parse_args(arguments)
    if given.quick:
        given.rounds = 1
    unknown = set(given.workloads) - set(EVERYTHING)
    if unknown:
        parser.error(f"unknown workload: {', '.join(sorted(unknown))}")
    return given


def names(text: str) -> tuple[str, ...]:
    """Split a comma-separated list."""
    return tuple(part for part in text.split(",") if part)


def plan(
    cases: Sequence[Case],
    growth: Mapping[str, Sequence[Case]],
    wanted: Sequence[Contender],
    workloads: Sequence[str],
) -> list[tuple[Case, list[Contender]]]:
    """Return each chosen case with its contenders."""
    found = [(case, [one for one in wanted if case.is_for(one)]) for case in cases if case.workload in workloads]
    if "again" in workloads:
        found += [(case, [one for one in wanted if "again" in one.only]) for case in AGAIN]
    if "growth" in workloads:
        there = {case.key for case in cases}  # the curves share points with the workloads
        grown = {case.key: case for held in growth.values() for case in held if case.key not in there}
        found += [(case, growth_contenders(wanted, case)) for case in grown.values()]
    return found


def run_cases(bench: Bench, planned: Sequence[tuple[Case, Sequence[Contender]]], given: argparse.Namespace) -> None:
    """Run all workloads."""
    if not given.resume:
        for case, runners in planned:
            bench.store.forget([case.key], [one.name for one in runners])
    for case, runners in planned:
        bench.run(case, runners, given.rounds)


def run_alone(bench: Bench, name: str, found: Sequence[Contender], given: argparse.Namespace) -> None:
    """Measure the figures of a module in each environment that it is for."""
    measured = measured_by(name, found)
    if not given.resume:
        bench.store.forget([name], [one.name for one in measured])
    for number in range(given.rounds):
        for one in turns(measured, number):
            if (name, one.name, number) in bench.store:
                continue
            record = bench.record(name, one, [f"curator_bench.{name}", *one.arguments], number)
            bench.store.add(record)
            figures = ", ".join(f"{figure} {value}" for figure, value in record.values.items())
            logger.info("%-24s %-28s round %d  %-7s %s", name, one.name, number + 1, record.status, figures)


def measured_by(name: str, found: Sequence[Contender]) -> list[Contender]:
    """Return one contender for each environment that a module measures; only `micro` measures other frameworks."""
    versions = list(dict.fromkeys(one.limit for one in found if one.limit))
    of = {"ours": ("--of", "ours"), NEMO: ("--of", NEMO)} if name == "micro" else {"ours": ()}
    mine = [Contender(f"ours@{version}", "", name, f"xenna-{version}", of["ours"], always=True) for version in versions]
    has_nemo = NEMO in of and any(one.environment == NEMO for one in found)
    return [*mine, *([Contender(NEMO, "", name, NEMO, of[NEMO], always=True)] if has_nemo else [])]


def site_packages(python: Path) -> Path:
    """Return the directory of an environment's packages."""
    return Path(ask(python, "import sysconfig; print(sysconfig.get_paths()['purelib'])"))


def ask(python: Path, code: str) -> str:
    """Return the output of a piece of code in an environment."""
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def machine(pythons: Mapping[str, Path]) -> Machine:
    """Describe this machine by its relevant properties, without its name."""
    import psutil

    code = (
        "import json, platform; from importlib.metadata import distributions as all_; "
        f"print(json.dumps({{'python': platform.python_version()}} | "
        f"{{d.metadata['Name']: d.version for d in all_() if d.metadata['Name'] in {SHOWN}}}))"
    )
    held = {name: json.loads(ask(python, code)) for name, python in pythons.items()}
    order = ("python", *SHOWN)
    versions = {name: {key: of[key] for key in order if key in of} for name, of in held.items()}
    kind = f"{platform.system()} on {platform.machine()}"
    return Machine(cores(), round(psutil.virtual_memory().total / 2**30), kind, versions)


def commit() -> str:
    """Return the current commit, marked if files differ from it, except those that this program writes."""
    described = ["git", "describe", "--always", "--exclude=*", "--abbrev=10"]
    changed = ["git", "status", "--porcelain", "--untracked-files=no", "--", ".", ":!docs/benchmarks*"]
    name, changes = (
        subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
        for command in (described, changed)
    )
    return f"{name}+" if changes else name


if __name__ == "__main__":
    sys.exit(main())
