# SPDX-License-Identifier: Apache-2.0
"""Renders the page of results: Markdown from records. Pure functions."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from curator_bench.capacity import MEASURED, PIPELINES, PREDICTED
from curator_bench.contenders import AGAIN, OURS_IN_NEMO
from curator_bench.micro import NAMES
from curator_bench.results import Summary, targets
from curator_bench.workloads import NEMO, WORKLOADS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from curator_bench.contenders import Case, Contender
    from curator_bench.results import Results

__all__ = ["Machine", "page"]

MISSED = "**missed**"
_WHY_MISSED = Path(__file__).with_name("misses.md")

INTRO = """\
# Benchmarks

These benchmarks compare the cost of the same work on this project, on alternatives, and without a framework. All
contenders run the same functions on the same inputs, in alternating order. Each run uses separate processes and finds
nothing left over from the previous one. A run whose outputs differ makes the benchmark fail.

```console
$ nox -s bench                                          # everything, {minutes}
$ nox -s bench -- --workloads tiny,cpu --rounds 5       # a part; the rest of this page is not changed
$ nox -s bench -- --resume                              # continues after an aborted run
```

{commits}{machine}.

**Look at the ratios.** Seconds depend on the machine and its load, and so do ratios that are close to 1. The clock
runs from before the executor is created until all outputs are in the driver. It includes the start and the end of Ray,
which users pay for, but not imports.
"""

SETTINGS = """\
All contenders run with default settings, and ask for the same CPUs for the same stage: a quarter of a CPU, or less if
there are more than four stages, because Xenna plans with 95% of the cores, rounded down, and NeMo Curator's executor
for Xenna must place all stages at once. Ray Data and actor pools do not have to: there, a stage asks for a whole CPU,
so they start fewer workers, and they were faster this way. *By hand, one stage* is the practical limit: one Xenna
stage that runs all steps on bundles of payloads, with a fixed number of workers, and without ids, counts, batch sizes,
or reports. Several sizes of bundles were tried, and the fastest counts.

Contenders are sorted by their medians; `x` is the ratio of their time to that of Curator on Xenna {newest}, or on the
Xenna that NeMo Curator requires if the stages are NeMo Curator's. *First output* is when a worker had made the first
output, which may not have reached the driver yet; stages of NeMo Curator itself do not tell. Memory is the peak of the
unshared memory of all processes of a run. A contender that took more than {slow:.0f} s ran once, unless others are
compared with it; any that took more than {very_slow:.0f} s ran once in any case.
"""


@dataclass(frozen=True, slots=True)
class Machine:
    """The machine and the versions of the measurements.

    Attributes:
        cores: Number of cores.
        memory_gb: Memory in GB.
        kind: Processor and operating system.
        versions: Versions of packages, by environment.
    """

    cores: int
    memory_gb: int
    kind: str
    versions: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.cores} cores, {self.memory_gb} GB of memory, {self.kind}"


def page(
    results: Results,
    cases: Sequence[Case],
    contenders: Sequence[Contender],
    versions: Sequence[str],
    machine: Machine,
    **limits: float,
) -> str:
    """Render the page.

    Args:
        results: The results.
        cases: The workloads with their sizes.
        contenders: The contenders, in the order of the tables.
        versions: Versions of Xenna.
        machine: The machine.
        limits: ``slow`` and ``very_slow``: seconds, see `compare`.
    """
    newest = versions[-1]
    commits = results.commits()
    measured = f"Measured at {', '.join(f'`{commit}`' for commit in commits)}, on " if commits else "Measured on "
    if any(commit.endswith("+") for commit in commits):
        measured = measured.replace(", on ", " (`+`: with uncommitted changes), on ")
    intro = INTRO.format(minutes="more than an hour on two cores", commits=measured, machine=machine)
    parts = [intro, _targets(results, contenders, versions, machine.cores)]
    workloads = [_workload(results, case, contenders, _reference(case, newest)) for case in cases]
    if any(workloads):
        plot = "![Median seconds of each contender on each workload](benchmarks.svg)"
        parts += ["## Workloads", plot, SETTINGS.format(newest=newest, **limits), *workloads]
    labels = {one.name: one.label for one in contenders}
    parts += [
        _second_runs(results, contenders),
        _micro(results, versions),
        _growth(results, labels),
        _capacity(results, versions),
        _versions(machine),
    ]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Render a Markdown table; all columns except the first ones are aligned to the right."""
    marks = ["---" if column < left else "---:" for column in range(len(head))]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, marks, *rows))


def seconds(value: float | None) -> str:
    """Format seconds with a meaningful precision."""
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.3f}"


def _targets(results: Results, contenders: Sequence[Contender], versions: Sequence[str], cores: int) -> str:
    limits = {version: [one.name for one in contenders if one.limit == version] for version in versions}
    rows = []
    for target in targets(results, versions, limits, cores):
        figure = "not measured" if target.figure is None else f"{target.figure:.3g} {target.unit}"
        verdict = {True: "met", False: MISSED, None: "-"}[target.is_met]
        rows.append([target.says, target.demands, figure, verdict])
    text = "## Targets\n\n" + table(["compared", "target", "measured", ""], rows, left=2)
    is_missed = any(row[-1] == MISSED for row in rows)
    return f"{text}\n\n{_WHY_MISSED.read_text(encoding='utf-8')}" if is_missed else text


def _reference(case: Case, newest: str) -> str:
    """Return the name of the contender that the others are compared with."""
    return OURS_IN_NEMO if WORKLOADS[case.workload].environment == NEMO else f"ours@{newest}"


