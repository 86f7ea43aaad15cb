# SPDX-License-Identifier: Apache-2.0
"""Executors and observers that installed packages register by name."""

from __future__ import annotations

from typing import Any

from curator_core.errors import ExecutorError, nearest, unknown_name

__all__ = ["find_installed", "instance"]

# The names under which this project's own packages register.
_PACKAGES = {"executor": {"xenna": "curator-xenna"}, "observer": {"otel": "curator-otel"}}


def find_installed(kind: str, name: str) -> Any:
    """Return the object that an installed package registers under a name.

    Args:
        kind: ``"executor"`` or ``"observer"``.
        name: Its name in the entry points ``curator.executors`` or ``curator.observers``.

    Raises:
        ExecutorError: Nothing is installed under that name, or it cannot be imported.
    """
    from importlib.metadata import entry_points  # noqa: PLC0415 - 20 ms, needed only for names given as strings

    found = entry_points(group=f"curator.{kind}s")
    if name not in found.names:
        details = unknown_name(kind, name, found.names)
        meant = nearest(name, {*found.names, *_PACKAGES[kind]})
        if meant is not None and meant not in found.names:
            details["hint"] = f"python -m pip install {_PACKAGES[kind][meant]}, which provides the {kind} {meant!r}"
        raise ExecutorError(f"no {kind} '{name}' is installed", given=name, **details)
    try:
        return found[name].load()
    except (ImportError, AttributeError) as exc:
        raise ExecutorError(
            f"the {kind} '{name}' cannot be imported: {exc}",
            field=name,
            given=found[name].value,
            expected="a package that works in this environment",
            hint="see the traceback above this one, and reinstall what is missing",
        ) from exc


def instance(kind: str, value: Any) -> Any:
    """Return a value as it is; of a name, an instance of what is installed under it."""
    return find_installed(kind, value)() if isinstance(value, str) else value
