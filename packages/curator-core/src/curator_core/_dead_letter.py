# SPDX-License-Identifier: Apache-2.0
"""The failure policy that users write: where to write dead letters, and how large one may be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from curator_core._numbers import is_whole
from curator_core.errors import ConfigurationError

if TYPE_CHECKING:
    from curator_core._files.paths import PathLike

__all__ = ["DeadLetter"]

_MAX_BYTES = 64 << 20


@dataclass(frozen=True, init=False)
class DeadLetter:
    """Keeps tasks that fail for good as files, and continues: ``pipeline.run(on_error=DeadLetter("dead/"))``.

    Each failure writes one file, ``<stage>/<task id>.letter``. `curator_core.deadletter.read` returns what failed and
    why, `curator_core.deadletter.load` returns the tasks.

    Args:
        path: Directory or fsspec URL to write to; created if missing.
        max_bytes: Size above which a task is not stored: its letter only says what failed, and why. 0 stores no tasks.
        storage_options: Options of the fsspec filesystem; never shown, because they may contain secrets.

    Raises:
        ConfigurationError: An argument is invalid.
    """

    path: str
    max_bytes: int
    storage_options: dict[str, Any] = field(repr=False, hash=False)

    def __init__(
        self,
        path: PathLike,
        *,
        max_bytes: int = _MAX_BYTES,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        from curator_core._files.paths import absolute  # noqa: PLC0415 - importing this package needs no files

        values = {
            "path": absolute(path, "path"),
            "max_bytes": _check_bytes(max_bytes),
            "storage_options": _check_options(storage_options),
        }
        self.__dict__.update(values)  # a frozen dataclass does not allow assignment


def _check_bytes(value: Any) -> int:
    if is_whole(value, 0):
        return value
    raise ConfigurationError(
        "invalid number of bytes",
        field="max_bytes",
        given=value,
        expected="a whole number, 0 or more",
        hint="pass 64 << 20 for 64 MiB, the default, or 0 to store only the failures and not the tasks",
    )


def _check_options(value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if isinstance(value, Mapping) and all(isinstance(name, str) for name in value):
        return dict(value)
    raise ConfigurationError(
        "invalid options of a filesystem",
        field="storage_options",
        given=type(value),  # not the value, because it may contain secrets
        expected="None, or a dict of options by name",
        hint='pass {"key": …, "secret": …}, as for fsspec.open',
    )
