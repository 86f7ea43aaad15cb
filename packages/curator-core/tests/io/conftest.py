# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools
import os
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import fsspec
import pytest

from curator_core import DataError, Pipeline, StageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

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
def public_path() -> Iterator[Path]:
    """As tmp_path, which root has for itself alone, but open to all users."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o777)
        yield Path(directory)


@pytest.fixture
def as_nobody() -> Callable[[], AbstractContextManager[None]]:
    """Runs a block without root's privilege to read and write everything."""
    return _as_nobody


@contextmanager
def _as_nobody() -> Iterator[None]:
    if os.geteuid() != 0:
        yield
        return
    os.setegid(_NOBODY)
    os.seteuid(_NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
