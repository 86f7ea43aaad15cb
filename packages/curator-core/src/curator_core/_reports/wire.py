# SPDX-License-Identifier: Apache-2.0
"""Reports as bytes, on their way from a worker to the driver.

They cross process boundaries more often than anything else, and contain only plain values. As rows they take 2 us each
to pack; as NamedTuples 9 us, because pickle asks each of them in Python how it is made; and through cloudpickle, which
users' objects need, 12 us (3.12, batches of one task).
"""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING

from curator_core._guard.user_code import check_failure
from curator_core._reports.batch import BatchReport
from curator_core._transport.pickling import dumps

if TYPE_CHECKING:
    from collections.abc import Sequence

    from curator_core._reports.batch import WorkerReport

__all__ = ["pack_reports", "unpack_reports"]


def pack_reports(reports: Sequence[BatchReport | WorkerReport]) -> bytes:
    """Return reports as bytes, for `unpack_reports`."""
    rows = [tuple(report) if isinstance(report, BatchReport) else report for report in reports]
    try:
        return pickle.dumps(rows, protocol=5)
    except BaseException as exc:  # noqa: BLE001 - such as an instance of a user's str subclass among the plain values
        check_failure(exc)
        return dumps(rows)


def unpack_reports(data: bytes) -> list[BatchReport | WorkerReport]:
    """Return the reports from `pack_reports`. Only for data that this project packed: unpickling runs code."""
    return [BatchReport._make(row) if row.__class__ is tuple else row for row in pickle.loads(data)]  # noqa: S301 - see above
