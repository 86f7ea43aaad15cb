# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools
import os
from typing import TYPE_CHECKING

import fsspec
import pytest

from curator_core import DataError, Pipeline, StageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_NUMBERS = itertools.count()
_NOBODY = 65534


@pytest.fixture
def data_error() -> Callable[..., DataError]:
    """Runs a pipeline that must end in a DataError of a stage, and returns that."""

    def run(*stages: object, **options: object) -> DataError:
        with pytest.raises(StageError) as caught:
            Pipeline("test", stages).run(**options)
        cause = caught.value.__cause__
        assert isinstance(cause, DataError), cause
        assert cause.field
        assert cause.expected
        assert cause.hint
        return cause

    return run


@pytest.fixture
def memory_url() -> Iterator[str]:
    """A directory of its own on the in-memory filesystem: one that is not local, without a network."""
    url = f"memory://test-{next(_NUMBERS)}"
    yield url
    fs = fsspec.filesystem("memory")
    if fs.exists(url):
        fs.rm(url, recursive=True)


@pytest.fixture
def as_nobody(tmp_path: Path) -> Iterator[None]:
    """Run without root's privilege to read and write everything."""
    if os.geteuid() != 0:
        yield
        return
    for parent in (tmp_path, *tmp_path.parents):
        if parent.stat().st_uid == 0 and parent.stat().st_mode & 0o005 != 0o005:
            parent.chmod(parent.stat().st_mode | 0o005)  # pytest's own directories, made for root alone
    os.seteuid(_NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
