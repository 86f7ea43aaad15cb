# SPDX-License-Identifier: Apache-2.0
"""Settings of the tests of curator-core."""

from __future__ import annotations

import resource
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

# A busy machine is no failure: no test here has a time limit of its own.
settings.register_profile("curator", deadline=None)
settings.load_profile("curator")


@pytest.fixture
def room_for() -> Callable[[int], AbstractContextManager[None]]:
    """Limits files to so many bytes inside a block, by the operating system: a write beyond fails as on a full disk."""
    return _room_for


@contextmanager
def _room_for(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
