# SPDX-License-Identifier: Apache-2.0
"""Names for writing an observer of runs, besides `RunObserver`, `BatchReport`, and `RunResult`, which users see too.

Write an observer with these names and those of `curator_core`; everything else may change without notice.
"""

from curator_core._adapter.lineage import is_source_batch
from curator_core._files.paths import local_path
from curator_core._performance import BYTES_PER_MB
from curator_core._reports.batch import ErrorInfo, RunInfo, StageInfo, WorkerReport
from curator_core._reports.totals import BatchOutcome, StageTotals
from curator_core.errors import unknown_name
from curator_core.results import Verdict, VerdictKind

__all__ = [
    "BYTES_PER_MB",
    "BatchOutcome",
    "ErrorInfo",
    "RunInfo",
    "StageInfo",
    "StageTotals",
    "Verdict",
    "VerdictKind",
    "WorkerReport",
    "is_source_batch",
    "local_path",
    "unknown_name",
]
