# SPDX-License-Identifier: Apache-2.0
"""Curate the documentation of all installed packages.

The long description in each distribution's metadata is real text, on any machine, without a download:

    python curate_package_docs.py                      # on Cosmos-Xenna, over an embedded Ray
    python curate_package_docs.py --executor local     # in this process, with a debugger if you like

It writes the good texts as Parquet and the trace of the run as JSON, and prints a summary of the run.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from dataclasses import dataclass
from hashlib import blake2b
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from text_quality import SIGNALS, broken_rule, clean, measure

from curator_core import (
    BaseExecutor,
    BatchReport,
    DocumentBatch,
    EmptyTask,
    LocalExecutor,
    Pipeline,
    ProcessingStage,
    ProgressBar,
    Resources,
    RunObserver,
    RunResult,
    Task,
)
from curator_core.io import ParquetWriter
from curator_otel import OTelObserver, render_tree
from curator_otel.sdk.setup import configure

if TYPE_CHECKING:
    from collections.abc import Iterator

# A quarter of a core per worker is enough for texts of a few kilobytes, so that all stages fit on a laptop.
LIGHT = Resources(cpus=0.25)
# Packages in a task: few enough to keep several workers busy, and enough to outweigh the cost of sending the task.
PACKAGES_PER_TASK = 8

# All files have these columns, whichever texts they contain.
SCHEMA = {"name": "string", "version": "string", "text": "string", **dict.fromkeys(SIGNALS, "double")}

# Metadata written by others, or left over from an incomplete installation, can raise any of these. A
# missing file is a TypeError, an AttributeError, or an OSError, depending on the Python version.
BROKEN_METADATA = (AttributeError, KeyError, OSError, TypeError, ValueError)


@dataclass
class PackageNames(Task[list[str]]):
    """Names of installed distributions."""


class FindPackages(ProcessingStage[EmptyTask, PackageNames]):
    """The source: names of the installed distributions, in alphabetical order.

    Args:
        path: Directories to look in.
        limit: Maximum number of distributions; None for all.
    """

    def __init__(self, path: list[str], limit: int | None = None) -> None:
        self._path = path
        self._limit = limit

    def outputs(self) -> tuple[list[str], list[str]]:
        return ["data"], []

    def process(self, task: EmptyTask) -> Iterator[PackageNames]:
        names = iter(self._names())
        while group := list(islice(names, PACKAGES_PER_TASK)):
            yield PackageNames(data=group)

    def _names(self) -> list[str]:
        by_key: dict[str, str] = {}
        broken = 0
        for distribution in metadata.distributions(path=self._path):
            name = name_of(distribution)
            if name is None:
                broken += 1
            else:  # a package may be on several paths; Python imports the first one
                by_key.setdefault(re.sub(r"[-_.]+", "-", name).lower(), name)
        keys = sorted(by_key)[: self._limit]
        self.metrics.add("found", len(keys) + broken)
        if broken:
            self.metrics.add("dropped.broken_metadata", broken)
        return [by_key[key] for key in keys]


class ReadDescriptions(ProcessingStage[PackageNames, DocumentBatch]):
    """Reads the long descriptions of packages.

    Args:
        path: Directories to look in.
    """

    resources = LIGHT

    def __init__(self, path: list[str]) -> None:
        self._path = path

    def inputs(self) -> tuple[list[str], list[str]]:
        return ["data"], []

    def outputs(self) -> tuple[list[str], list[str]]:
        return ["data"], ["name", "version", "text"]

    def process(self, task: PackageNames) -> DocumentBatch | None:
        records = [record for name in task.data if (record := self._read(name))]
        return DocumentBatch(data=records) if records else None

    def _read(self, name: str) -> dict[str, Any] | None:
        try:
            fields = next(iter(metadata.distributions(name=name, path=self._path))).metadata
            text, version = fields["Description"], fields["Version"]
        except (*BROKEN_METADATA, StopIteration):
            self.metrics.add("dropped.broken_metadata")
            return None
        if not text or not text.strip() or text.strip() == "UNKNOWN":  # old tools write UNKNOWN for no description
            self.metrics.add("dropped.no_description")
            return None
        return {"name": name, "version": version or "", "text": text}


class CleanMarkup(ProcessingStage[DocumentBatch, DocumentBatch]):
    """Strips the markup. It is the most expensive stage, so a batch is one task, and tasks spread over the workers."""

    resources = LIGHT
    batch_size = 1

    def inputs(self) -> tuple[list[str], list[str]]:
        return ["data"], ["text"]

    def outputs(self) -> tuple[list[str], list[str]]:
        return ["data"], ["text"]

    def process(self, task: DocumentBatch) -> DocumentBatch:
        records = task.to_records()
        self.metrics.add("characters_in", sum(len(record["text"]) for record in records))
        cleaned = [{**record, "text": clean(record["text"])} for record in records]
        self.metrics.add("characters_out", sum(len(record["text"]) for record in cleaned))
        return DocumentBatch(data=cleaned)


class MeasureQuality(ProcessingStage[DocumentBatch, DocumentBatch]):
    """Adds the quality signals of Gopher and C4, one column each."""

    resources = LIGHT

    def inputs(self) -> tuple[list[str], list[str]]:
        return ["data"], ["text"]

    def outputs(self) -> tuple[list[str], list[str]]:
        return ["data"], list(SIGNALS)

    def process(self, task: DocumentBatch) -> DocumentBatch:
        return DocumentBatch(data=[{**record, **measure(record["text"])} for record in task.to_records()])


class FilterByQuality(ProcessingStage[DocumentBatch, DocumentBatch]):
    """Drops texts that break a rule, and counts each under the first rule that it breaks."""

    resources = LIGHT
    batch_size = 4

    def inputs(self) -> tuple[list[str], list[str]]:
        return ["data"], list(SIGNALS)

    def outputs(self) -> tuple[list[str], list[str]]:
        return ["data"], []

    def process(self, task: DocumentBatch) -> DocumentBatch | None:
        kept = []
        for record in task.to_records():
            rule = broken_rule(record)
            if rule is None:
                kept.append(record)
            else:
                self.metrics.add(f"dropped.{rule.reason}")
        return DocumentBatch(data=kept) if kept else None


class DropDuplicates(ProcessingStage[DocumentBatch, DocumentBatch]):
    """Keeps the first of several equal texts. The remaining set of texts does not depend on their order.

    One worker sees all texts. It remembers which document owns a text, and not only that it has seen the text,
    so that a retried batch recognizes and keeps its own documents. If the worker dies, this memory is lost.
    """

    resources = LIGHT
    max_attempts = 2

    def __init__(self) -> None:
        self._owners: dict[bytes, tuple[str, int]] = {}

    def num_workers(self) -> int:
        return 1

    def inputs(self) -> tuple[list[str], list[str]]:
        return ["data"], ["text"]

    def outputs(self) -> tuple[list[str], list[str]]:
        return ["data"], []

    def process(self, task: DocumentBatch) -> DocumentBatch | None:
        kept = []
        for position, record in enumerate(task.to_records()):
            me = (task.task_id, position)
            digest = blake2b(record["text"].encode("utf-8", "surrogatepass"), digest_size=16).digest()
            if self._owners.setdefault(digest, me) == me:
                kept.append(record)
            else:
                self.metrics.add("dropped.duplicate")
        return DocumentBatch(data=kept) if kept else None


class CountReasons(RunObserver):
    """Adds up the metrics of all stages from the reports: the same numbers on any executor."""

    def __init__(self) -> None:
        self._totals: Counter[str] = Counter()

    def on_batch(self, report: BatchReport) -> None:
        if report.is_retried:
            return  # a later attempt counts
        self._totals.update({name: value for name, value in report.metrics.items() if isinstance(value, int)})

    @property
    def found(self) -> int:
        """Number of documents found."""
        return self._totals["found"]

    @property
    def kept(self) -> int:
        """Number of documents written."""
        return self._totals["records_written"]

    @property
    def dropped(self) -> dict[str, int]:
        """Number of dropped documents by reason, the most frequent first."""
        reasons = [
            (name.removeprefix("dropped."), number)
            for name, number in self._totals.items()
            if name.startswith("dropped.")
        ]
        return dict(sorted(reasons, key=lambda item: (-item[1], item[0])))

    def table(self) -> str:
        """Return the counts as text."""
        rows = [("found", self.found), ("kept", self.kept), ("dropped", sum(self.dropped.values()))]
        rows += [(f"  {reason}", number) for reason, number in self.dropped.items()]
        return "\n".join(f"{name:<24}{number:>6}" for name, number in rows)


def name_of(distribution: metadata.Distribution) -> str | None:
    """Return the name of a distribution, or None if its metadata has none or cannot be read."""
    try:
        return distribution.metadata["Name"] or None
    except BROKEN_METADATA:
        return None


def build(output: Path, limit: int | None) -> Pipeline:
    """Return the pipeline."""
    # The path of this process: Ray adds the directories of its bundled packages to the path of each of its processes.
    path = [str(Path(entry).absolute()) for entry in sys.path]
    stages: list[ProcessingStage[Any, Any]] = [
        FindPackages(path, limit),
        ReadDescriptions(path),
        CleanMarkup(),
        MeasureQuality(),
        FilterByQuality(),
        DropDuplicates(),
        ParquetWriter(output / "parquet", schema=SCHEMA).with_(resources=LIGHT),
    ]
    return Pipeline("curate package docs", stages, "The good part of the installed packages' documentation")


def executor_named(name: str) -> BaseExecutor:
    """Return the executor. Xenna and Ray are imported only if they are needed."""
    if name == "local":
        return LocalExecutor()
    from curator_xenna import XennaExecutor  # noqa: PLC0415 - see above

    return XennaExecutor()


def curate(executor: str, output: Path, limit: int | None = None) -> tuple[RunResult, CountReasons]:
    """Run the pipeline, and write ``parquet/`` and ``trace.json`` to a directory."""
    output.mkdir(parents=True, exist_ok=True)
    for stale in [output / "trace.json", *(output / "parquet").glob("*.parquet")]:
        stale.unlink(missing_ok=True)  # an earlier run may have had more tasks
    counts = CountReasons()
    with configure(json_file=output / "trace.json") as telemetry:
        tracing = OTelObserver(telemetry.tracer_provider, telemetry.meter_provider)
        observers = [ProgressBar(), tracing, counts]
        result = build(output, limit).run(executor_named(executor), observers=observers)
    return result, counts


def show(result: RunResult, counts: CountReasons, output: Path) -> None:
    """Print what the run did, where the time went, and which files it wrote."""
    trace = output / "trace.json"
    print(f"\n{result.summary()}\n\n{counts.table()}\n")
    if trace.exists():
        print(render_tree(trace))  # its last line names the slowest stage
    else:  # OTEL_SDK_DISABLED is set
        slowest = max(result.stages, key=lambda stage: stage.process_s)
        print(f"slowest stage: {slowest.name}, {slowest.process_s:.2f} s in its code")
    print(f"\ntexts: {output / 'parquet'}\ntrace: {trace if trace.exists() else 'none'}")


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    summary, _, details = (__doc__ or "").partition("\n")
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=summary, epilog=details, formatter_class=raw)
    parser.add_argument("--executor", choices=("xenna", "local"), default="xenna", help="default: xenna")
    parser.add_argument("--output", type=Path, default=Path("curated-docs"), help="default: %(default)s")
    parser.add_argument("--limit", type=int, default=None, help="maximum number of packages; default: all")
    given = parser.parse_args(arguments)
    result, counts = curate(given.executor, given.output, given.limit)
    show(result, counts, given.output)
    if counts.found != counts.kept + sum(counts.dropped.values()):
        raise SystemExit("the counts do not add up: found is not the sum of kept and dropped")


if __name__ == "__main__":
    main()
