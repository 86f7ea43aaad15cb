# SPDX-License-Identifier: Apache-2.0
"""Stages that list, read, and write files: local ones, and those behind fsspec URLs.

    from curator_core import Pipeline
    from curator_core.io import JsonlReader, JsonlWriter

    Pipeline("copy", [JsonlReader("s3://bucket/in/*.jsonl.gz"), JsonlWriter("out")]).run()

Parquet needs the extra ``parquet``: ``pip install 'curator-core[parquet]'``.
"""

from curator_core.io.jsonl import JsonlReader, JsonlReaderStage, JsonlWriter
from curator_core.io.parquet import ParquetReader, ParquetReaderStage, ParquetWriter
from curator_core.io.partitioning import FilePartitioningStage

__all__ = [
    "FilePartitioningStage",
    "JsonlReader",
    "JsonlReaderStage",
    "JsonlWriter",
    "ParquetReader",
    "ParquetReaderStage",
    "ParquetWriter",
]
