# SPDX-License-Identifier: Apache-2.0
"""What the runs work on, and with: documents, the stages that take them apart, and what is wrong with some of them."""

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
DOCUMENTS = 10  # in each file
CHAPTERS = (0, 1, 1, 2, 3)  # of a document
WORDS = ("curate", "filter", "caption", "naïve", "数据", "write")

RAISES = ("raise",)
RUBBISH = ("text", "too few", "no JSON")
"""How a stage goes wrong without raising: no task at all, no entry for an input, a value that cannot be written."""

CRASHES = ("segfault", "exit")
"""How a stage takes its process along."""

HANGS = ("hang",)

STALLS = "stalls"
"""It is in the middle of being written, until its writer is killed; the next run can write it."""

FILE_LIMIT = "CURATOR_CHAOS_FILE_LIMIT"  # the variable with the bytes after which a worker's files are full


class PoisonError(Exception):
    """What poison raises."""


def write_source(directory: Path, rng: Random, long_text: int = 0) -> list[str]:
    """Make the files to read.

    Args:
        directory: Where.
        rng: Decides on everything that may vary.
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
    """Let no file of this process grow beyond some bytes, if they are more than 0: a full disk, for tests."""
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))


def lift_limit() -> None:
    """Let files of this process grow again."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


class Stalling:
    """A number as numpy has them, that takes for ever to be written the first time.

    Args:
        number: The number.
        mark: A file that says that this has happened.
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
    """A stage whose workers say who they are.

    Args:
        marks: The directory in which each leaves a file named after the stage and the process.
    """

    def __init__(self, marks: str) -> None:
        self.marks = marks

    def setup(self, worker_metadata: WorkerMetadata) -> None:
        (Path(self.marks) / f"{self.name}-{os.getpid()}").touch()
        limit_files(int(os.environ.get(FILE_LIMIT, "0")))


class Chapters(Marked):
    """Fans a document out to its chapters; one without any is filtered.

    Args:
        marks: As for `Marked`.
        ballast: Characters that each chapter carries to the next stage.
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
    """Counts words, sixteen chapters at a time, unless there is poison among them.

    Args:
        marks: As for `Marked`.
        poison: What goes wrong, by the names of the chapters: one of the above.
        pace_s: How long a chapter takes.
        leak: Bytes that it keeps of each chapter for ever.
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
        """The entry for a chapter, in a list, which holds none where that is what is wrong."""
        time.sleep(self.pace_s)  # the work
        if self.leak:
            self.leaked.append(b"x" * self.leak)
        (record,) = task.to_records()
        record = {key: value for key, value in record.items() if key != "ballast"}
        fault = self.poison.get(record["name"])
        if fault == "raise":
            raise PoisonError(f"cannot stand {record['name']}")
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
