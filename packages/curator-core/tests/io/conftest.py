# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import fsspec
import pytest

from curator_core import DataError, Pipeline, StageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_NUMBERS = itertools.count()


@pytest.fixture
def data_error() -> Callable[..., DataError]:
    """A function that runs a pipeline, which must end with a DataError of a stage, and returns that error."""

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
    """A new directory on the in-memory filesystem, which is not local but needs no network."""
    url = f"memory://test-{next(_NUMBERS)}"
    yield url
    fs = fsspec.filesystem("memory")
    if fs.exists(url):
        fs.rm(url, recursive=True)
