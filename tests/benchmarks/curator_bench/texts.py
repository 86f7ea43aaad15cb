# SPDX-License-Identifier: Apache-2.0
"""The stages of the example ``curate_package_docs.py`` as plain functions that every contender can run.

A payload is a list of records, as in the example; the processing of texts is in the example's ``text_quality``.
"""

from __future__ import annotations

import re
from hashlib import blake2b
from importlib import metadata
from pathlib import Path
from typing import Any, TypeAlias

__all__ = [
    "DropDuplicates",
    "FindPackages",
    "ReadDescriptions",
    "WriteParquet",
    "clean_markup",
    "filter_by_quality",
    "measure_quality",
    "summary",
]

PACKAGES_PER_TASK = 8
BROKEN_METADATA = (AttributeError, KeyError, OSError, StopIteration, TypeError, ValueError)

Records: TypeAlias = list[dict[str, Any]]


class FindPackages:
    """The source: groups of names of the distributions in a directory.

    Args:
        directory: Where packages are installed.
    """

    def __init__(self, directory: Path) -> None:
        self._path = [str(directory)]

    def __call__(self, _: Any = None) -> list[list[str]]:
        """Return all groups."""
        found: dict[str, str] = {}
        for distribution in metadata.distributions(path=self._path):
            name = distribution.metadata["Name"]
            if name:
                found.setdefault(re.sub(r"[-_.]+", "-", name).lower(), name)
        names = [found[key] for key in sorted(found)]
        return [names[start : start + PACKAGES_PER_TASK] for start in range(0, len(names), PACKAGES_PER_TASK)]


class ReadDescriptions:
    """Reads the long descriptions.

    Args:
        directory: Where packages are installed.
    """

    def __init__(self, directory: Path) -> None:
        self._path = [str(directory)]

    def __call__(self, names: list[str]) -> Records | None:
        """Return a record for each package that has a description."""
        return [record for name in names if (record := self._read(name))] or None

    def _read(self, name: str) -> dict[str, Any] | None:
        try:
            fields = next(iter(metadata.distributions(name=name, path=self._path))).metadata
            text, version = fields["Description"], fields["Version"]
        except BROKEN_METADATA:
            return None
        if not text or not text.strip() or text.strip() == "UNKNOWN":
            return None
        return {"name": name, "version": version or "", "text": text}


def clean_markup(records: Records) -> Records:
    """Strip the markup."""
    from text_quality import clean

    return [{**record, "text": clean(record["text"])} for record in records]


def measure_quality(records: Records) -> Records:
    """Add each signal as a column."""
    from text_quality import measure

    return [{**record, **measure(record["text"])} for record in records]


def filter_by_quality(records: Records) -> Records | None:
    """Drop texts that break a rule."""
    from text_quality import broken_rule

    return [record for record in records if broken_rule(record) is None] or None


class DropDuplicates:
    """Keeps the first of equal texts. One worker sees all texts."""

    def __init__(self) -> None:
        self._seen: set[bytes] = set()

    def __call__(self, records: Records) -> Records | None:
        """Return the records whose text is new."""
        kept = []
        for record in records:
            digest = _digest(record["text"])
            if digest not in self._seen:
                self._seen.add(digest)
                kept.append(record)
        return kept or None


class WriteParquet:
    """Writes a file for each payload, named after its first package.

    Args:
        directory: The output directory.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def __call__(self, records: Records) -> str:
        """Write the file and return its path."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = self._directory / f"{records[0]['name']}.parquet"
        pq.write_table(pa.Table.from_pylist(records), path)
        return str(path)


def summary(directory: Path) -> str:
    """Summarize the written texts, independently of their files and of which equal text was kept."""
    import pyarrow.parquet as pq

    written = (text for path in directory.glob("*.parquet") for text in pq.read_table(path).column("text").to_pylist())
    digests = sorted(_digest(text) for text in written)
    return f"{len(digests)} texts, {blake2b(b''.join(digests), digest_size=8).hexdigest()}"


def _digest(text: str) -> bytes:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
