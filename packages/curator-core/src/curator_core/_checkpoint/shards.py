# SPDX-License-Identifier: Apache-2.0
"""Where the shards of a source keep their checkpoints: each in a directory of its own, below the one that is given."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from curator_core._checkpoint.files import make_directory, reading
from curator_core.errors import ConfigurationError

if TYPE_CHECKING:
    from curator_core._checkpoint.settings import Checkpoint
    from curator_core._shard import Shard

__all__ = ["directory_of"]

_NAME = re.compile(r"shard-\d+-of-(\d+)")
_WHOLE = "pipeline.json"  # in the directory of a checkpoint


def directory_of(checkpoint: Checkpoint, shard: Shard | None) -> str:
    """The directory of a run's checkpoint, which is there afterwards.

    Args:
        checkpoint: What the user says about it.
        shard: The run's shard, if it has one.

    Raises:
        ConfigurationError: Earlier runs divided the source in another way, so that this one would run again what they
            have finished.
        DataError: It cannot be read or made.
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
            f"the checkpoint is one of runs of {_shown(others)}, and this run is of {_shown({wanted})}",
            field=root,
            given=shard,
            expected="shards of the same count, which share what is finished",
            hint="say shard=(index, count) with the count of then, or give this run a checkpoint of its own",
        )
    if shard is None or shard.count == 1:
        return root
    directory = str(Path(root) / str(shard))
    make_directory(directory)
    return directory


def _shown(counts: set[int]) -> str:
    return " and ".join("the whole source" if count == 1 else f"{count} shards" for count in sorted(counts))
