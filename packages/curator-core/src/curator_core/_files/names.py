# SPDX-License-Identifier: Apache-2.0
"""Names of files made from ids of tasks and names of stages."""

from __future__ import annotations

import re

from curator_core.tasks import digest

__all__ = ["file_name", "is_file_name"]

_SAFE = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")
_UNSAFE = re.compile(r"\W+", re.ASCII)
_LONGEST = 128  # characters of a name that is used unchanged, so that a suffix has room
_KEPT = 64  # characters of another name to keep, so that people recognize it


def is_file_name(text: str) -> bool:
    """Whether a text can be a file name on any filesystem, and is not hidden."""
    return _SAFE.fullmatch(text) is not None


def file_name(text: str) -> str:
    """Return a file name for any text, the same one always, and different ones for different texts.

    A text that can be a file name is returned unchanged, unless it is long or could be an option of a command. Other
    names contain "~", so the two never collide.
    """
    if is_file_name(text) and len(text) <= _LONGEST and text[0] != "-":
        return text
    return f"{_UNSAFE.sub('_', text[:_KEPT]) or '_'}~{digest(text, 10)}"
