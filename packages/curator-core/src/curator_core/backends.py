# SPDX-License-Identifier: Apache-2.0
"""The building blocks of an executor, in addition to `BaseExecutor`, `BaseStageAdapter`, and `Plan`.

Write an executor with these names and those of `curator_core`; everything else may change without notice. The names
are grouped by purpose:

- The plan: `CompiledStage`, and `StageGroup`, the stages that share a worker, from `group_stages` and `FusionLevel`.
- The run: `Run` in the driver, and `RunContext` on workers.
- Execution: `Chain` runs the stages of a group; `BundlePlan` and `Pace` decide the sizes of `Bundle` objects, which
  travel between workers.
- Transport: `SentStages`, `Packed`, `pack_reports`, and `unpack_reports` carry stages, other objects, and reports
  between processes. Reports of many ordinary batches arrive as `ReportColumns`; `Run.report_all` takes them.
- Workers: `become_worker`, `use_cloudpickle`, and log records that go to the driver.
- Failures: errors as data and back, for outputs that cannot be sent and for workers that died.
- Settings: `is_whole` and `is_amount` check numbers, and `unknown_name` describes a name that does not exist.
"""

from curator_core._adapter.chain import Chain
from curator_core._adapter.sent_stages import SentStages
from curator_core._adapter.worker_state import RunContext, is_isolated
from curator_core._guard.interrupts import become_worker
from curator_core._numbers import is_amount, is_whole
from curator_core._plan.bundles import (
    MAX_BUNDLE_BYTES,
    Bundle,
    BundlePlan,
    Pace,
    estimated_bytes,
    split,
    unbundled,
    within_bytes,
)
from curator_core._plan.groups import FusionLevel, StageGroup, group_stages
from curator_core._plan.plan import CompiledStage
from curator_core._reports.columns import ReportColumns
from curator_core._reports.failures import fail_unsendable, rebuild_error, stage_error, unsendable
from curator_core._reports.wire import AnyReport, pack_reports, unpack_reports
from curator_core._run.run import Run
from curator_core._run.settings import FailurePolicy
from curator_core._transport.exceptions import message_of
from curator_core._transport.packed import Packed
from curator_core._transport.pickling import pickles, use_cloudpickle
from curator_core.errors import unknown_name
from curator_core.logs import RecordBuffer, mark_records, relay_records
from curator_core.tasks import digest

__all__ = [
    "MAX_BUNDLE_BYTES",
    "AnyReport",
    "Bundle",
    "BundlePlan",
    "Chain",
    "CompiledStage",
    "FailurePolicy",
    "FusionLevel",
    "Pace",
    "Packed",
    "RecordBuffer",
    "ReportColumns",
    "Run",
    "RunContext",
    "SentStages",
    "StageGroup",
    "become_worker",
    "digest",
    "estimated_bytes",
    "fail_unsendable",
    "group_stages",
    "is_amount",
    "is_isolated",
    "is_whole",
    "mark_records",
    "message_of",
    "pack_reports",
    "pickles",
    "rebuild_error",
    "relay_records",
    "split",
    "stage_error",
    "unbundled",
    "unknown_name",
    "unpack_reports",
    "unsendable",
    "use_cloudpickle",
    "within_bytes",
]
