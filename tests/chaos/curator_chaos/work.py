# SPDX-License-Identifier: Apache-2.0
"""The work of the runs: documents, the stages that split them, and the faults of some documents."""

from __future__ import annotations

import ctypes
import json
import math
import os
import resource
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curator_core import DocumentBatch, ProcessingStage

if TYPE_CHECKING:
    from collections.abc import Mapping
    from random import Random

    from curator_core import WorkerMetadata

__all__ = [
    "CRASHES",
    "FILES",
    "FILE_LIMIT",
    "HANGS",
    "RAISES",
    "RUBBISH",
    "STALLS",
    "Annotate",
    "Chapters",
    "lift_limit",
    "limit_files",
    "write_source",
]

FILES = 60
DOCUMENTS = 10  # per file
CHAPTERS = (0, 1, 1, 2, 3)  # per document
WORDS = ("curate", "filter", "caption", "naïve", "数据", "write")

RAISES = ("raise",)
RUBBISH = ("text", "too few", "no JSON")
"""Faults that do not raise: an output that is not a task, a missing entry, a value that cannot be written."""

CRASHES = ("segfault", "exit")
"""Faults of a stage that kill its process."""

HANGS = ("hang",)

STALLS = "stalls"
"""A fault whose document is never completely written, until its writer is killed; the next run can write it."""

FILE_LIMIT = "CURATOR_CHAOS_FILE_LIMIT"  # environment variable: maximum bytes of a worker's files


class PoisonError(Exception):
    """The exception that poison raises."""


def write_source(directory: Path, rng: Random, long_text: int = 0) -> list[str]:
    """Write the input files.

    Args:
        directory: Directory of the files.
        rng: Determines everything that varies.
        long_text: Characters of one chapter that is longer than all others; 0 for none.

    Returns:
        The names of all chapters.
    """
    directory.mkdir()
    names = []
    for number in range(FILES):
        documents = []
        for position in range(DOCUMENTS):
            texts = [" ".join(rng.choices(WORDS, k=rng.randint(1, 60))) for _ in range(rng.choice(CHAPTERS))]
            documents.append({"name": f"{number}-{position}", "chapters": texts})
        if long_text and number == FILES // 2:
            documents[0]["chapters"] = ["x" * long_text]
        names += [f"{each['name']}-{place}" for each in documents for place in range(len(each["chapters"]))]
        lines = [json.dumps(each, ensure_ascii=False) + "\n" for each in documents]
        (directory / f"{number:03}.jsonl").write_text("".join(lines), encoding="utf-8")
    return names


def limit_files(limit: int) -> None:
    """Limit the size of files of this process in bytes, unless it is 0, to simulate a full disk."""
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))


def lift_limit() -> None:
    """Remove the limit on files of this process."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


class Stalling:
    """A number like those of numpy that blocks forever when it is first written.

    Args:
        number: The number.
        mark: A file that is created when this has happened.
    """

    dtype = "int"

    def __init__(self, number: int, mark: Path) -> None:
        self.number, self.mark = number, mark

    def tolist(self) -> int:
        if not self.mark.exists():
            self.mark.touch()
            threading.Event().wait()
        return self.number


class Marked(ProcessingStage[DocumentBatch, DocumentBatch]):
    """A stage whose workers leave marks.

    Args:
        marks: Directory in which each worker leaves a file named after the stage and the process.
    """

    def __init__(self, marks: str) -> None:
        self.marks = marks

    def setup(self, worker_metadata: WorkerMetadata) -> None:
        (Path(self.marks) / f"{self.name}-{os.getpid()}").touch()
        limit_files(int(os.environ.get(FILE_LIMIT, "0")))


class Chapters(Marked):
    """Fans a document out to its chapters; a document without chapters is filtered.

    Args:
        marks: See `Marked`.
        ballast: Extra characters that each chapter carries to the next stage.
    """

    def __init__(self, marks: str, ballast: int = 0) -> None:
        super().__init__(marks)
        self.ballast = ballast

    def process(self, task: DocumentBatch) -> list[DocumentBatch] | None:
        (document,) = task.to_records()
        chapters = enumerate(document["chapters"])
        records = [{"name": f"{document['name']}-{place}", "text": text} for place, text in chapters]
        load = {"ballast": "x" * self.ballast} if self.ballast else {}
        return [DocumentBatch([{**record, **load}]) for record in records] or None


class Annotate(Marked):
    """Counts words, sixteen chapters at a time, unless one of them is poison.

    Args:
        marks: See `Marked`.
        poison: Faults by the names of the chapters, from the constants above.
        pace_s: Seconds per chapter.
        leak: Bytes that the stage leaks per chapter.
    """

    batch_size = 16

    def __init__(self, marks: str, poison: Mapping[str, str], pace_s: float, leak: int = 0) -> None:
        super().__init__(marks)
        self.poison = dict(poison)
        self.pace_s = pace_s
        self.leak = leak
        self.leaked: list[bytes] = []

    def process_batch(self, tasks: list[DocumentBatch]) -> list[Any]:
        return [made for task in tasks for made in self._annotated(task)]

    def _annotated(self, task: DocumentBatch) -> list[Any]:
        """Return a list with the entry for a chapter, or an empty list if its fault is a missing entry."""
        time.sleep(self.pace_s)  # the work
        if self.leak:
            self.leaked.append(b"x" * self.leak)
        (record,) = task.to_records()
        record = {key: value for key, value in record.items() if key != "ballast"}
        fault = self.poison.get(record["name"])
        if fault == "raise":
            raise PoisonError(f"cannot process {record['name']}")
        if fault == "segfault":
            ctypes.string_at(0)
        if fault == "exit":
            os._exit(1)
        if fault == "hang":
            threading.Event().wait()
        if fault == "too few":
            return []
        if fault == "text":
            return ["no task"]
        words: Any = math.nan if fault == "no JSON" else len(record["text"].split())
        if fault == STALLS:
            words = Stalling(words, Path(self.marks) / STALLS)
        return [DocumentBatch([{**record, "words": words}])]
