# SPDX-License-Identifier: Apache-2.0
"""The failure policy that users write: where dead letters go, and how large one may be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from curator_core.errors import ConfigurationError

if TYPE_CHECKING:
    from curator_core._files.paths import PathLike

__all__ = ["DeadLetter"]

_MAX_BYTES = 64 << 20


@dataclass(frozen=True, init=False)
class DeadLetter:
    """Sets tasks that fail for good aside as files, and goes on: ``pipeline.run(on_error=DeadLetter("dead/"))``.

    Each failure leaves one file, ``<stage>/<task id>.letter``. `curator_core.deadletter.read` tells what failed and
    why, `curator_core.deadletter.load` gives the tasks back.

    Args:
        path: Directory or fsspec URL to write to; made where it is missing.
        max_bytes: A task that takes more bytes is not kept: its letter says only what failed, and why. 0 keeps none.
        storage_options: Options of the fsspec filesystem; not shown, since they may hold secrets.

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
        from curator_core._files.paths import absolute  # noqa: PLC0415 - who only imports this package reads no files

        values = {
            "path": absolute(path, "path"),
            "max_bytes": _check_bytes(max_bytes),
            "storage_options": _check_options(storage_options),
        }
        self.__dict__.update(values)  # frozen, so not by assignment


def _check_bytes(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    raise ConfigurationError(
        "invalid number of bytes",
        field="max_bytes",
        given=value,
        expected="a whole number, 0 or more",
        hint="64 << 20 is 64 MiB, the default; 0 keeps no tasks, only what became of them",
    )


def _check_options(value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if isinstance(value, Mapping) and all(isinstance(name, str) for name in value):
        return dict(value)
    raise ConfigurationError(
        "these are no options of a filesystem",
        field="storage_options",
        given=type(value),  # not the value: there may be secrets in it
        expected="None, or a dict of options by name",
        hint='write {"key": …, "secret": …}, as for fsspec.open',
    )
