# SPDX-License-Identifier: Apache-2.0
"""The files of a checkpoint: which source tasks earlier runs have finished, so that the next one skips them.

A checkpoint is a directory on a local or network file system. The driver alone writes to it, and reading it executes
nothing: all of it is JSON.

    pipeline.json     the stages, as digests of their settings: a changed pipeline is refused
    finished.jsonl    a journal with a record for each finished source task
    lock              who uses it now: a second run is refused

Read it in this order: ``settings``, ``journal``, ``lock``, ``content``, ``fingerprint``, ``store``.
"""

from typing import TYPE_CHECKING, Any

from curator_core._checkpoint.settings import Checkpoint

if TYPE_CHECKING:
    from curator_core._checkpoint.store import OpenCheckpoint

__all__ = ["Checkpoint", "OpenCheckpoint"]


def __getattr__(name: str) -> Any:
    # What reads and writes files comes when it is asked for: the settings are imported with the package.
    if name == "OpenCheckpoint":
        from curator_core._checkpoint.store import OpenCheckpoint  # noqa: PLC0415 - see above

        return OpenCheckpoint
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
