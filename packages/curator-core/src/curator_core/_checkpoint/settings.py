# SPDX-License-Identifier: Apache-2.0
"""The user's settings of a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from curator_core.errors import ConfigurationError

if TYPE_CHECKING:
    from curator_core._files.paths import PathLike

__all__ = ["Checkpoint"]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Where a run records finished source tasks, and how the next run uses these records.

    Attributes:
        path: Directory on a local or network file system; created if missing. It becomes an absolute path.
        accept_changes: Whether to continue if the stages differ from those of the earlier runs. Source tasks that
            finished with the earlier stages are skipped anyway.
        retry_failed: Whether source tasks that failed in an earlier run are processed again. Otherwise they count as
            finished.

    Raises:
        ConfigurationError: The path is invalid or a URL of an object store, or another value is not a bool.
    """

    path: PathLike
    accept_changes: bool = False
    retry_failed: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", _directory(self.path))
        for name in ("accept_changes", "retry_failed"):
            value = getattr(self, name)
            if not isinstance(value, bool):
                raise ConfigurationError(
                    "invalid setting of a checkpoint", field=name, given=value, expected="True or False"
                )


def _directory(path: PathLike) -> str:
    from curator_core._files.paths import absolute, is_url  # noqa: PLC0415 - loads readers and writers: few runs have a checkpoint

    text = absolute(path, "path")
    if is_url(text):
        raise ConfigurationError(
            "a checkpoint cannot be stored there: it is appended to and synced to disk, which needs a file system",
            field="path",
            given=text,
            expected="a directory on a local or network file system",
            hint="put the outputs on the object store, and the checkpoint on a disk",
        )
    return text
