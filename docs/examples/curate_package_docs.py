# SPDX-License-Identifier: Apache-2.0
"""Curate the documentation of every package that is installed here.

The long description in each distribution's metadata is real text, on any machine, with nothing to download:

    python curate_package_docs.py                      # on Cosmos-Xenna, over an embedded Ray
    python curate_package_docs.py --executor local     # the same in this process, with a debugger if you like

It leaves the good texts as Parquet and the trace of the run as JSON, and shows what the run did.
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
from curator_otel.setup import configure

if TYPE_CHECKING:
    from collections.abc import Iterator

# Texts of some kilobytes: a quarter of a core is enough for a worker, so that all stages fit on a laptop.
LIGHT = Resources(cpus=0.25)
# A task is a handful of packages: few enough to keep several workers busy, enough to outweigh the journey.
PACKAGES_PER_TASK = 8

# What each file has, whichever texts are in it.
SCHEMA = {"name": "string", "version": "string", "text": "string", **dict.fromkeys(SIGNALS, "double")}

# What can go wrong with metadata that somebody else wrote, or that half an installation left behind. A
# missing file is a TypeError, an AttributeError or an OSError, depending on the Python.
BROKEN_METADATA = (AttributeError, KeyError, OSError, TypeError, ValueError)


@dataclass
class PackageNames(Task[list[str]]):
    """Names of installed distributions."""


class FindPackages(ProcessingStage[EmptyTask, PackageNames]):
    """The source: which distributions are installed, by name, in order.

    Args:
        path: Directories to look in.
        limit: How many to take at the most; None for all.
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
            else:  # the same package may be on several paths: the first is the one that is imported
                by_key.setdefault(re.sub(r"[-_.]+", "-", name).lower(), name)
        keys = sorted(by_key)[: self._limit]
        self.metrics.add("found", len(keys) + broken)
        if broken:
            self.metrics.add("dropped.broken_metadata", broken)
        return [by_key[key] for key in keys]


class ReadDescriptions(ProcessingStage[PackageNames, DocumentBatch]):
    """Reads the long descriptions.

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
        if not text or not text.strip() or text.strip() == "UNKNOWN":  # what old tools write for nothing
            self.metrics.add("dropped.no_description")
            return None
        return {"name": name, "version": version or "", "text": text}


class CleanMarkup(ProcessingStage[DocumentBatch, DocumentBatch]):
    """Strips the markup. The most expensive stage, so a batch is one task: they spread over the workers."""

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
    """Adds the signals of Gopher and C4, a column each."""

    resources = LIGHT

    def inputs(self) -> tuple[list[str], list[str]]:
        return ["data"], ["text"]

    def outputs(self) -> tuple[list[str], list[str]]:
        return ["data"], list(SIGNALS)

    def process(self, task: DocumentBatch) -> DocumentBatch:
        return DocumentBatch(data=[{**record, **measure(record["text"])} for record in task.to_records()])


class FilterByQuality(ProcessingStage[DocumentBatch, DocumentBatch]):
    """Drops texts that break a rule, and counts them under the first rule that they break."""

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
    """Keeps the first of the texts that are equal, whichever comes first: the set of texts is the same.

    One worker sees all texts. It remembers which document owns a text, and not just that the text was there:
    a batch that is tried again finds its own documents and keeps them. What a worker remembers dies with it.
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
    """Adds up what the stages count in their metrics, from the reports: the same numbers on any executor."""

    def __init__(self) -> None:
        self._totals: Counter[str] = Counter()

    def on_batch(self, report: BatchReport) -> None:
        if report.is_retried:
            return  # the attempt that counts is yet to come
        self._totals.update({name: value for name, value in report.metrics.items() if isinstance(value, int)})

    @property
    def found(self) -> int:
        """Documents that there were."""
        return self._totals["found"]

    @property
    def kept(self) -> int:
        """Documents that were written."""
        return self._totals["records_written"]

    @property
    def dropped(self) -> dict[str, int]:
        """Documents that were dropped by reason, the most frequent first."""
        reasons = [
            (name.removeprefix("dropped."), number)
            for name, number in self._totals.items()
            if name.startswith("dropped.")
        ]
        return dict(sorted(reasons, key=lambda item: (-item[1], item[0])))

    def table(self) -> str:
        """The counts as text."""
        rows = [("found", self.found), ("kept", self.kept), ("dropped", sum(self.dropped.values()))]
        rows += [(f"  {reason}", number) for reason, number in self.dropped.items()]
        return "\n".join(f"{name:<24}{number:>6}" for name, number in rows)


def name_of(distribution: metadata.Distribution) -> str | None:
    """The name of a distribution; None where its metadata cannot be read or has none."""
    try:
        return distribution.metadata["Name"] or None
    except BROKEN_METADATA:
        return None


def build(output: Path, limit: int | None) -> Pipeline:
    """The pipeline."""
    # As it is here and now: Ray has packages of its own, and puts them on the path of each process it is in.
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
    """The executor; Xenna and Ray are imported only where they are asked for."""
    if name == "local":
        return LocalExecutor()
    from curator_xenna import XennaExecutor  # noqa: PLC0415 - see above

    return XennaExecutor()


def curate(executor: str, output: Path, limit: int | None = None) -> tuple[RunResult, CountReasons]:
    """Run the pipeline, leaving ``parquet/`` and ``trace.json`` in a directory."""
    output.mkdir(parents=True, exist_ok=True)
    for stale in [output / "trace.json", *(output / "parquet").glob("*.parquet")]:
        stale.unlink(missing_ok=True)  # an earlier run may have had more tasks than this one
    counts = CountReasons()
    with configure(json_file=output / "trace.json") as telemetry:
        tracing = OTelObserver(telemetry.tracer_provider, telemetry.meter_provider)
        observers = [ProgressBar(), tracing, counts]
        result = build(output, limit).run(executor_named(executor), observers=observers)
    return result, counts


def show(result: RunResult, counts: CountReasons, output: Path) -> None:
    """What the run did, where the time went, and what it left."""
    trace = output / "trace.json"
    print(f"\n{result.summary()}\n\n{counts.table()}\n")
    if trace.exists():
        print(render_tree(trace))  # its last line names the slowest stage
    else:  # OTEL_SDK_DISABLED is set
        slowest = max(result.stages, key=lambda stage: stage.process_s)
        print(f"slowest stage: {slowest.name}, {slowest.process_s:.2f} s in its code")
    print(f"\ntexts: {output / 'parquet'}\ntrace: {trace if trace.exists() else 'none'}")


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    summary, _, details = (__doc__ or "").partition("\n")
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=summary, epilog=details, formatter_class=raw)
    parser.add_argument("--executor", choices=("xenna", "local"), default="xenna", help="default: xenna")
    parser.add_argument("--output", type=Path, default=Path("curated-docs"), help="default: %(default)s")
    parser.add_argument("--limit", type=int, default=None, help="how many packages at the most; default: all")
    given = parser.parse_args(arguments)
    result, counts = curate(given.executor, given.output, given.limit)
    show(result, counts, given.output)
    if counts.found != counts.kept + sum(counts.dropped.values()):
        raise SystemExit("the counts do not add up: found is not kept and dropped together")


if __name__ == "__main__":
    main()
