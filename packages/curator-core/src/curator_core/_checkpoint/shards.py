# SPDX-License-Identifier: Apache-2.0
"""The directories of shards' checkpoints: each shard has its own, below the given directory."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from curator_core._checkpoint.files import make_directory
from curator_core._files.paths import reading
from curator_core.errors import ConfigurationError

if TYPE_CHECKING:
    from curator_core._checkpoint.settings import Checkpoint
    from curator_core._shard import Shard

__all__ = ["directory_of"]

_NAME = re.compile(r"shard-\d+-of-(\d+)")
_WHOLE = "pipeline.json"  # marks a directory that is itself a checkpoint, of the whole source


def directory_of(checkpoint: Checkpoint, shard: Shard | None) -> str:
    """Return the directory of a run's checkpoint, and create it if it is missing.

    Args:
        checkpoint: The user's settings.
        shard: The run's shard, if it has one.

    Raises:
        ConfigurationError: Earlier runs divided the source differently, so this run would repeat finished work.
        DataError: The directory cannot be read or created.
    """
    root = os.fspath(checkpoint.path)
    make_directory(root)
    with reading(root):
        entries = [path.name for path in Path(root).iterdir()]
    counts = {int(match[1]) for name in entries if (match := _NAME.fullmatch(name))}
    if _WHOLE in entries:
        counts.add(1)
    wanted = 1 if shard is None else shard.count
    others = counts - {wanted}
    if others and not checkpoint.accept_changes:
        raise ConfigurationError(
            f"the checkpoint was made for {_shown(others)}, but this run is for {_shown({wanted})}",
            field=root,
            given=shard,
            expected="the same count of shards in all runs with the checkpoint",
            hint="pass shard=(index, count) with the earlier count, or use a separate checkpoint for this run",
        )
    if shard is None or shard.count == 1:
        return root
    directory = str(Path(root) / str(shard))
    make_directory(directory)
    return directory


def _shown(counts: set[int]) -> str:
    return " and ".join("the whole source" if count == 1 else f"{count} shards" for count in sorted(counts))