def _workload(results: Results, case: Case, contenders: Sequence[Contender], reference: str) -> str:
    workload = WORKLOADS[case.workload]
    size = f", {case.size:,} {workload.unit}" if workload.unit else ""
    found = [(one, summary) for one in contenders if (summary := results.summary(case.key, one.name))]
    if not found:
        return ""
    found.sort(key=lambda pair: (pair[1].status != "ok", pair[1].median))
    ours = results.median(case.key, reference)
    rows = [_row(contender, summary, ours) for contender, summary in found]
    head = ["", "median s", "from, to", "rounds", "x", "first output s", "memory MB"]
    return f"### {case.workload}{size}\n\n{_sentence(workload.says)}\n\n{table(head, rows)}"


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _row(contender: Contender, summary: Summary, ours: float | None) -> list[str]:
    if summary.status != "ok":
        told = f"> {summary.median:.0f}" if summary.status == "timeout" else summary.status
        return [contender.label, told, "", "", "", "", ""]
    spread = f"{seconds(summary.least)} to {seconds(summary.most)}" if summary.rounds > 1 else ""
    ratio = "-" if not ours else f"{summary.median / ours:.2f}" if summary.median > ours / 100 else "< 0.01"
    memory = f"{summary.peak_mb:,.0f}" if summary.peak_mb else "-"
    first = seconds(summary.first_s)
    return [contender.label, seconds(summary.median), spread, str(summary.rounds), ratio, first, memory]


def _second_runs(results: Results, contenders: Sequence[Contender]) -> str:
    medians = {one.label: [results.median(case.key, one.name) for case in AGAIN] for one in contenders}
    rows = [[label, *map(seconds, found)] for label, found in medians.items() if any(found)]
    if not rows:
        return ""
    about = (
        "Seconds of a run of 100 tiny tasks on a cluster on which another such run has just ended, by the number of "
        "groups of stages. Each group has one worker per core."
    )
    head = ["", *(f"{case.stages} group{'s' * (case.stages > 1)}" for case in AGAIN)]
    return f"## A second run\n\n{about}\n\n{table(head, rows)}"


def _micro(results: Results, versions: Sequence[str]) -> str:
    names = [(f"ours@{version}", f"Curator, with Xenna {version}") for version in versions]
    names.append((NEMO, "NeMo Curator"))
    there = {name for record in results.records if record.case == "micro" for name in record.values}
    if not there:
        return ""
    titles = {**NAMES, **{name: _size_title(name) for name in sorted(there) if name.startswith("size_")}}
    rows = []
    for figure, title in titles.items():
        values = [results.value("micro", name, figure) for name, _ in names]
        rows.append([title, *("-" if value is None else f"{value:,.4g}" for value in values)])
    firsts = [results.summary("tiny-1000", "nemo-xenna" if name == NEMO else name) for name, _ in names]
    told = [seconds(first.first_s) if first else "-" for first in firsts]
    rows.append(["start-up to the first output of 1,000 tiny tasks on Xenna, s", *told])
    about = (
        "The adapter of each framework around a stage that does nothing, best of many tries; the size of a task as it "
        "travels, without its payload; imports, medians of five; and installed sizes, without bytecode."
    )
    return f"## Cost of the framework\n\n{about}\n\n{table(['', *(label for _, label in names)], rows)}"


def _size_title(name: str) -> str:
    what, _, unit = name.removeprefix("size_").rpartition("_")
    thing = "the whole environment" if what == "environment" else f"`{what}`"
    return f"size of {thing}, {'kB' if unit == 'kb' else 'MB'}"


def _growth(results: Results, labels: Mapping[str, str]) -> str:
    if not any("-stages" in record.case for record in results.records):
        return ""
    most = "tiny-100000"
    rows = [
        [label, seconds(found.median), f"{found.peak_mb:,.0f}"]
        for name, label in labels.items()
        if (found := results.summary(most, name)) is not None and found.status == "ok"
    ]
    head = ["100,000 tasks", "s", "peak memory MB"]
    about = (
        "One dimension at a time: more tasks of one number through 3 stages, 1,000 of them through more stages, and 16 "
        "arrays of increasing size. Each was measured once."
    )
    plot = "![Seconds by tasks, stages and bytes](benchmarks-growth.svg)"
    return f"## How cost grows\n\n{about}\n\n{plot}\n\n{table(head, rows)}"


def _capacity(results: Results, versions: Sequence[str]) -> str:
    rows = []
    for name, (says, _) in PIPELINES.items():
        for version in versions:
            predicted, measured = (
                results.value("capacity", f"ours@{version}", kind.format(name)) for kind in (PREDICTED, MEASURED)
            )
            if predicted and measured:
                rows.append([says, version, f"{predicted:.1f}", f"{measured:.1f}", f"{predicted / measured:.2f}"])
    if not rows:
        return ""
    about = (
        "What `plan_capacity` predicts from the speeds of 100 tasks in one process, and the throughput of a run on "
        "Xenna that takes about half a minute, in its second half: source tasks per second, medians. Stages do not "
        "share workers. Below, the prediction for a pipeline of three stages on clusters of up to 1,000 nodes with 96 "
        "CPUs and 8 GPUs each; none of these exists here."
    )
    plot = "![Source tasks per second by number of nodes](benchmarks-capacity.svg)"
    head = ["stages", "Xenna", "predicted", "measured", "ratio"]
    return f"## Planned capacity\n\n{about}\n\n{table(head, rows, left=2)}\n\n{plot}"


def _versions(machine: Machine) -> str:
    packages = list(dict.fromkeys(name for held in machine.versions.values() for name in held))
    rows = [[name, *(held.get(name, "-") for held in machine.versions.values())] for name in packages]
    if not rows:
        return ""
    return f"## Versions\n\n{table(['', *(f'`{name}`' for name in machine.versions)], rows)}"
