# SPDX-License-Identifier: Apache-2.0
"""A text pipeline of NeMo Curator's own stages, and real documents for it: pieces of source files."""

from __future__ import annotations

import itertools
import json
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from curator_bench.workloads import Job

__all__ = ["NUM_STAGES", "stages", "summary", "write_documents"]

NUM_STAGES = 6  # the reader is two of them
LINES = 30  # of a document
DOCUMENTS_PER_FILE = 250


def stages(job: Job) -> list[Any]:
    """Return the stages: a reader, three filters and modifiers, and a writer."""
    from nemo_curator.stages.text.filters import ScoreFilter
    from nemo_curator.stages.text.filters.heuristic import SymbolsToWordsFilter, WordCountFilter
    from nemo_curator.stages.text.io.reader import JsonlReader
    from nemo_curator.stages.text.io.writer import JsonlWriter
    from nemo_curator.stages.text.modifiers import Modify
    from nemo_curator.stages.text.modifiers.unicode import UnicodeReformatter

    return [
        JsonlReader(str(job.output / "in"), files_per_partition=1),
        ScoreFilter(WordCountFilter(min_words=20), text_field="text", score_field="words"),
        ScoreFilter(SymbolsToWordsFilter(), text_field="text"),
        Modify(UnicodeReformatter()),
        JsonlWriter(str(job.output / "out")),
    ]


def write_documents(packages: Path, directory: Path, count: int) -> None:
    """Write documents as JSON Lines.

    Args:
        packages: Directory of installed packages.
        directory: Where to write them, in ``in``.
        count: The number of documents.

    Raises:
        ValueError: The packages have fewer documents.
    """
    target = directory / "in"
    target.mkdir()
    texts = [*itertools.islice(_texts(packages), count)]
    if len(texts) < count:
        raise ValueError(f"{packages} has {len(texts)} documents of {LINES} lines, not {count}")
    for start in range(0, count, DOCUMENTS_PER_FILE):
        lines = (json.dumps({"text": text}) for text in texts[start : start + DOCUMENTS_PER_FILE])
        (target / f"{start:08d}.jsonl").write_text("\n".join(lines))


def summary(directory: Path) -> str:
    """Summarize the documents that were written: the names of the files depend on the paths, but not the content."""
    files = [path.read_bytes() for path in (directory / "out").iterdir()]
    digests = sorted(blake2b(content).digest() for content in files)
    lines = sum(content.count(b"\n") for content in files)
    return f"{lines} documents in {len(files)} files, {blake2b(b''.join(digests), digest_size=8).hexdigest()}"


def _texts(packages: Path) -> Iterator[str]:
    for path in sorted(packages.rglob("*.py")):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        for start in range(0, len(lines), LINES):
            yield "\n".join(lines[start : start + LINES])
